"""Compares the limits of qsync, docket and RQ with the same work: `python -m
benchmarks.peers.limited`.

Each peer has its own store, and two workers with default settings. There are three measures:

slots   seconds from the first start to the last end of 100 tasks of 0.1 s, two at a time
pace    largest number of starts in any second, for 200 tasks and 20 starts per second
killed  seconds until the next start, whether the killed tasks run again, and slots lost, after
        the processes of two tasks that hold both slots are killed with SIGKILL
"""
