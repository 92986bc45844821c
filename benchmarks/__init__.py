"""Benchmarks: what qsync does on this machine, and the same work by other task queues.

`make bench` runs `python -m benchmarks`, `make bench-peers` runs `python -m benchmarks peers`.

__main__.py        the command line
harness.py         what all measures share: the store, a queue, clients, servers
measures/          one file for each subject, and all measures by name
handlers.py        the tasks
scale.py           how much work each measure does
figures.py         a measured value, and a curve
store.py           a private store, and the statistics of a store
server_process.py  a server in a process of its own, as the harness sees it
server_main.py     what runs in that process
baseline.py        the floor: the same handlers on a bare event loop, without a queue
machine.py         what the figures were measured on
report.py          the table and the JSON
plot.py, svg.py    the charts
peers/             the comparison with other queues
"""
