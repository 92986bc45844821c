"""Replaces clocks, threads and randomness in the code under test, for one history."""

from __future__ import annotations

import contextlib
import contextvars
import os
import random
import sys
import threading
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

from qsync import new_task, queue_announcer, result_listener, results, subscriptions
from qsync.broker import aio, base, blocking
from qsync.client import base as client_base
from qsync.server import (
    batch_call,
    capacity,
    config,
    handler_context,
    heartbeat,
    isolation_timer,
    loop_watchdog,
    outage_log,
    runner,
    server,
    server_inbox,
    stopping,
    thread_pool,
    wake_channel,
)
from qsync.server import clock as lease_clock
from qsync.server.server_parts import ReplacedParts
from qsync.worker import lease_abandoner
from tests.simulation import brokers
from tests.simulation.loop import STRAND, SimLoop
from tests.simulation.process import Proc
from tests.simulation.threads import (
    SimCondition,
    SimEvent,
    SimQueue,
    SimThread,
    Turns,
    current_thread,
)  # fmt: skip

TIMED: Final = (
    runner, capacity, stopping, loop_watchdog, handler_context, isolation_timer, outage_log,
    batch_call, lease_abandoner, aio, base, blocking, results, result_listener,
    subscriptions, wake_channel,
)  # fmt: skip
"""Modules that read a clock."""

REAL_BOOT_S: Final = lease_clock.boot_s

UNUSED: Final = {
    "qsync.broker.listeners",
    "qsync.broker.blocking_connection",
    "qsync.broker.blocking_pool",
    "qsync.queue_announcer",
    "qsync.server.clock",
    "qsync.server.process_pool",
}
"""Modules that may read the clock of the machine, because what they read does not affect a
history."""


def this_process() -> Proc:
    """Return the simulated process that is running."""
    strand = STRAND.get()
    assert strand is not None
    return cast("Proc", strand.process)


class VirtualTime:
    """Replaces the module `time` and reads the clocks of the calling process."""

    CLOCK_MONOTONIC = 1
    CLOCK_BOOTTIME = 7

    def monotonic(self) -> float:
        return this_process().clock()

    perf_counter = monotonic

    def clock_gettime(self, which: int) -> float:
        return this_process().clock()

    def time(self) -> float:
        return this_process().wall()

    def sleep(self, seconds: float) -> None:
        current_thread().park(seconds)


def reading_boot_s() -> list[Any]:
    """Return the modules that read the clock for leases."""
    modules = [module for name, module in sys.modules.items() if name.startswith("qsync.")]
    return [module for module in modules if getattr(module, "boot_s", None) is REAL_BOOT_S]


def _replacements(loop: SimLoop, turns: Turns, seed: str) -> Iterator[tuple[Any, str, Any]]:
    chance = random.Random(seed)
    time = VirtualTime()
    for module in TIMED:
        yield module, "time", time
    for module in reading_boot_s():
        yield module, "boot_s", partial(time.clock_gettime, VirtualTime.CLOCK_BOOTTIME)
    threads = SimpleNamespace(
        Thread=partial(SimThread, turns),
        Event=partial(SimEvent, turns),
        Condition=partial(SimCondition, turns),
        Lock=threading.Lock,
        get_ident=threading.get_ident,
    )
    for module in (thread_pool, heartbeat, loop_watchdog, lease_abandoner, result_listener):
        yield module, "threading", threads
    yield thread_pool, "SimpleQueue", partial(SimQueue, turns)
    yield client_base, "QueueAnnouncer", partial(queue_announcer.QueueAnnouncer, time.monotonic)
    yield new_task, "os", SimpleNamespace(urandom=chance.randbytes)
    yield new_task, "_nonces", []
    yield new_task, "_ids", []
    yield config, "os", SimpleNamespace(**{**vars(os), "urandom": chance.randbytes})
    yield server, "os", SimpleNamespace(_exit=lambda code: this_process().crash())
    yield server, "ReplacedParts", partial(ReplacedParts, brokers.SimAsyncBroker)
    yield server, "Broker", brokers.SimBroker
    yield heartbeat, "Broker", brokers.SimBroker
    yield server_inbox, "BlockingPop", brokers.SimBlockingPop


@contextlib.contextmanager
def replaced(loop: SimLoop, turns: Turns, seed: str) -> Iterator[None]:
    """Let the code under test use the simulation during the block."""
    before = []
    chance = random.getstate()
    random.seed(seed)  # seed the delays between retries
    try:
        for module, name, value in _replacements(loop, turns, seed):
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        random.setstate(chance)


def world() -> contextvars.Context:
    """Return a context that belongs to no process."""
    return contextvars.Context()
