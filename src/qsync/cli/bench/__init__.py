"""`qsync bench`: what this machine makes of qsync, beside the floor that it stands on.

figure.py    a measured value, and a curve
scale.py     how much of each is measured
store.py     the store under test: a private one, or somebody's
rig.py       what all measures share: store, queue, clients, servers
handlers.py  the tasks
serve.py     a server in a process of its own, which answers questions
served.py    the same, seen from here
floor.py     what an event loop takes that does nothing else
enqueue.py   measures: enqueue one by one, by many callers, in bulk
drain.py     measures: tasks that wait are run, by handlers of each kind
delay.py     measures: from enqueue to start, and scheduled tasks against their times
cost.py      measures: the store's time and memory
quiet.py     measures: a server with nothing to do
backlog.py   measures: the same with much and with little waiting
measures.py  all of these by name
machine.py   what it was measured on
report.py    what is shown, and what is written as JSON
svg.py       a small writer of SVG
plot.py      the charts
command.py   the command line
"""
