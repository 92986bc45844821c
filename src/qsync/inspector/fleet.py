"""The reports of live servers about their work: long-running tasks, and unknown types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from qsync.inspector.live_servers import Record, _LiveServersMixin
from qsync.inspector.servers import server_info_of, unknown_types_of
from qsync.inspector.values import ServerInfo

LONG_RUN_S: Final = 600.0
"""Time after which a running task is called long, in seconds."""


class LongRun(msgspec.Struct, frozen=True, kw_only=True):
    """A long-running task; `seconds` is its duration so far."""

    queue: str
    id: str
    server: str
    seconds: float


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The live servers, by id, and what they report.

    servers        as `Inspector.servers` returns them, without their tasks
    unknown_types  as `Inspector.unknown_types` returns them
    long_runs      tasks that have run for over ten minutes, the longest first
    """

    servers: list[ServerInfo]
    unknown_types: dict[str, list[str]]
    long_runs: list[LongRun]

    def of_queue(self, queue: str) -> list[ServerInfo]:
        """Return the servers that take tasks from a queue; draining ones do not."""
        return [server for server in self.servers if queue in server.queues and not server.quiet]


class _FleetMixin(_LiveServersMixin):
    """Reads what servers report."""

    async def fleet(self) -> Fleet:
        """Return the live servers (the first thousand) and what they report, read at once."""
        now_us, records = await self._live()
        return Fleet(
            servers=[server_info_of(record, [], complete=False) for record in records],
            unknown_types=unknown_types_of(records),
            long_runs=long_runs_of(records, now_us, LONG_RUN_S),
        )

    async def long_runs(self, *, at_least: float = LONG_RUN_S) -> list[LongRun]:
        """Return the tasks that have run for `at_least` seconds, the longest first.

        Each server reports its hundred longest, twice per lease time.
        """
        now_us, records = await self._live()
        return long_runs_of(records, now_us, at_least)


def long_runs_of(records: Iterable[Record], now_us: int, at_least: float) -> list[LongRun]:
    """Return the tasks that servers reported to run for long, the longest first. Pure."""
    runs = [
        LongRun(queue=queue, id=id, server=record.id, seconds=(now_us - since_us) / 1e6)
        for record in records
        for queue, id, since_us in record.since
        if now_us - since_us >= at_least * 1e6
    ]
    return sorted(runs, key=lambda run: -run.seconds)
