"""`qsync demo`: tasks of every kind run, fail, retry and survive a kill -9, and all are counted.

app.py       the tasks, as a user would write them; `qsync worker` serves them
records.py   what each process writes down, and how it is read
plan.py      which tasks there are, how many, and what their results must be
client.py    the client: enqueues, awaits, cancels
ledger.py    what the client asked for, and what it was told
worker.py    `qsync worker`, in a process of its own
scene.py     all that is known of the run at a moment
run.py       the order of things: store, worker, client, kill -9, the end
evidence.py  what the account is made from
findings.py  what is checked of each kind of task
check.py     the account: every task that was accepted has one end, and everything agrees
screen.py    what is shown meanwhile
report.py    what is shown at the end
command.py   the command line
"""
