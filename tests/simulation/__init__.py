"""The seeded simulation: real clients and servers in virtual time, with a real store and every kind
of fault.

Each seed produces one history. The code of `src/qsync` runs unchanged; only clocks, threads, random
bytes and the connections to the store are simulated. Each call runs on a real Valkey at one instant
of virtual time. The call or its reply may be lost, and the call may arrive late, arrive twice, or
be refused. Processes freeze, die, stall and have wrong clocks. At the end, every task must be
accounted for.
"""
