"""The demo from its beginning to its end: store, worker, client, kill -9, and the account."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qsync.broker import ops
from qsync.broker.shell import AsyncBroker
from qsync.cli.demo import app as tasks
from qsync.cli.demo.check import Summary, account
from qsync.cli.demo.client import DemoClient
from qsync.cli.demo.evidence import Evidence, Manifest, Victim, tick_moment
from qsync.cli.demo.plan import (
    KINDS,
    SLOW,
    Plan,
    Stamp,
    blocks_of,
    digest_of,
    installation,
    plan_for,
    stamp_of,
)
from qsync.cli.demo.records import History, open_gate, read_manifest
from qsync.cli.demo.scene import Scene
from qsync.cli.demo.worker import DemoError, Worker
from qsync.client import AsyncClient
from qsync.keys import QueueKeys
from qsync.schedule import tick_id
from qsync.state import stored_as
from qsync.task import moment_us

STUCK_S: Final = 900.0
"""Without a sign of life for so long nothing more comes, even of a busy machine; seconds."""

IDLE_S: Final = 120.0
"""The same when the store has no task left."""

TELL_S: Final = 30.0
"""How often a long wait is mentioned."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    folder: Path
    tasks: int
    processes: int
    clear: bool
    """The store is not the demo's own: leave no task in it."""


class Run:
    """A run of the demo."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._prefix = tasks.app.prefix
        self.scene = Scene(History(options.folder), self._prefix)
        self._files: dict[str, Stamp] = {}
        self._victim: Victim | None = None
        self._worker = Worker(options.folder, options.processes)

    async def play(self) -> Summary:
        """All of it; returns the account. DemoError when it cannot go on."""
        async with contextlib.AsyncExitStack() as stack:
            broker = AsyncBroker(tasks.app.server().address)  # an embedded one is started by this
            stack.push_async_callback(tasks.app.aclose)
            stack.push_async_callback(broker.aclose)
            self.scene.store = await broker.facts()
            client = await stack.enter_async_context(tasks.app.async_client())
            if self._options.clear:
                stack.push_async_callback(self._clear, broker)
            await stack.enter_async_context(self._worker)
            self.scene.worker_pid = self._worker.pid
            async with self._followed(broker):
                plan = await self._perform(client, broker)
            self.scene.phase = "stopping"
            code = await self._worker.stop()
            self.scene.tell(f"the worker was told to stop, and ended with {code}")
            self.scene.phase = "checking"
            self.scene.tell("a plain loop hashes the same blocks, to compare")
            return account(await self._evidence(plan, broker, client))

    @contextlib.asynccontextmanager
    async def _followed(self, broker: AsyncBroker) -> AsyncIterator[None]:
        """The scene is kept up to date, and the worker has to live."""

        async def follow() -> None:
            while True:
                await self.scene.refresh(broker)
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            watchers = [group.create_task(follow()), group.create_task(self._worker.watch())]
            yield
            for watcher in watchers:
                watcher.cancel()

    async def _perform(self, client: AsyncClient, broker: AsyncBroker) -> Plan:
        scene, history = self.scene, self.scene.history
        scene.tell(f"$ qsync {' '.join(self._worker.arguments)}")
        self._files = await asyncio.to_thread(installation)
        scene.plan = plan = plan_for(blocks_of(self._files, self._options.tasks))
        scene.tell(
            f"{len(self._files):,} files of this Python, to be hashed in {scene.to_hash:,} tasks; "
            "and tasks of other kinds"
        )
        demo = DemoClient(plan, scene.ledger, client, broker)
        async with asyncio.TaskGroup() as group:
            group.create_task(demo.enqueue_all())
            await self._until(self._servers_ready, "the servers to start")
            scene.phase = "running"
            group.create_task(demo.enqueue_scheduled())
            group.create_task(demo.unique())
            typed = group.create_task(demo.typed(list(self._files)))
            await demo.cancel(self._begun)
            await self._kill_one()
            await typed  # what is measured there is not to be the work of poison
            # What crashes twice runs alone from then on, which is slow if it takes its time.
            await self._until(self._slow_done, "the slow tasks")
            await demo.poison()
            scene.read_on()
            scene.tell(f"the poison task is dead: {scene.ledger.poison_error}", loud=True)
        scene.phase = "working off the rest"
        with contextlib.suppress(DemoError):  # the account shows what is left
            await self._until(self._all_ended(), "the last tasks")
        # Stop between two ticks, so that none is enqueued while the servers stop.
        ticks = len(history.done["tick"])
        with contextlib.suppress(DemoError):
            await self._until(lambda: len(history.done["tick"]) > ticks, "the next tick")
        return plan

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something, however long it takes on a busy machine.

        DemoError when it cannot happen any more: nothing happens, though the machine had the time.
        """
        scene = self.scene
        last, since, told = -1, time.monotonic(), time.monotonic()
        while not holds():
            now = time.monotonic()
            if scene.signs_of_life != last:
                last, since = scene.signs_of_life, now
            # With tasks in the store a server may just be slow to get its turn.
            patience = STUCK_S if scene.unfinished else IDLE_S
            if now > since + patience:
                msg = f"gave up waiting for {what}: no task has begun or ended for {patience:.0f} s"
                raise DemoError(f"{msg}, and {scene.unfinished:,} are in the store")
            if now > told + TELL_S:
                told = now
                scene.tell(f"waiting for {what}; {scene.unfinished:,} tasks are in the store")
            await asyncio.sleep(0.03)

    async def _begun(self, ids: Sequence[str]) -> None:
        starts = self.scene.history.starts
        await self._until(lambda: all(id in starts for id in ids), "tasks to begin")

    def _servers_ready(self) -> bool:
        return len(self.scene.servers()) >= self._options.processes

    def _slow_done(self) -> bool:
        return len(self.scene.history.done["slow"]) == SLOW

    def _all_ended(self) -> Callable[[], bool]:
        """Whether every task has come to an end; or the store has had nothing to do for a while."""
        scene = self.scene
        busy, looks = time.monotonic(), scene.looks

        def holds() -> bool:
            nonlocal busy, looks
            if scene.unfinished:
                busy, looks = time.monotonic(), scene.looks
                return False
            is_idle = time.monotonic() > busy + 5 and scene.looks > looks + 5
            return not scene.open_ids() or is_idle

        return holds

    # The kill.

    async def _kill_one(self) -> None:
        """Kill a server that has much to do, and wait until all that ran there runs again."""
        scene = self.scene

        def slow_in(pid: int) -> int:
            kinds, running = scene.history.kinds, scene.history.running[pid]
            return sum(kinds[id] == "slow" for id in running)

        def has_much_to_do() -> bool:
            scene.read_on()  # on a busy machine the last look may be a second old
            return any(slow_in(pid) >= SLOW / 4 for pid in scene.servers())

        await self._until(has_much_to_do, "slow tasks")
        pid = max(scene.servers(), key=slow_in)
        os.kill(pid, signal.SIGKILL)
        open_gate()
        self._victim = victim = Victim(pid, time.monotonic(), set())
        scene.tell(f"kill -9 {pid}: one of the servers, in the middle of its work", loud=True)
        await self._until(lambda: pid not in scene.servers(), "the killed server to end")
        scene.read_on()
        victim.torn.update(scene.history.running[pid])
        scene.tell(f"{len(victim.torn)} tasks were running in {pid} when it died")
        await self._until(
            lambda: not victim.waiting(scene.history), "the tasks of the killed server"
        )
        await self._until(lambda: scene.crashed >= len(victim.torn), "the store's count of them")
        seconds, ahead = victim.seconds(scene.history), scene.crashed - len(victim.torn)
        scene.tell(
            f"all {len(victim.torn)} run again, within {seconds:.2f} s; {ahead} that it had taken "
            "and not begun, too", loud=True,
        )  # fmt: skip

    # The end.

    async def _evidence(self, plan: Plan, broker: AsyncBroker, client: AsyncClient) -> Evidence:
        scene = self.scene
        scene.read_on()
        ticks = [id for id, kind in scene.history.kinds.items() if kind == "tick"]
        withdrawn = await self._withdraw_ticks(client, broker, max(ticks, key=tick_moment))
        scene.ledger.ids["tick"] += ticks + withdrawn
        await scene.refresh(broker)
        statuses = await scene.look(broker, [id for ids in scene.ledger.ids.values() for id in ids])
        manifest = await asyncio.to_thread(self._manifest, plan)
        return Evidence(
            plan, scene.ledger, scene.history, statuses, scene.counts, manifest, self._victim,
            withdrawn,
        )  # fmt: skip

    async def _withdraw_ticks(
        self, client: AsyncClient, broker: AsyncBroker, last: str
    ) -> list[str]:
        """Cancel a tick that came while the servers stopped, so that nobody was left to run it."""
        queue, last_us = KINDS["tick"].queue, moment_us("tick", tick_moment(last))
        coming = [tick_id("tick", last_us + second * 1_000_000) for second in range(1, 31)]
        left = list(await self.scene.look(broker, coming))
        for id in left:
            await client.handle(id, queue=queue).cancel()
        return left

    def _manifest(self, plan: Plan) -> Manifest:
        """The plain loop: what the tasks did, done again by one process, one after another."""
        changed = {path for path, stamp in self._files.items() if stamp_of(path) != stamp}
        found, contradictions = read_manifest(self._options.folder)
        began = time.monotonic()
        expected = {
            block.key: digest_of(block)
            for blocks in plan.blocks.values()
            for block in blocks
            if block.path not in changed
        }
        seconds = time.monotonic() - began
        same = {key: digest for key, digest in found.items() if not _is_of(key, changed)}
        return Manifest(same, expected, contradictions, len(changed), seconds)

    async def _clear(self, broker: AsyncBroker) -> None:
        """Delete the tasks of the demo from a store that is somebody's."""
        scene = self.scene
        scene.read_on()
        ids = {id for ids in scene.ledger.ids.values() for id in ids} | scene.history.kinds.keys()
        found = defaultdict(list)
        for id, status in (await scene.look(broker, ids)).items():
            found[status.queue, stored_as(status.state)].append(id)
        for (queue, state), mine in found.items():
            for part in ops.batches(mine, len):
                await broker.run(ops.delete(QueueKeys(self._prefix, queue), part, state))


def _is_of(key: str, paths: set[str]) -> bool:
    """Whether a line of the manifest is about one of these files."""
    return bool(paths) and key.split(" ", 2)[2] in paths
