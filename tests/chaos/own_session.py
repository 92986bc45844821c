"""The first module that a fork server loads. The import moves the fork server, and thus all
processes that it forks, to a new session. Ctrl-C in a terminal then reaches only the parent, which
ends these processes.
"""

import os

os.setsid()
