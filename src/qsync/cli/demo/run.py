"""The run of the demo: worker, client, kill -9, and the data for the account."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

import qsync
from qsync.broker import operator_ops, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.cli.demo import tasks
from qsync.cli.demo.account import DemoError, Ledger, Screen, ServerNotes, Summary, account
from qsync.client import AsyncClient
from qsync.errors import TaskCancelled, TaskFailed
from qsync.keys import GlobalKeys, QueueKeys
from qsync.state import STORED, UNFINISHED, TaskState
from qsync.task import Task

QUEUES: Final = {"critical": 6, "default": 3, "shared": 2, "lower": 1}  # name: weight
WORKER: Final = (
    "worker", "qsync.cli.demo.tasks:app", "--processes", "2", "--concurrency", "50",
    "--queues", ",".join(f"{name}={weight}" for name, weight in QUEUES.items()),
    "--shutdown-timeout", "5",
)  # fmt: skip
SLOW: Final = 40
"""Number of slow tasks; one server can run all of them."""

TIMEOUT_S: Final = 3600.0
"""Time limit for a result, in seconds; long because the machine may be busy."""


class DemoClient:
    """Enqueues all tasks; tasks that hash take their blocks from `blocks`."""

    def __init__(self, client: AsyncClient, ledger: Ledger, blocks: Sequence[int]) -> None:
        self._client = client
        self._ledger = ledger
        self._blocks = blocks

    async def _offer(self, built: Sequence[Task], blocks: Sequence[int] = ()) -> list[str]:
        """Enqueue tasks in bulk; return their ids."""
        return self._ledger.record(built, await self._client.enqueue_many(built), blocks)

    async def enqueue_bulk(self) -> None:
        """Enqueue all tasks whose results the client does not await."""
        await self._offer([tasks.flaky.build()] * 100 + [tasks.hopeless.build()] * 10)
        blocks, tenth = self._blocks, len(self._blocks) // 10
        for tenant, part in (("flood", blocks[10:tenth]), ("small", blocks[:10])):
            task = tasks.hash_for_tenant.options(fairness_key=tenant)
            await self._offer([task.build(offset) for offset in part], part)
        start = tenth + 10 * max(3, tenth // 100)
        await self._offer_families(blocks[tenth:start])
        rest = blocks[start:]
        thread, process = len(rest) // 5, len(rest) // 4
        mixed = [
            *((tasks.hash_in_thread.build(offset), offset) for offset in rest[:thread]),
            *((tasks.hash_in_process.build(offset), offset) for offset in rest[thread:process]),
            *((tasks.hash_on_loop.build(offset), offset) for offset in rest[process:]),
            *[(tasks.slow.build(1.5), 0)] * SLOW,
        ]
        random.Random(1).shuffle(mixed)  # noqa: S311 - the same order each time
        await self._offer([task for task, _ in mixed], [offset for _, offset in mixed])

    async def _offer_families(self, blocks: Sequence[int]) -> None:
        groups = [list(blocks[start : start + 10]) for start in range(0, len(blocks), 10)]
        parents = await self._offer([tasks.parent.build(group) for group in groups])
        ids = [f"{parent}.{number}" for parent in parents for number in range(10)]
        self._ledger.ids["child"] += ids  # a server enqueues them when it runs their parents
        self._ledger.offered["child"] += len(ids)
        self._ledger.blocks.update(zip(ids, blocks, strict=True))

    async def enqueue_scheduled(self) -> None:
        """Enqueue tasks that are due soon, and tasks whose deadline passes before they can
        start."""
        delays = [0.5 + number / 40 for number in range(100)]
        built = [tasks.scheduled.options(delay=delay).build() for delay in delays]
        sent = time.monotonic()
        for delay, id in zip(delays, await self._offer(built), strict=True):
            self._ledger.due[id] = sent + delay
        deadline = datetime.now(UTC) + timedelta(seconds=5)
        late = tasks.late.options(
            deadline=deadline, process_at=deadline - timedelta(microseconds=1)
        )
        await self._offer([late.build()] * 10)

    async def typed(self) -> None:
        """Enqueue typed tasks and compare their results with plain calls."""
        blocks = self._blocks[:100]
        ids = await self._offer([tasks.count.build(offset) for offset in blocks])
        for id, offset in zip(ids, blocks, strict=True):
            handle = self._client.handle(id, queue="critical", type=dict[str, int])
            counts = await handle.result(timeout=TIMEOUT_S)
            self._ledger.wrong["typed"] += counts != tasks.count(offset)

    async def unique(self) -> None:
        """Enqueue the same 20 tasks from 8 concurrent clients, each in its own order."""
        holders = defaultdict[str, set[str]](set)

        async def call(seed: int) -> None:
            names = random.Random(seed).sample([f"name-{n}" for n in range(20)], 20)  # noqa: S311
            async with tasks.app.async_client() as client:
                built = list(map(tasks.unique.build, names))
                ids = self._ledger.record(built, await client.enqueue_many(built), ())
            for name, id in zip(names, ids, strict=True):
                holders[name].add(id)  # for a refused task, the accepted task's id

        await asyncio.gather(*map(call, range(8)))
        self._ledger.wrong["unique"] += sum(len(ids) != 1 for ids in holders.values())

    async def enqueue_cancelled(self) -> set[str]:
        """Enqueue tasks to cancel, most of which are due in an hour; return the ids of the tasks
        that start immediately."""
        later, now = tasks.cancel.options(delay=3600).build(), tasks.cancel.build()
        return set((await self._offer([later] * 8 + [now] * 4))[8:])

    async def cancel(self) -> None:
        """Cancel the tasks of `enqueue_cancelled`, and wait until each has ended."""
        for id in self._ledger.ids["cancel"]:
            await self._client.handle(id, queue="critical").cancel()
            await self._expect(TaskCancelled, "cancel", id)

    async def poison(self) -> None:
        """Enqueue the task that kills its process; wait until the task is dead."""
        [id] = await self._offer([tasks.poison.options(retention=3600).build()])
        await self._expect(TaskFailed, "poison", id)

    async def _expect(self, error: type[Exception], kind: str, id: str) -> None:
        with contextlib.suppress(error):
            await self._client.handle(id, queue="critical").result(timeout=TIMEOUT_S)
            self._ledger.wrong[kind] += 1


class Run:
    """One run of the demo."""

    def __init__(self, folder: Path, total: int, console: Console) -> None:
        self._folder = folder
        self._total = total
        self._history = ServerNotes(folder)
        self._ledger = Ledger(self._history)
        self._screen = Screen(console)
        self._inspector = tasks.app.inspector()
        self._servers = self._unfinished = 0

    async def play(self, *, clean_up: bool) -> Summary:
        """Return the account of a whole run. Raise DemoError if the demo cannot continue."""
        try:
            return await self._play(clean_up)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _play(self, clean_up: bool) -> Summary:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._screen.status)
            stack.push_async_callback(tasks.app.aclose)
            await stack.enter_async_context(self._inspector)
            await self._inspector.ping()  # starts the store unless the user has chosen one
            client = await stack.enter_async_context(tasks.app.async_client())
            if clean_up:
                stack.push_async_callback(self._clean_up)
            async with self._worker():
                await self._perform(client)
            self._screen.tell("the worker has stopped; hashing the blocks in a loop to compare")
            await self._read_store()
            return account(self._ledger)

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[None]:
        """Run `qsync worker` in a separate process; raise DemoError if it ends by itself."""
        self._screen.tell(f"$ qsync {' '.join(WORKER)}")
        log = self._folder / "worker.log"
        # With PR_SET_PDEATHSIG, the kernel ends the worker if the demo is killed.
        end_with_parent = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "qsync", *WORKER, cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                process_group=0,  # Ctrl-C reaches only the demo, which then stops the worker
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip

        async def follow() -> None:
            while process.returncode is None:
                await self._refresh()
                await asyncio.sleep(0.1)
            lines = log.read_text(errors="replace").splitlines()[-15:]
            raise DemoError(
                "\n".join(["qsync worker exited unexpectedly; the last lines of its log:", *lines])
            )

        stop_timeout_s = 0.5
        try:
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(follow())
                yield
                follower.cancel()
            stop_timeout_s = 60.0
        finally:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # stop, hurry, end
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    process.send_signal(number)
                    await asyncio.wait_for(process.wait(), stop_timeout_s)
                stop_timeout_s = 3.0

    async def _refresh(self) -> None:
        """Read the history and the store's counters."""
        self._history.poll()
        overview = await self._inspector.overview(names=list(QUEUES))
        states, counters = Counter[TaskState](), Counter[str]()
        for queue in overview.queues:
            states.update(queue.states)
            counters.update(queue.counters)
        self._ledger.counters, self._servers = counters, len(overview.servers)
        self._unfinished = sum(states[state] for state in UNFINISHED)
        done = sum(map(len, self._history.done.values()))
        counts = ", ".join(f"{states[state]:,} {state}" for state in TaskState if states[state])
        self._screen.show(f"{done:,} tasks done; in the store: {counts or 'nothing'}")

    async def _perform(self, client: AsyncClient) -> None:
        screen, history = self._screen, self._history
        data = b"".join(path.read_bytes() for path in Path(qsync.__file__).parent.rglob("*.py"))
        step = ((self._folder / "data").write_bytes(data) - tasks.BLOCK_SIZE) // self._total
        screen.tell(f"{self._total:,} tasks hash blocks of qsync's source; others fail or crash")
        demo = DemoClient(client, self._ledger, range(0, self._total * step, step))
        async with asyncio.TaskGroup() as group:
            group.create_task(demo.enqueue_bulk())
            await self._until(lambda: self._servers >= 2, "the servers to start")
            for work in (demo.enqueue_scheduled, demo.unique, demo.typed):
                group.create_task(work())
            running = await demo.enqueue_cancelled()
            await self._until(lambda: running <= history.starts.keys(), "tasks to start")
            await demo.cancel()
            await self._kill_one()
            # Wait for the slow tasks, because the poison task could interrupt them a second time,
            # and a task that is interrupted twice runs alone.
            await self._until(lambda: len(history.done["slow"]) == SLOW, "the slow tasks")
            screen.tell("enqueueing a task that kills its server", loud=True)
            await demo.poison()
            screen.tell("the task is dead: after three crashes it does not run again", loud=True)
        # Pause the schedule, so that its ticks leave no tasks behind when the worker stops.
        await self._inspector.pause_schedule("tick", queue="critical", by="qsync demo")
        await self._refresh()
        with contextlib.suppress(DemoError):  # the account will show the unfinished tasks
            await self._until(lambda: not self._unfinished, "the last tasks")

    async def _until(self, holds: Callable[[], bool], condition: str) -> None:
        """Wait until the condition holds, even on a slow machine.

        Raises DemoError if there is no more progress.
        """
        events, changed_at = -1, time.monotonic()
        while not holds():
            if events != self._history.events:
                events, changed_at = self._history.events, time.monotonic()
            # While tasks are unfinished, wait longer, because the servers may only be slow.
            timeout_s = 900 if self._unfinished else 120
            if time.monotonic() > changed_at + timeout_s:
                raise DemoError(
                    f"gave up waiting for {condition}: no task started or ended for {timeout_s} s, "
                    f"and the store holds {self._unfinished:,} unfinished tasks"
                )
            await asyncio.sleep(0.03)

    async def _kill_one(self) -> None:
        """Kill a server that runs slow tasks; wait until all its tasks have started again."""
        ledger, history, tell = self._ledger, self._history, self._screen.tell

        def slow_in(pid: int) -> int:
            return sum(history.kinds[id] == "slow" for id in history.running[pid])

        def is_busy() -> bool:
            history.poll()  # read again: the last poll may be a second old
            return any(slow_in(pid) >= SLOW / 4 for pid in history.running)

        await self._until(is_busy, "slow tasks")
        pid = max(history.running, key=slow_in)
        os.kill(pid, signal.SIGKILL)
        ledger.killed_at = time.monotonic()
        ledger.interrupted = ids = history.running[pid]  # grows when later polls read more starts
        tasks.GATE.touch()
        tell(f"kill -9 {pid}: one of the servers, in the middle of its work", loud=True)
        await self._until(lambda: len(ledger.restarts()) == len(ids), "the interrupted tasks")
        tell(f"all {len(ids)} tasks of the killed server have started again", loud=True)

    async def _read_store(self) -> None:
        """Read everything in the store, and compute the digests that tasks should have returned."""
        await self._refresh()
        ledger = self._ledger
        for queue in QUEUES:
            for state in TaskState:
                page = await self._inspector.tasks(queue, state, limit=100)
                ledger.stored.update((row.id, row) for row in page.tasks)
                while page.cursor:
                    page = await self._inspector.tasks(queue, state, cursor=page.cursor)
                    ledger.stored.update((row.id, row) for row in page.tasks)
        offsets = set(ledger.blocks.values())
        digests = await asyncio.to_thread(lambda: list(map(tasks.digest_of, offsets)))
        ledger.digests = dict(zip(offsets, digests, strict=True))

    async def _clean_up(self) -> None:
        """Delete the demo's data from a store that the user chose.

        `Inspector.forget` would record the deletions under a key that nothing deletes.
        """
        inspector, prefix = self._inspector, tasks.app.prefix
        broker = AsyncBroker(tasks.app._connections.address, connections=1)
        try:
            for queue in QUEUES:
                for state in set(STORED) - {TaskState.ACTIVE}:
                    async for _ in inspector.steps(inspector.purge, queue, state):
                        pass
                keys = QueueKeys(prefix, queue)
                await broker.run(operator_ops.delete_queue(keys, force=True))
            await broker.run(registry_ops.unregister(GlobalKeys(prefix), QUEUES))
        finally:
            await broker.aclose()
