"""The server that `limit_rounds` kills, and the history that it writes.

Each line is one write: `lease`, `start` or `end`, the Unix time in microseconds, the token of the
lease, and the task. The time of a lease is the time, by the store's clock, at which the lease took
its slots and counted towards its rate.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Import these modules, like all others, before the programs are forked.
import qsync.broker.aio_pool
import qsync.broker.blocking_pool
import qsync.server.server
import qsync.server.server_inbox
import qsync.server.stored_ticks  # noqa: F401
from qsync import Mux, Qsync, TaskInfo
from qsync.broker import script
from qsync.broker.op_values import FetchResult
from qsync.limit import LimitRule
from qsync.server.fetch_replies import FetchReplies
from qsync.server.queue_state import LeasedTask, QueueState

PREFIX: Final = "limit-rounds"
SLOTS: Final = 2
RATE: Final = 40
BURST: Final = 8
RULES: Final = {
    "slot": LimitRule(concurrency=SLOTS),
    "rate": LimitRule(rate=RATE, per_us=1_000_000, burst=BURST),
}
LONGEST_S: Final = 0.02
"""Maximum duration of a task, in seconds."""


for _name in ("fetch", "complete", "renew", "hand_back", "mark_started", "register"):
    script.load(_name, flow=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """The store, the history file and the lease length of a server."""

    store: str
    history: Path
    lease_s: float


def run_server(setting: Setting) -> None:
    """Run the tasks until this process is killed or its parent ends."""
    logging.getLogger("qsync").setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    random.seed(os.urandom(16))
    history = os.open(setting.history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(kind: str, at_us: int, token: str, id: str) -> None:
        os.write(history, f"{kind} {at_us} {token} {id}\n".encode())

    _note_leases(note)
    mux = Mux()

    @mux.handle("work")
    async def work(task: TaskInfo) -> None:
        note("start", time.time_ns() // 1000, task.token, task.id)
        await asyncio.sleep(random.uniform(0, LONGEST_S))
        note("end", time.time_ns() // 1000, task.token, task.id)

    with Qsync(setting.store, prefix=PREFIX) as app:
        for name, rule in RULES.items():
            app.limit(
                name,
                concurrency=rule.concurrency,
                rate=rule.rate,
                per=rule.per_us and rule.per_us / 1e6,
                burst=rule.burst,
            )
        options: dict[str, Any] = {"concurrency": 50, "max_crashes": 1000, "sweep": 0.1}
        asyncio.run(app.server(mux, lease=setting.lease_s, **options).run())


def _note_leases(note: Any) -> None:
    """Record each fetched task with the store's time of the fetch, unless the loop or a heartbeat
    has repeated the fetch: the reply may then have the time of the repetition."""
    real = FetchReplies.leased

    async def leased(
        self: FetchReplies,
        queue: QueueState,
        wanted: int,
        fetched: FetchResult,
        *args: Any,
        **rest: Any,
    ) -> list[LeasedTask]:
        token = f"{self._holder}/{queue.number}"
        if not rest["repeated"] and queue.repeated_token != token:
            for id in fetched.ids:
                note("lease", fetched.now_us, token, id)
        return await real(self, queue, wanted, fetched, *args, **rest)

    FetchReplies.leased = leased  # type: ignore[method-assign]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
