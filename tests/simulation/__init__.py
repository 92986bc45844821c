"""The seeded simulation: real clients and servers on virtual time, a real store, and every fault.

One seed is one history. The code of `src/qsync` runs unchanged; only clocks, threads,
random bytes and the connections to the store are ours. Each call is made on a real Valkey at one
instant of virtual time, and may be lost before or after, come late, come twice, or be refused.
Processes freeze, die, stall and have wrong clocks. In the end every task is accounted for.
"""
