"""Servers: what they are, what they run, and orders to them."""

from __future__ import annotations

from typing import Final

from qsync import codec
from qsync.broker import ops, views
from qsync.broker.views import PageKey, moment_of
from qsync.handle import ORDER_TTL_MS
from qsync.inspector.live_servers import Record, _LiveServersMixin
from qsync.inspector.task_rows import look_at, row_of
from qsync.inspector.values import Change, RunningTask, ServerInfo, TaskRow
from qsync.state import TaskState

PAGE: Final = 250
PAGES: Final = 20
"""How many active tasks of a queue are looked at for one server: so many pages."""


class Servers(_LiveServersMixin):
    """What may be done with servers."""

    async def servers(self, *, tasks: bool = True) -> list[ServerInfo]:
        """The servers that live, by id, the first thousand of them.

        With `tasks` also what they run, of the first 250 active tasks of each queue.
        """
        _, records = await self._live()
        queues = sorted({queue for record in records for queue in record.queues}) if tasks else []
        calls = [views.page(self._keys(q), TaskState.ACTIVE, count=PAGE) for q in queues]
        running: dict[str, list[RunningTask]] = {}
        cut: set[str] = set()
        for queue, page in zip(queues, await self._run_all(calls), strict=True):
            for row in page.rows:
                _add(running, row_of(queue, look_at(row)))
            if page.more:
                cut.add(queue)
        return [
            _info(one, running.get(one.id, []), complete=tasks and not cut & set(one.queues))
            for one in records
        ]

    async def unknown_types(self) -> dict[str, list[str]]:
        """By queue, types of tasks that a live server met and no live server has a handler for.

        A server names the first hundred, and within half a lease.
        """
        _, records = await self._live()
        handled = {(queue, type) for one in records for queue in one.queues for type in one.types}
        missing = {pair for one in records for pair in one.unknown} - handled
        found: dict[str, list[str]] = {}
        for queue, type in sorted(missing):
            found.setdefault(queue, []).append(type)
        return found

    async def server(self, id: str) -> ServerInfo | None:
        """A live server with what it runs, of the first 5000 active tasks of each of its queues."""
        record = next((one for one in (await self._live())[1] if one.id == id), None)
        if record is None:
            return None
        running: dict[str, list[RunningTask]] = {}
        complete = True
        for queue in sorted(record.queues):
            complete = await self._running(queue, running) and complete
        return _info(record, running.get(id, []), complete=complete)

    async def _running(self, queue: str, running: dict[str, list[RunningTask]]) -> bool:
        """Find out who runs what of a queue; False when there was more than may be looked at."""
        after: PageKey | None = None
        for _ in range(PAGES):
            call = views.page(self._keys(queue), TaskState.ACTIVE, count=PAGE, after=after)
            page = await self._broker.run(call)
            for row in page.rows:
                _add(running, row_of(queue, look_at(row)))
            if not page.more or not page.rows:
                return True
            after = page.rows[-1].place
        return False

    async def quiet(self, server_id: str) -> Change:
        """The server has been told to fetch no more, and to hand back what it has not begun."""
        return await self._order(server_id, "quiet")

    async def stop(self, server_id: str) -> Change:
        """The server has been told to stop as it does at SIGTERM.

        A process of `qsync worker` is not started again; after the last one the worker ends.
        """
        return await self._order(server_id, "stop")

    async def _order(self, server_id: str, verb: str) -> Change:
        _, live = await self._broker.run(views.servers(self._globals))
        if server_id not in live:
            return Change(outcome="not_found")
        order = codec.encode([verb])
        await self._broker.run(ops.send(self._globals, server_id, order, ttl_ms=ORDER_TTL_MS))
        return Change(outcome="told", server=server_id)


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
    # A task whose lease is renewed meanwhile moves on, and is met a second time.
    if not any(one.id == task.id and one.queue == task.queue for one in tasks[-PAGE:]):
        tasks.append(task)


def _info(record: Record, tasks: list[RunningTask], *, complete: bool) -> ServerInfo:
    return ServerInfo(
        id=record.id,
        expires_at=moment_of(record.expires_us),
        host=record.host,
        pid=record.pid,
        version=record.version,
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
