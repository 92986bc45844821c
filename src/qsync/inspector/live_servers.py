"""The live servers, as they describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from qsync import codec
from qsync.broker import stored_task, views
from qsync.inspector.base import Base

T = TypeVar("T")

UPTIME_LIMIT_S: Final = 100 * 365 * 86_400
"""Maximum uptime accepted from a record, so that the start time is within the range of datetime."""


@dataclass(frozen=True, slots=True)
class Record:
    """A server's description of itself; missing or unreadable fields are empty or 0."""

    id: str
    expires_us: int
    host: str
    pid: int
    version: str
    python: str
    uptime: float
    concurrency: int
    running: int
    quiet: bool
    queues: dict[str, int]
    types: list[str]
    unknown: list[tuple[str, str]]
    """Queue and type of the tasks that the server received but has no handler for."""
    waiting: int = 0
    """Number of running tasks that wait for results of tasks on the server's own queues."""
    since: list[tuple[str, str, int]] = field(default_factory=list)
    """Queue, id and start time (in microseconds) of the tasks that have been running longest."""
    app_version: str = ""
    """Version of the program; empty if none was set."""
    stacks: list[tuple[str, str, str, str]] = field(default_factory=list)
    """The last requested stacks: number of the request, the task's queue and id, and the stack."""

    def started_us(self, queue: str, id: str) -> int | None:
        """Return when a task started, by the store's clock; None if the server has not reported
        it."""
        return next((us for *key, us in self.since if key == [queue, id]), None)

    def takes(self, queue: str) -> bool:
        """Return whether the server serves a queue, even if it is quiet now."""
        return queue in self.queues

    @property
    def full(self) -> bool:
        """Whether all slots of the server were in use at its last report."""
        return self.running >= self.concurrency

    @property
    def stuck(self) -> bool:
        """Whether all running tasks waited for results of tasks on the server's own queues."""
        return 0 < self.running <= self.waiting


def record_of(id: str, expires_us: int, fields: Mapping[str, bytes]) -> Record:
    """Decode the fields of a server's record."""

    def text(name: str) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    def number(name: str) -> int:
        return stored_task.number(fields.get(name))

    return Record(
        id=id,
        expires_us=expires_us,
        host=text("host"),
        pid=number("pid"),
        version=text("version"),
        python=text("python"),
        uptime=float(min(max(0, number("uptime_s")), UPTIME_LIMIT_S)),
        concurrency=number("concurrency"),
        running=number("running"),
        quiet=bool(number("quiet")),
        queues=_decoded(fields.get("queues"), dict[str, int], {}),
        types=_decoded(fields.get("types"), list[str], []),
        unknown=_decoded(fields.get("unknown"), list[tuple[str, str]], []),
        waiting=number("waiting"),
        app_version=text("app_version"),
        since=_decoded(fields.get("since"), list[tuple[str, str, int]], []),
        stacks=_decoded(fields.get("stacks"), list[tuple[str, str, str, str]], []),
    )


def _decoded(data: bytes | None, type: type[T], default: T) -> T:
    try:
        value: T = codec.decode(data or b"", type)
    except codec.CodecError:
        return default
    return value


class HandlerStack(msgspec.Struct, frozen=True, kw_only=True):
    """The stack of a running handler, as reported by its server.

    stack   lines of the program, the innermost last, at most 4 KiB; empty if the task is not
            running
    server  the server that runs the task
    """

    stack: str
    server: str


class _LiveServersMixin(Base):
    """Reads the live servers."""

    async def _live(self) -> tuple[int, list[Record]]:
        """Return the store's time and the records of the first thousand live servers, by id."""
        now_us, live = await self._broker.run(views.servers(self._globals))
        ids = sorted(live)
        records = await self._run_all([views.server_info(self._globals, id) for id in ids])
        return now_us, [
            record_of(id, live[id], fields) for id, fields in zip(ids, records, strict=True)
        ]
