"""Reports a server's counts for each task type by minute, and rolls up the minutes that have ended.

The slowest completed runs of a minute are sent as a separate report. The server's start is also
reported separately, and only once. A report replaces the server's earlier report for the same
minute, so it can be sent twice. When a minute is over, one of the servers that reported it merges
all reports into blocks (qsync.type_rolls). Reports that the store does not accept are dropped and
counted, so that statistics never delay a server.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from qsync.broker import type_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.errors import QsyncError
from qsync.histogram import Histogram
from qsync.keys import QueueKeys
from qsync.server.clock import boot_s
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.server.server_parts import cancel
from qsync.server.type_counter import TypeCounter
from qsync.server_starts import encode_start, start_report
from qsync.slow_runs import encode_slow_report
from qsync.times import MINUTE_US
from qsync.type_counts import TypeCounts, encode_report
from qsync.type_rolls import (
    DIRECTORY,
    SLOW_REPORT,
    START_REPORT,
    decode_directory,
    merged_reports,
    minute_of,
    needed_fields,
    report_field,
    roll,
)

log: Final = logging.getLogger("qsync.server")

REPORT_S: Final = 15.0
"""Time between two reports of the current minute, in seconds."""

STORE_TIMEOUT_S: Final = 1.0
"""How long a report waits for the store, in seconds."""

ROLL_AFTER_S: Final = 20
"""Longest delay between the end of a minute and its roll-up by a server, in seconds."""

INLINE_TYPES: Final = 10
"""Maximum number of types for which a roll-up runs on the event loop, where it takes about 0.5 ms
per type."""

Counts = dict[str, TypeCounts]


class TypeReports:
    """Reports the counts of a server to the store; `metrics` count the runs whose reports the store
    does not accept."""

    def __init__(
        self,
        server_id: str,
        broker: AsyncBroker,
        queues: Sequence[QueueState],
        type_counter: TypeCounter,
        outage: Outage,
        metrics: RunMetrics | None = None,
    ) -> None:
        self._server_id = server_id
        self._broker = broker
        self._queues = {queue.name: queue for queue in queues}
        self._type_counter = type_counter
        self._metrics = metrics
        self._outage = outage
        self._failing = False
        self._base: dict[tuple[str, str], TypeCounts] = {}
        """Counts at the beginning of the current minute, by queue and type."""
        self._minute = 0
        self._sent: dict[str, int] = {}
        """Number of runs in the last report of the current minute, by queue."""
        self._started = boot_s()
        self._start_reported: set[str] = set()
        """Queues to which the server's start has been reported."""
        self._tasks: list[asyncio.Task[None]] = []
        self._roll_after_s = zlib.crc32(server_id.encode()) % ROLL_AFTER_S
        """Delay of this server's roll-ups, in seconds. The delay differs between servers, so that
        they do not do the same work at the same time."""

    async def start(self) -> None:
        """Begin to report."""
        self._tasks = [asyncio.get_running_loop().create_task(self._run())]

    async def stop(self) -> None:
        """Report the counts for the last time."""
        await cancel(self._tasks)
        await self.report(last=True)

    async def _run(self) -> None:
        rolls: dict[str, int] = {}
        while True:
            left_s = (MINUTE_US - self._now_us() % MINUTE_US) / 1e6
            await asyncio.sleep(min(REPORT_S, left_s))
            try:
                rolls |= await self.report()
                for queue, minute in list(rolls.items()):
                    if self._now_us() > minute * MINUTE_US + self._roll_after_s * 1_000_000:
                        del rolls[queue]
                        await self._roll(queue)
            except Exception:
                log.exception("reports on types continue after an unexpected error")

    def _now_us(self) -> int:
        """Return the store's time; 0 before the first fetch."""
        return max((queue.store_time_us() for queue in self._queues.values()), default=0)

    async def report(self, *, last: bool = False) -> dict[str, int]:
        """Report the current minute, or the minute that has just ended; `last` marks the last
        report.

        Returns, for each queue with reports to roll up, the minute before which they can be rolled
        up.
        """
        now_us = self._now_us()
        if not now_us:
            return {}
        minute, counts = now_us // MINUTE_US, self._type_counter.counts(self._queues.values())
        reported = self._minute or minute
        is_over, due = minute != reported, dict[str, int]()
        rows_of = self._since_base(counts)
        for queue in self._queues:
            if starts := not last and queue not in self._start_reported:
                due[queue] = minute + 1
            rows = rows_of.get(queue, {})
            fields = await self._send(queue, reported, rows, starts=starts, final=last or is_over)
            if (rows and is_over) or any((minute_of(field) or minute) < minute for field in fields):
                due[queue] = minute
            self._type_counter.slowest(queue).begin_day(now_us)
            if is_over:
                self._type_counter.slowest(queue).forget_fresh()
        if is_over:
            self._base, self._sent = counts, {}
        self._minute = minute
        return due

    def _reports(self, queue: str, minute: int, rows: Counts, *, starts: bool) -> dict[str, bytes]:
        """Return the reports of a queue by field; with `starts`, also report the server's start."""
        reports: dict[str, bytes] = {}
        if rows:
            reports[report_field(minute, self._server_id)] = encode_report(rows)
        if slow := self._type_counter.slowest(queue).fresh():
            reports[report_field(minute, self._server_id, SLOW_REPORT)] = encode_slow_report(slow)
        if starts:
            age_us = round((boot_s() - self._started) * 1e6)
            counter, at_us = self._type_counter, self._now_us() - age_us
            start = start_report(at_us, counter.version, counter.types)
            reports[report_field(minute, self._server_id, START_REPORT)] = encode_start(start)
        return reports

    async def _send(
        self, name: str, minute: int, rows: Counts, *, starts: bool, final: bool
    ) -> list[str]:
        """Send reports unless they equal the previous ones; return the fields that the store
        already had.

        With `starts`, also report the server's start; `final` means that no other report of this
        minute follows.
        """
        runs = sum(row.started + row.ended for row in rows.values())
        if runs == self._sent.get(name, 0) and not starts:
            return []
        queue = self._queues[name]
        report = self._reports(name, minute, rows, starts=starts)
        call = type_ops.report_types(queue.keys, report)
        [reply] = await self._broker.run_many([call], ends=ends_in(STORE_TIMEOUT_S))
        if not isinstance(reply, QsyncError):
            self._failing, self._sent[name] = False, runs
            if starts:
                self._start_reported.add(name)
            fields: list[str] = reply
            return fields
        if final and self._metrics is not None:
            self._metrics.dropped(queue, sum(row.started for row in rows.values()))
        if not self._failing:
            self._outage.note(f"store the statistics of types of queue {name}", reply)
        self._failing = True
        return []

    def _since_base(self, counts: Mapping[tuple[str, str], TypeCounts]) -> dict[str, Counts]:
        """Return the counts of the current minute, by queue and type."""
        changes: dict[str, Counts] = {}
        for (queue, type), row in counts.items():
            since = _difference(row, self._base.get((queue, type)))
            if since.started or since.ended:
                changes.setdefault(queue, {})[type] = since
        return changes

    async def _roll(self, queue: str) -> None:
        """Merge a queue's reports of past minutes into blocks."""
        try:
            await roll_up(self._broker, self._queues[queue].keys, self._now_us())
        except QsyncError as error:
            self._outage.note(f"roll up the statistics of types of queue {queue}", error)


async def roll_up(broker: AsyncBroker, keys: QueueKeys, now_us: int) -> bool:
    """Merge a queue's reports of past minutes into blocks; return False if there are no reports.

    If two servers roll up the same reports at the same time, one of them changes nothing.
    """
    minute = now_us // MINUTE_US
    call = type_ops.type_stats(keys, [DIRECTORY], reports=type_ops.REPORTS_READ)
    read = await broker.run(call)
    ended = {
        field: data
        for field, data in read.reports.items()
        if (oldest := minute_of(field)) is not None and oldest < minute
    }
    if not ended:
        return False
    raw = read.blocks[DIRECTORY]
    directory = decode_directory(raw)
    merged = merged_reports(ended, directory.types)
    fields, blocks = needed_fields(merged, ended), dict[str, bytes | None]()
    for first in range(0, len(fields), type_ops.FIELDS_READ):
        part = fields[first : first + type_ops.FIELDS_READ]
        blocks |= (await broker.run(type_ops.type_stats(keys, part))).blocks
    work = partial(roll, directory, merged, ended, blocks, minute)
    change = work() if len(merged) <= INLINE_TYPES else await asyncio.to_thread(work)
    call_roll = type_ops.roll_types(keys, raw or b"", list(ended), change.fields)
    return await broker.run(call_roll)


def _difference(row: TypeCounts, base: TypeCounts | None) -> TypeCounts:
    if base is None:
        return row
    return TypeCounts(
        row.started - base.started,
        [now - before for now, before in zip(row.outcomes, base.outcomes, strict=True)],
        _new_counts(row.waits, base.waits),
        _new_counts(row.runs, base.runs),
    )


def _new_counts(histogram: Histogram, base: Histogram) -> Histogram:
    counts = {cell: n - base.cells.get(cell, 0) for cell, n in histogram.cells.items()}
    return Histogram({cell: n for cell, n in counts.items() if n})
