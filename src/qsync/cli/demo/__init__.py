"""`qsync demo`: tasks of every kind run, fail, retry and survive a kill -9, and each one is
accounted for."""
