"""Pings a store from a separate process and reports the round trip times. Run as a script:

    python -m tests.support.ping_probe PORT

The probe pings every millisecond until its input ends. Then it prints the start (by
CLOCK_MONOTONIC) and the duration of every round trip as JSON, in seconds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import socket
import sys
import time

from tests.support.stores import HOST


def run_at_once(pid: int) -> None:
    """Give a process priority over others on the machine if the system allows it.

    The measurements then show the cost of qsync rather than the load of a shared machine.
    """
    with contextlib.suppress(PermissionError, AttributeError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))


def main() -> None:
    run_at_once(0)
    taken: list[tuple[float, float]] = []
    with socket.create_connection((HOST, int(sys.argv[1]))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ended = selectors.DefaultSelector()
        ended.register(sys.stdin, selectors.EVENT_READ)
        gc.disable()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not ended.select(0.001):
            began = time.monotonic()
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            connection.recv(100)
            taken.append((began, time.monotonic() - began))
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main()
