"""The first module that a fork server loads: the import moves the fork server, and so all processes
that it forks, to a new session. Ctrl-C in a terminal then reaches the parent alone, which ends
them.
"""

import os

os.setsid()
