"""Compares the limits of qsync, docket and RQ with the same work: `python -m
benchmarks.peers.limited`.

Each peer has its own store, and two workers with default settings. Three measures:

slots   100 tasks of 0.1 s, two at a time: seconds from the first start to the last end
pace    200 tasks, 20 starts per second: largest number of starts in any second
killed  two tasks hold both slots, and the processes that run them are killed with SIGKILL:
        seconds until the next start, whether the killed tasks run again, and slots lost
"""
