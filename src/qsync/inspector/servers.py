"""Reads servers and their running tasks, and tells servers to be quiet or to stop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from qsync import codec
from qsync.broker import registry_ops, views
from qsync.broker.views import PageKey
from qsync.errors import SchemaMismatch
from qsync.inspector.live_servers import HandlerStack, Record, _LiveServersMixin, record_of
from qsync.inspector.task_rows import decode_row, row_of
from qsync.inspector.values import Change, RunningTask, ServerInfo, TaskRow
from qsync.keys import server_of_token
from qsync.state import TaskState
from qsync.task_queries import ORDER_TTL_MS
from qsync.times import from_us

ACTIVE_PER_PAGE: Final = 250
ACTIVE_PAGES: Final = 20
"""Maximum number of pages of a queue's active tasks that are read for one server."""


STACK_WAIT_S: Final = 3.0
"""Maximum time to wait for the stack of a handler, in seconds."""

STACK_POLL_S: Final = 0.05


LONG_RUN_S: Final = 600.0
"""Time after which a running task counts as long-running, in seconds."""


class LongRun(msgspec.Struct, frozen=True, kw_only=True):
    """A long-running task; `seconds` is its duration so far."""

    queue: str
    id: str
    server: str
    seconds: float


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The live servers by id, and their reports.

    servers        as `Inspector.servers` returns them, without their tasks
    unknown_types  as `Inspector.unknown_types` returns them
    long_runs      tasks that have run for over ten minutes, the longest first
    """

    servers: list[ServerInfo]
    unknown_types: dict[str, list[str]]
    long_runs: list[LongRun]

    def of_queue(self, queue: str) -> list[ServerInfo]:
        """Return the servers that take tasks from a queue, except those that are draining."""
        return [server for server in self.servers if queue in server.queues and not server.quiet]


class _ServersMixin(_LiveServersMixin):
    """Operations on servers."""

    async def servers(self, *, tasks: bool = True) -> list[ServerInfo]:
        """Return the first thousand live servers, by id.

        With `tasks`, each server has those of its running tasks that are among the first 250 active
        tasks of their queue.
        """
        _, records = await self._live()
        queues = sorted({queue for record in records for queue in record.queues}) if tasks else []
        pages, later = await self._read_each(
            queues,
            lambda name: views.list_tasks(
                self._keys(name), TaskState.ACTIVE, count=ACTIVE_PER_PAGE
            ),
        )
        running: dict[str, list[RunningTask]] = {}
        cut = set(later)
        for queue, page in pages.items():
            for row in page.rows:
                _add(running, row_of(queue, decode_row(row)))
            if page.more:
                cut.add(queue)
        return [
            server_info_of(
                record,
                running.get(record.id, []),
                complete=tasks and not cut & set(record.queues),
            )
            for record in records
        ]

    async def unknown_types(self) -> dict[str, list[str]]:
        """Return, by queue, the task types that a live server received but no live server handles.

        Each server reports at most a hundred such types, at intervals of half a lease time.
        """
        _, records = await self._live()
        return unknown_types_of(records)

    async def server(self, id: str) -> ServerInfo | None:
        """Return a live server, with those of its tasks that are among the first 5,000 active tasks
        of each queue; None if no live server has this id."""
        record = next((record for record in (await self._live())[1] if record.id == id), None)
        if record is None:
            return None
        running: dict[str, list[RunningTask]] = {}
        complete = True
        for queue in sorted(record.queues):
            complete = await self._running(queue, running) and complete
        return server_info_of(record, running.get(id, []), complete=complete)

    async def _running(self, queue: str, running: dict[str, list[RunningTask]]) -> bool:
        """Collect a queue's active tasks by server.

        Return False if some tasks were not read, because there are too many or because a later
        version of qsync wrote them.
        """
        after: PageKey | None = None
        for _ in range(ACTIVE_PAGES):
            call = views.list_tasks(
                self._keys(queue), TaskState.ACTIVE, count=ACTIVE_PER_PAGE, after=after
            )
            [page] = await self._replies([call])
            if isinstance(page, SchemaMismatch):
                return False
            for row in page.rows:
                _add(running, row_of(queue, decode_row(row)))
            if not page.more or not page.rows:
                return True
            after = page.rows[-1].place
        return False

    async def quiet(self, server_id: str) -> Change:
        """Tell a server to fetch no more tasks and to hand back those that it has not started."""
        return await self._order(server_id, "quiet")

    async def stop(self, server_id: str) -> Change:
        """Tell a server to stop gracefully, as on SIGTERM.

        `qsync worker` does not restart the process, and ends when its last process has stopped.
        """
        return await self._order(server_id, "stop")

    async def stack(self, id: str, *, queue: str = "default") -> HandlerStack | None:
        """Ask the server of a running task for the stack of its handler.

        Returns None if the task is not running, or if the server does not answer within
        STACK_WAIT_S. The server may not answer because its event loop is blocked, or because its
        version is too old.
        """
        [shown] = await self._broker.run(views.get_tasks(self._keys(queue), [id], messages=False))
        if shown is None or not shown.owner:
            return None
        server, number = server_of_token(shown.owner), secrets.token_hex(8)
        order = codec.encode(["stack", number, queue, id])
        await self._broker.run(
            registry_ops.send_order(self._globals, server, order, ttl_ms=ORDER_TTL_MS)
        )
        ends = time.monotonic() + STACK_WAIT_S
        while time.monotonic() < ends:
            record = await self._read_record(server)
            for asked, _queue, _id, text in record.stacks:
                if asked == number:
                    return HandlerStack(stack=text, server=server)
            await asyncio.sleep(STACK_POLL_S)
        return None

    async def stack_seen(self, server: str, id: str, *, queue: str = "default") -> str | None:
        """Return the last stack of a task in its server's record; None if the record has none."""
        record = await self._read_record(server)
        texts = [text for _, *key, text in record.stacks if key == [queue, id]]
        return texts[-1] if texts else None

    async def _read_record(self, server: str) -> Record:
        fields = await self._broker.run(views.server_info(self._globals, server))
        return record_of(server, 0, fields)

    async def _order(self, server_id: str, verb: str) -> Change:
        _, live = await self._broker.run(views.servers(self._globals))
        if server_id not in live:
            return Change(outcome="not_found")
        order = codec.encode([verb])
        await self._broker.run(
            registry_ops.send_order(self._globals, server_id, order, ttl_ms=ORDER_TTL_MS)
        )
        await self._record(f"server.{verb}", server_id)
        return Change(outcome="told", server=server_id)

    async def fleet(self) -> Fleet:
        """Return the first 1,000 live servers by id and their reports, all from one snapshot."""
        now_us, records = await self._live()
        return Fleet(
            servers=[server_info_of(record, [], complete=False) for record in records],
            unknown_types=unknown_types_of(records),
            long_runs=long_runs_of(records, now_us, LONG_RUN_S),
        )

    async def long_runs(self, *, at_least: float = LONG_RUN_S) -> list[LongRun]:
        """Return the tasks that have run for `at_least` seconds, the longest first.

        Each server reports its hundred longest-running tasks, twice per lease time.
        """
        now_us, records = await self._live()
        return long_runs_of(records, now_us, at_least)


def unknown_types_of(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return, by queue, the types that some of these servers received but none of them handles.
    Does no I/O."""
    handled = {
        (queue, type) for record in records for queue in record.queues for type in record.types
    }
    missing = {pair for record in records for pair in record.unknown} - handled
    types: dict[str, list[str]] = {}
    for queue, type in sorted(missing):
        types.setdefault(queue, []).append(type)
    return types


def _add(running: dict[str, list[RunningTask]], row: TaskRow) -> None:
    if row.server is None or row.lease_until is None:
        return
    task = RunningTask(
        id=row.id,
        queue=row.queue,
        type=row.type,
        lease_until=row.lease_until,
        progress=row.progress,
    )
    tasks = running.setdefault(row.server, [])
    # Skip duplicates, since a task whose lease is renewed during the scan moves back and is read
    # twice.
    if not any(
        other.id == task.id and other.queue == task.queue for other in tasks[-ACTIVE_PER_PAGE:]
    ):
        tasks.append(task)


def server_info_of(record: Record, tasks: list[RunningTask], *, complete: bool) -> ServerInfo:
    return ServerInfo(
        id=record.id,
        expires_at=from_us(record.expires_us),
        host=record.host,
        pid=record.pid,
        version=record.version,
        app_version=record.app_version,
        python=record.python,
        uptime=record.uptime,
        concurrency=record.concurrency,
        running=record.running,
        quiet=record.quiet,
        queues=record.queues,
        types=record.types,
        tasks=tasks,
        complete=complete,
    )


def long_runs_of(records: Iterable[Record], now_us: int, at_least: float) -> list[LongRun]:
    """Return the tasks that servers reported as long-running, the longest first. Does no I/O."""
    runs = [
        LongRun(queue=queue, id=id, server=record.id, seconds=(now_us - since_us) / 1e6)
        for record in records
        for queue, id, since_us in record.since
        if now_us - since_us >= at_least * 1e6
    ]
    return sorted(runs, key=lambda run: -run.seconds)
