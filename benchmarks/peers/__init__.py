"""Runs the same work on qsync and on the queues that a user might choose instead.

`make bench-peers` runs it. Each peer is installed into its own environment, in .bench/.

command.py       the command `python -m benchmarks peers`
table.py         the peers, their settings, and their amounts of work
adapters/        one file for each peer
rounds.py        runs one round of one peer
environments.py  installs a peer; interpreter.py chooses the Python for all
processes.py     starts servers and producers, and ends them
producer.py      enqueues, in the environment of the peer
shared.py, counting.py, memory.py, loops.py   helpers of adapters and producers; they import no peer
summary.py       medians, and ratios to qsync
report.py        the table, and the section of docs/benchmarks.md
"""
