"""The client of the demo: enqueues, awaits and cancels, and keeps a ledger of it all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from qsync.broker import ops
from qsync.broker.shell import AsyncBroker
from qsync.cli.demo import app as tasks
from qsync.cli.demo.ledger import Ledger
from qsync.cli.demo.plan import (
    CALLERS,
    CHILDREN,
    RUNNING,
    SLOW,
    WAITING,
    WHEN,
    Block,
    Plan,
)
from qsync.client import AsyncClient, AsyncHandle
from qsync.errors import DuplicateTask, QsyncError, TaskCancelled, TaskFailed
from qsync.inspector.rows import note_of
from qsync.keys import QueueKeys
from qsync.task import Task

CHUNK: Final = 500
"""Tasks to a call of `enqueue_many`."""

PATIENCE: Final = 3600.0
"""How long a result is awaited, seconds: other programs may have the machine for long."""


class DemoClient:
    """Enqueues the plan through clients of one app."""

    def __init__(
        self, plan: Plan, ledger: Ledger, client: AsyncClient, broker: AsyncBroker
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._client = client
        self._broker = broker

    async def enqueue_all(self) -> None:
        """All that is enqueued in bulk is in the store."""
        plan = self._plan
        await self._offer("flaky", [tasks.flaky.build()] * plan.flaky)
        await self._offer("hopeless", [tasks.hopeless.build()] * plan.hopeless)
        await self._tenants()
        await self._families()
        mixed = [
            *(("hash", tasks.hash_on_loop.build(block)) for block in plan.blocks["hash"]),
            *(("thread", tasks.hash_in_thread.build(block)) for block in plan.blocks["thread"]),
            *(("process", tasks.hash_in_process.build(block)) for block in plan.blocks["process"]),
        ]
        random.Random(1).shuffle(mixed)  # noqa: S311 - an order, and the same each time
        # One after ten others, so that many of them run when the kill comes.
        for number in range(SLOW):
            mixed.insert(int(len(mixed) * WHEN) + 10 * number, ("slow", tasks.slow.build(1.5)))
        await self._offer_mixed(mixed)

    async def enqueue_scheduled(self) -> None:
        """Some are due soon, and some will be due after their deadline."""
        number, spread = self._plan.scheduled, self._plan.spread
        delays = [0.5 + (spread - 0.5) * at / number for at in range(number)]
        built = [tasks.scheduled.options(delay=delay).build() for delay in delays]
        for delay, id in zip(delays, await self._offer("scheduled", built), strict=True):
            self._ledger.due[id] = self._ledger.sent[id] + delay
        now = datetime.now(UTC)
        late = tasks.late.options(
            deadline=now + timedelta(seconds=spread / 2),
            process_at=now + timedelta(seconds=spread * 0.75),
        )
        await self._offer("late", [late.build()] * self._plan.late)

    async def _tenants(self) -> None:
        def built(key: str, blocks: Iterable[Block]) -> list[Task]:
            task = tasks.hash_for_tenant.options(fairness_key=key)
            return [task.build(block) for block in blocks]

        blocks, ledger = self._plan.blocks, self._ledger
        # Both tenants have all their tasks in the queue before the first one is fetched: the order
        # in which they begin does not depend on how fast anything is.
        keys = QueueKeys(tasks.app.prefix, "shared")
        await self._broker.run(ops.pause(keys, note_of("demo", "until both tenants have enqueued")))
        ledger.flood += await self._offer("tenant", built("flood", blocks["flood"]))
        ledger.small += await self._offer("tenant", built("small", blocks["small"]))
        await self._broker.run(ops.resume(keys))

    async def _families(self) -> None:
        blocks = self._plan.blocks["child"]
        groups = [blocks[at : at + CHILDREN] for at in range(0, len(blocks), CHILDREN)]
        parents = await self._offer("parent", [tasks.parent.build(group) for group in groups])
        for parent in parents:
            # Their parent enqueues them; their ids are known.
            self._ledger.offered["child"] += CHILDREN
            for number in range(CHILDREN):
                self._ledger.accept("child", f"{parent}.{number}", self._ledger.sent[parent])

    async def _offer(self, kind: str, built: Sequence[Task]) -> list[str]:
        return await self._offer_mixed([(kind, task) for task in built])

    async def _offer_mixed(self, built: Sequence[tuple[str, Task]]) -> list[str]:
        """Enqueue tasks in bulk; their ids."""
        ids = []
        for at in range(0, len(built), CHUNK):
            part = built[at : at + CHUNK]
            sent = time.monotonic()
            handles = await self._client.enqueue_many([task for _, task in part])
            for (kind, _), handle in zip(part, handles, strict=True):
                self._ledger.offered[kind] += 1
                if handle.created:
                    self._ledger.accept(kind, handle.id, sent)
                else:
                    self._ledger.refused[kind] += 1
                ids.append(handle.id)
        return ids

    # One by one.

    async def typed(self, paths: Sequence[str]) -> None:
        """A typed task every few milliseconds, each awaited, while the others are under way."""
        async with asyncio.TaskGroup() as group:
            for path in paths[: self._plan.typed]:
                group.create_task(self._typed(Path(path)))
                await asyncio.sleep(self._plan.spread / self._plan.typed)

    async def _typed(self, path: Path) -> None:
        sent = time.monotonic()
        self._ledger.offered["typed"] += 1
        handle = await tasks.count.enqueue(path)
        self._ledger.accept("typed", handle.id, sent)
        text = await handle.result(timeout=PATIENCE)
        self._ledger.round_trips.append(time.monotonic() - sent)
        # The task is a function still, and here it is called as one.
        self._ledger.wrong_results += text != tasks.count(path)

    async def unique(self) -> None:
        """Callers with a connection each enqueue the same tasks, in orders of their own."""
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._unique(random.Random(number)))  # noqa: S311 - an order

    async def _unique(self, order: random.Random) -> None:
        names = [f"name-{number}" for number in range(self._plan.unique)]
        order.shuffle(names)
        async with tasks.app.async_client() as client:
            for name in names:
                sent = time.monotonic()
                self._ledger.offered["unique"] += 1
                try:
                    handle = await client.enqueue(tasks.unique.build(name))
                except DuplicateTask as error:
                    self._ledger.refused["unique"] += 1
                    self._ledger.named.append((name, error.id))
                else:
                    self._ledger.accept("unique", handle.id, sent)
                    self._ledger.holders[name].append(handle.id)

    async def cancel(self, begun: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """Some that are not due for an hour, and some that run, are cancelled.

        `begun` waits until tasks run.
        """
        sent = time.monotonic()
        later = [await self._client.enqueue(tasks.cancel.options(delay=3600).build())
                 for _ in range(WAITING)]  # fmt: skip
        now = [await self._client.enqueue(tasks.cancel.build()) for _ in range(RUNNING)]
        for handle in (*later, *now):
            self._ledger.offered["cancel"] += 1
            self._ledger.accept("cancel", handle.id, sent)
        await begun([handle.id for handle in now])
        for handle in later:
            await self._cancel(handle)
        await asyncio.gather(*map(self._cancel_running, now))

    async def _cancel(self, handle: AsyncHandle[None]) -> None:
        try:
            await handle.cancel()
            await handle.result(timeout=PATIENCE)
        except TaskCancelled:
            return
        self._ledger.not_cancelled += 1

    async def _cancel_running(self, handle: AsyncHandle[None]) -> None:
        asked = time.monotonic()
        await self._cancel(handle)
        self._ledger.cancelled_after.append(time.monotonic() - asked)

    async def poison(self) -> None:
        """The task that kills its process ends as dead, and this client hears of it."""
        sent = time.monotonic()
        self._ledger.offered["poison"] += 1
        handle = await tasks.poison.options(retention=3600).enqueue()
        self._ledger.accept("poison", handle.id, sent)
        try:
            await handle.result(timeout=PATIENCE)
        except TaskFailed as error:
            self._ledger.poison_error = str(error)
        except QsyncError as error:
            self._ledger.poison_error = f"{type(error).__name__}: {error}"
        else:
            self._ledger.poison_error = "it was done"
