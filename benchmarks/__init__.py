"""The same work for qsync and for every queue that a user would pick instead.

`make bench-peers` runs it. `table.py` lists the peers, `peers/` has one file for each, and every
peer is installed into an environment of its own, in .bench/.
"""
