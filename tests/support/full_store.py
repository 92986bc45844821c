"""Checks how a server behaves when its store is full or refuses settlements."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from qsync import Mux, Task, TaskInfo
from qsync.broker import views
from qsync.server.settler import Settler
from tests.scripts.model.mistakes import exchanged
from tests.support.server import bench
from tests.support.stores import Store, wait_until_async

TASKS: Final = 600
MOST_RUN: Final = 300
"""Maximum number of tasks that a server with ten slots runs before it notices that the store
refuses their settlements."""

FULL_S: Final = 20.0
REFUSED_S: Final = 2.0


def wrong_when_full(store: Store, prefix: str) -> str | None:
    """Run tasks on a full store, then on a store that refuses their settlements; return the first
    problem, or None.

    No other test may use the store. The store is emptied first, because leftovers of earlier
    mistakes would count.
    """
    with store.client() as client:
        client.flushall()
    return asyncio.run(_when_full(store, prefix)) or asyncio.run(_when_refused(store, prefix))


def _mux(ran: list[str]) -> Mux:
    mux = Mux()

    @mux.handle("long")
    async def long(task: TaskInfo) -> bytes:
        ran.append(task.id)
        return b"r" * 5000

    return mux


async def _when_full(store: Store, prefix: str) -> str | None:
    """Return the first problem on a store that has no memory for results. Tasks must end without
    storing their results."""
    prefix = f"{prefix}-full"
    async with bench(store.url, prefix) as b:
        await b.client.enqueue_many([Task("long", retention=600)] * 20)

        async def completed() -> bool:
            counts = await b.broker.run(views.counts(b.keys()))
            return counts.stats.get("completed", 0) == 20

        with store.client() as client:
            client.config_set("maxmemory", 1)
            try:
                async with b.server(_mux([])):
                    await wait_until_async(completed, timeout=FULL_S)
            except (AssertionError, TimeoutError):
                return f"tasks with a result did not end within {FULL_S:g} s in a full store"
            finally:
                client.config_set("maxmemory", 0)
    return None


async def _when_refused(store: Store, prefix: str) -> str | None:
    """Return the first problem on a store that refuses all settlements. The server must not start
    more tasks once the store has refused some."""
    prefix = f"{prefix}-refused"
    ran: list[str] = []
    async with bench(store.url, prefix) as b:
        await b.client.enqueue_many([Task("long", retention=600)] * TASKS)
        with store.client() as client:
            client.set(b.keys().key("results"), "no hash")
            try:
                async with b.server(_mux(ran), concurrency=10, prefetch=0, shutdown_timeout=0.1):
                    with contextlib.suppress(AssertionError, TimeoutError):
                        await wait_until_async(lambda: len(ran) > MOST_RUN, timeout=REFUSED_S)
            finally:
                client.delete(b.keys().key("results"))
    if len(ran) > MOST_RUN:
        return f"more than {MOST_RUN} tasks ran while the store refused to record that they ended"
    return None


def result_sent_again_to_a_full_store() -> contextlib.AbstractContextManager[None]:
    """Mistake: a result that a full store refuses is sent again and again."""

    async def complete(self: Settler, entries: Sequence[Any]) -> list[Any]:
        return list(entries)

    return exchanged(Settler, "_complete_in_full_store", complete)


def fetching_while_settlements_are_refused() -> contextlib.AbstractContextManager[None]:
    """Mistake: a server continues to fetch although the store refuses its settlements."""

    def note(self: Settler, *, refused: bool) -> None:
        pass

    return exchanged(Settler, "_note", note)
