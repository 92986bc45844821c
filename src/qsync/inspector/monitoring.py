"""Reads the metrics of types and schedules, with bounded reads of each queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from qsync.broker import schedule_run_ops, type_ops
from qsync.broker.schedule_run_ops import StoredRun
from qsync.broker.type_ops import StateSample
from qsync.inspector.base import Base
from qsync.times import from_us

SAMPLE: Final = 200
SMALL_SAMPLE: Final = 20
SAMPLED: Final = 5000
"""Number of tasks read per state of a queue: normally SAMPLE.

With many queues, the number falls to about SAMPLED divided by the number of queues, but not below
SMALL_SAMPLE.
"""

SCHEDULES: Final = 500
FEW_SCHEDULES: Final = 20
"""Number of schedules read per queue: an equal share of SCHEDULES, but at least FEW_SCHEDULES."""


class TypeShares(msgspec.Struct, frozen=True, kw_only=True):
    """The types of a state's tasks, read at positions spread over the state.

    total  number of tasks in the state
    read   number of tasks whose type was read
    types  approximate number of tasks of each type; exact if all were read
    """

    total: int
    read: int
    types: dict[str, int]


class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """The last successful and the last failed run of a schedule, among its last 20 recorded runs.

    schedule      name of the schedule, as in the ids of its tasks; shortened if it has over 100
                  characters
    succeeded_at  end of its last run that completed; None if none is recorded
    failed_at     end of its last run that failed, or the last tick that was missed
    """

    schedule: str
    succeeded_at: datetime | None
    failed_at: datetime | None


class QueueSample(msgspec.Struct, frozen=True, kw_only=True):
    """Types and schedules of a queue at one moment."""

    queue: str
    pending: TypeShares
    dead: TypeShares
    paused_types: list[str]
    schedules: list[LastRun]


class _MonitoringMixin(Base):
    """Reads the metrics of types and schedules."""

    async def samples(self, queues: Sequence[str]) -> list[QueueSample]:
        """Return the types of pending and dead tasks, and the last runs of schedules, per queue.

        Reads up to 200 tasks of each state and up to 500 schedules of each queue, so that long
        queues cost no more than short ones. With more queues, the method reads less of each queue,
        but at least 20 tasks and 20 schedules.
        """
        tasks = min(SAMPLE, max(SMALL_SAMPLE, SAMPLED // max(1, len(queues))))
        schedules = max(FEW_SCHEDULES, SCHEDULES // max(1, len(queues)))
        keys = [self._keys(queue) for queue in queues]
        replies = await self._run_all(
            [type_ops.sample_types(one, count=tasks) for one in keys]
            + [schedule_run_ops.last_runs(one, count=schedules) for one in keys]
        )
        types, runs = replies[: len(keys)], replies[len(keys) :]
        return [
            QueueSample(
                queue=queue,
                pending=_counts(sample.pending),
                dead=_counts(sample.dead),
                paused_types=sample.paused,
                schedules=[
                    LastRun(
                        schedule=one.field,
                        succeeded_at=_end(one.success),
                        failed_at=_end(one.failure),
                    )
                    for one in last
                ],
            )
            for queue, sample, last in zip(queues, types, runs, strict=True)
        ]


def _counts(sample: StateSample) -> TypeShares:
    share = sample.total / sample.read if sample.read else 0.0
    types = {name: round(count * share) for name, count in sample.types.items()}
    return TypeShares(total=sample.total, read=sample.read, types=types)


def _end(run: StoredRun | None) -> datetime | None:
    return None if run is None else from_us(run.ended_ms * 1000)
