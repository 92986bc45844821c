"""Benchmarks that run the same work on qsync and on other task queues, on this machine.

`make bench` runs `python -m benchmarks`, `make bench-peers` runs `python -m benchmarks peers`.

__main__.py        the command line
harness.py         the parts that all measures share: the store, a queue, clients, servers
measures/          one file for each subject, and all measures by name
handlers.py        the tasks
scale.py           the amount of work of each measure
figures.py         a measured value, and a curve
store.py           a private store, and the statistics of a store
server_process.py  the harness's side of a server in its own process
server_main.py     the program of that process
baseline.py        the floor: the same handlers on a bare event loop, without a queue
machine.py         the machine and time of a measurement
report.py          the table and the JSON
plot.py, svg.py    the charts
peers/             the comparison with other queues
"""
