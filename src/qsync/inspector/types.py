"""The task types of a queue: statistics, backlog, pause and resume."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from qsync import codec
from qsync.broker import type_ops, views
from qsync.broker.event_ops import recorded
from qsync.broker.truncated import decode_cut
from qsync.errors import InvalidTask
from qsync.inspector.base import Base
from qsync.inspector.task_rows import note_of, pause_of
from qsync.inspector.type_values import (
    PERIODS,
    PausedType,
    Period,
    Sample,
    ServerStart,
    TypeInfo,
    TypeList,
    TypePoint,
    TypeStats,
    run_stats,
)
from qsync.inspector.values import Change, Pause
from qsync.phrase import phrase
from qsync.server_starts import StoredStart, decode_starts, merge_starts
from qsync.state import TaskState
from qsync.task import check_type
from qsync.times import MINUTE_US, datetime_us, from_us
from qsync.type_counts import TypeCounts, decode_block, sum_of
from qsync.type_rolls import (
    DIRECTORY,
    STARTS_FIELD,
    decode_directory,
    hours_of,
    merged_reports,
    minutes_of,
    reported_starts,
)
from qsync.value_text import shorten

LISTED_PERIODS: Final[tuple[Period, ...]] = ("1h", "24h", "7d")
"""Periods for lists of types; reading 90 days of every type would take too long."""

TASKS_PER_SAMPLE: Final = 500
MAX_SAMPLES: Final = 2
"""Maximum number of reads, of TASKS_PER_SAMPLE tasks each, to count a state's tasks by type."""


class _TypesMixin(Base):
    """Operations on task types."""

    async def types(self, queue: str = "default", *, period: Period = "1h") -> TypeList:
        """Return the types of a queue with their runs of the last `1h`, `24h` or `7d`.

        At most about 100 types of a queue have separate statistics; the rest are counted under
        `other`. Only the first 1,000 pending and the first 1,000 dead tasks are counted;
        `TypeList.pending` and `dead` say whether the queue has more. Raises InvalidTask for any
        other period.
        """
        _check_period(period, LISTED_PERIODS)
        keys = self._keys(queue)
        paused = {paused_type.type: paused_type for paused_type in await self.paused_types(queue)}
        pending, pending_of = await self._sample(queue, TaskState.PENDING)
        dead, dead_of = await self._sample(queue, TaskState.DEAD)
        directory = await self._broker.run(type_ops.type_stats(keys, [DIRECTORY]))
        type_ids = decode_directory(directory.blocks[DIRECTORY]).types
        steps = steps_of(period, directory.now_us)
        fields = [field for type in type_ids for field in fields_of(type, steps)]
        history = await self._history(queue, fields, type_ids)
        names = sorted({*type_ids, *history.fresh_types, *paused, *pending_of, *dead_of})
        seconds = steps.span.minutes * 60 * steps.span.number

        def infos() -> list[TypeInfo]:
            infos = []
            for name in names:
                stats = run_stats(sum_of(history.counts(name, steps).values()))
                pause = paused.get(name)
                infos.append(
                    TypeInfo(
                        queue=queue, type=name, stats=stats, rate=stats.started / seconds,
                        pending=pending_of[name], dead=dead_of[name],
                        paused=pause.pause if pause else None,
                        waiting=pause.waiting if pause else 0,
                        pending_whole=pending.whole, dead_whole=dead.whole,
                    )
                )  # fmt: skip
            return infos

        return TypeList(
            queue=queue, period=period, at=from_us(directory.now_us),
            types=await asyncio.to_thread(infos), pending=pending, dead=dead,
        )  # fmt: skip

    async def type_stats(
        self, type: str, *, queue: str = "default", period: Period = "1h"
    ) -> TypeStats:
        """Return the runs of a type in the last `1h`, `24h`, `7d` or `90d`, with one point per
        step.

        Servers report their counts every 15 seconds. Counts by minute are kept for 48 hours, and
        counts by hour for 90 days. If no server has reported the type, no point has counts.
        """
        _check_period(period, PERIODS)
        check_type(type)
        keys = self._keys(queue)
        paused = {each.type: each for each in await self.paused_types(queue)}.get(type)
        directory = await self._broker.run(type_ops.type_stats(keys, [DIRECTORY]))
        type_ids = decode_directory(directory.blocks[DIRECTORY]).types
        steps = steps_of(period, directory.now_us)
        before = steps.earlier()
        periods: list[Steps] = [steps, *([before] if before else [])]
        fields = [field for each in periods for field in fields_of(type, each)]
        history = await self._history(queue, [*fields, STARTS_FIELD], type_ids)
        counts, points = history.counts(type, steps), history.points(type, steps)
        since_us = datetime_us("at", points[0].at)
        return TypeStats(
            queue=queue,
            type=type,
            period=period,
            at=from_us(directory.now_us),
            step_s=steps.span.minutes * 60,
            points=points,
            before=history.points(type, before) if before else [],
            stats=run_stats(sum_of(counts.values())),
            starts=list(map(server_start, history.starts(type, since_us))),
            paused=paused.pause if paused else None,
            waiting=paused.waiting if paused else 0,
        )

    async def _history(
        self, queue: str, fields: Sequence[str], type_ids: dict[str, int]
    ) -> TypeHistory:
        """Read fields of the statistics, and the reports that have not been merged into the fields
        yet."""
        keys, at_once = self._keys(queue), type_ops.FIELDS_READ
        unique = list(dict.fromkeys(fields))
        calls = [
            type_ops.type_stats(keys, unique[first : first + at_once])
            for first in range(0, len(unique), at_once)
        ]
        calls += [
            type_ops.type_stats(keys, [], reports=type_ops.REPORTS_READ, offset=offset)
            for offset in range(0, type_ops.MAX_REPORTS, type_ops.REPORTS_READ)
        ]
        parts: list[type_ops.StoredTypeStats] = await self._run_all(calls)
        blocks = {field: data for part in parts for field, data in part.blocks.items()}
        reports = {field: data for part in parts for field, data in part.reports.items()}
        # Decode in a thread, since a hundred types take tens of milliseconds.
        return await asyncio.to_thread(TypeHistory, blocks, reports, type_ids)

    async def _sample(self, queue: str, state: TaskState) -> tuple[Sample, Counter[str]]:
        """Count the first tasks in a state by type."""
        counts, place = Counter[str](), None
        read = total = 0
        for _ in range(MAX_SAMPLES):
            call = views.list_tasks(self._keys(queue), state, count=TASKS_PER_SAMPLE, after=place)
            page = await self._broker.run(call)
            total = page.total
            for row in page.rows:
                read, place = read + 1, row.place
                try:
                    message = decode_cut(row.shown.message or b"", row.length)
                except codec.CodecError:
                    continue
                counts[message.type] += 1
            if not page.more:
                break
        return Sample(read=read, total=total), counts

    async def paused_types(self, queue: str = "default") -> list[PausedType]:
        """Return the paused types of a queue, sorted by name; at most 100 can be paused."""
        stored = await self._broker.run(type_ops.paused_types(self._keys(queue)))
        return [paused_type(paused) for paused in stored]

    async def pause_type(
        self, type: str, *, queue: str = "default", by: str = "", why: str = ""
    ) -> Change:
        """Pause a type in a queue: start no more of its tasks until `resume_type`, even after
        restarts.

        Pending tasks of the type are set aside (state `limited`) when servers reach them, so that
        tasks of other types run. Running tasks continue, and tasks that a server has already
        fetched may still start. If the type is already paused, the outcome is `done` too: the pause
        keeps its start time, and `by` and `why` are replaced unless `why` is empty. From then on
        the queue has layout 2, and servers of versions without flow control stop serving it. Raises
        InvalidTask when 100 other types of the queue are paused; in that case, pause the queue
        instead.
        """
        keys = self._keys(queue)
        check_type(type)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        note = note_of(by or self._actor.by, why)
        if not why:
            stored = await self._broker.run(type_ops.paused_types(keys))
            note = next((each.note for each in stored if each.type == type), note)
        call = type_ops.pause_type(keys, type, note)
        event = self._actor.event("type.pause", type, why, by=by)
        if await self._broker.run(recorded(call, event)) is None:
            raise InvalidTask(
                phrase(
                    "type: %(type)s is one too many: %(number)s types of %(queue)s are paused; "
                    "resume one, or pause the queue",
                    type=repr(type), number=type_ops.PAUSED_MOST, queue=queue,
                )
            )  # fmt: skip
        return Change(outcome="done")

    async def resume_type(self, type: str, *, queue: str = "default") -> Change:
        """Resume a type, so that its tasks start again in their former order; `not_found` if not
        paused."""
        call = type_ops.resume_type(self._keys(queue), check_type(type))
        event = self._actor.event("type.resume", type)
        changed = await self._broker.run(recorded(call, event))
        return Change(outcome="done" if changed else "not_found")


def server_start(start: StoredStart) -> ServerStart:
    """Convert a stored start of servers into a ServerStart. Does no I/O."""
    return ServerStart(at=from_us(start.first_us), version=start.version, servers=start.servers)


def paused_type(paused: type_ops.StoredPause) -> PausedType:
    """Convert a stored pause of a type into a PausedType. Does no I/O."""
    pause = pause_of(paused.note, paused.paused_at_us)
    return PausedType(
        type=paused.type, pause=pause or Pause(by="", why="", at=None), waiting=paused.waiting
    )


def _check_period(period: str, known: Sequence[str]) -> None:
    if period not in known:
        raise InvalidTask(
            phrase(
                "period: %(value)s is not one of %(known)s",
                value=shorten(period), known=", ".join(known),
            )
        )  # fmt: skip


class Span(NamedTuple):
    """How a period is divided: into `number` steps of `minutes` each.

    The line for comparison begins `before` minutes earlier; 0 means that there is none.
    """

    minutes: int
    number: int
    before: int


SPANS: Final[dict[Period, Span]] = {
    "1h": Span(1, 60, 1440), "24h": Span(60, 24, 1440), "7d": Span(60, 168, 7 * 1440),
    "90d": Span(1440, 90, 0),
}  # fmt: skip


class Steps(NamedTuple):
    """The first and last step to show, each as a number of steps since the epoch."""

    span: Span
    first: int
    last: int

    def earlier(self) -> Steps | None:
        """Return the steps of the earlier period for comparison; None without a comparison."""
        if not self.span.before:
            return None
        shift = self.span.before // self.span.minutes
        return Steps(self.span, self.first - shift, self.last - shift)


def steps_of(period: Period, now_us: int) -> Steps:
    """Return the steps of a period that ends now."""
    span = SPANS[period]
    last = now_us // MINUTE_US // span.minutes
    return Steps(span, last - span.number + 1, last)


def fields_of(type: str, steps: Steps) -> list[str]:
    """Return the fields of the hash `type_stats` that hold these steps of a type."""
    span = steps.span
    if span.minutes == 1:
        return [minutes_of(hour, type) for hour in range(steps.first // 60, steps.last // 60 + 1)]
    per_day = 1440 // span.minutes
    days = range(steps.first // per_day, steps.last // per_day + 1)
    return [hours_of(day, type) for day in days]


class TypeHistory:
    """The counts of types: stored blocks, and reports that have not been merged into the blocks."""

    def __init__(
        self, blocks: Mapping[str, bytes | None], reports: Mapping[str, bytes], types: Iterable[str]
    ) -> None:
        self._blocks = {field: data for field, data in blocks.items() if data}
        self._fresh = merged_reports(reports, types)
        self._starts = merge_starts(
            decode_starts(blocks.get(STARTS_FIELD)), reported_starts(reports), 0
        )

    def starts(self, type: str, since_us: int) -> list[StoredStart]:
        """Return the recorded starts, since a time, of servers with a handler for a type."""
        return [
            start for start in self._starts if start.concerns(type) and start.last_us >= since_us
        ]

    @property
    def fresh_types(self) -> set[str]:
        """Types for which reports have not been merged into the blocks yet."""
        return set(self._fresh)

    def counts(self, type: str, steps: Steps) -> dict[int, TypeCounts]:
        """Return the counts of a type by step; steps without tasks are left out."""
        parts_of: dict[int, list[TypeCounts]] = {}
        minutes = steps.span.minutes
        for field in fields_of(type, steps):
            base = int(field[1:].partition(":")[0]) * (60 if minutes == 1 else 24)
            per_step = 24 if minutes > 60 else 1
            numbers = range(steps.first * per_step - base, (steps.last + 1) * per_step - base)
            for period, counts in decode_block(self._blocks.get(field), numbers).items():
                parts_of.setdefault((base + period) // per_step, []).append(counts)
        for minute, counts in self._fresh.get(type, {}).items():
            parts_of.setdefault(minute // minutes, []).append(counts)
        return {
            number: parts[0] if len(parts) == 1 else sum_of(parts)
            for number, parts in parts_of.items()
            if steps.first <= number <= steps.last
        }

    def points(self, type: str, steps: Steps) -> list[TypePoint]:
        """Return the type's statistics as one point per step."""
        counts = self.counts(type, steps)
        return [
            TypePoint(
                at=moment_of_step(steps, number),
                stats=run_stats(counts[number]) if number in counts else None,
            )
            for number in range(steps.first, steps.last + 1)
        ]


def moment_of_step(steps: Steps, number: int) -> datetime:
    """Return when a step begins."""
    return from_us(number * steps.span.minutes * MINUTE_US)
