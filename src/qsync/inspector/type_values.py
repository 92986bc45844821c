"""The values that the inspector returns about task types."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, get_args

import msgspec

from qsync.histogram import HIGH, MEDIAN
from qsync.inspector.values import Pause
from qsync.type_counts import OUTCOMES, TypeCounts

Period = Literal["1h", "24h", "7d", "90d"]

PERIODS: Final[tuple[Period, ...]] = get_args(Period)


class PausedType(msgspec.Struct, frozen=True, kw_only=True):
    """A paused task type in a queue.

    pause    who paused it, why and when
    waiting  number of tasks set aside so far; more may be pending until a server reaches them
    """

    type: str
    pause: Pause
    waiting: int


class RunStats(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a type in a period, as servers counted them.

    started        runs that began, including retries
    completed      runs that succeeded
    failed         runs that failed; another run follows `retried` of them, and none follows `dead`
    failure_share  failed runs as a share of the runs that ended; None if no run ended
    wait_p50       median time from the moment a task could start to its first start, in seconds;
                   retries do not count
    wait_p95       95th percentile of that time
    run_p50        median duration of a run, in seconds
    run_p95        95th percentile of the duration
    """

    started: int
    completed: int
    failed: int
    retried: int
    dead: int
    failure_share: float | None
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


class TypePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a type in one step of the period, from `at` on; None if nothing was counted."""

    at: datetime
    stats: RunStats | None


class TypeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task type in a queue, and its runs in a period.

    rate           runs started per second, on average over the period
    pending        pending tasks of the type among those that were read (see TypeList)
    pending_whole  whether all pending tasks of the queue were read; if not, the type may have more
    dead           dead tasks of the type among those that were read
    dead_whole     whether all dead tasks of the queue were read; if not, the type may have more
    waiting        tasks that are set aside because the type is paused
    """

    queue: str
    type: str
    stats: RunStats
    rate: float
    pending: int = 0
    dead: int = 0
    paused: Pause | None = None
    waiting: int = 0
    pending_whole: bool = True
    dead_whole: bool = True


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The number of tasks in a state that were read to count them by type, and the total number."""

    read: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether all tasks were read, so that the counts are exact."""
        return self.read >= self.total


class TypeList(msgspec.Struct, frozen=True, kw_only=True):
    """The types of a queue; `pending` and `dead` say how many tasks were read to count them by
    type."""

    queue: str
    period: Period
    at: datetime
    types: list[TypeInfo]
    pending: Sample
    dead: Sample


class ServerStart(msgspec.Struct, frozen=True, kw_only=True):
    """Servers of one version that started within an hour of each other, as after a deploy.

    version  version of the program, `Qsync(version=...)` or QSYNC_VERSION, else `qsync <version>`
    """

    at: datetime
    version: str
    servers: int


class TypeStats(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one type over a period.

    step_s  duration of a point's step, in seconds
    points  one point per step of the period, the oldest first; the last step has not ended yet
    before  the same points one day earlier, or one week earlier for `7d`; empty for `90d`
    stats   statistics of the whole period
    starts  starts of the type's servers in the period, oldest first; the store keeps 200 per queue
    """

    queue: str
    type: str
    period: Period
    at: datetime
    step_s: int
    points: list[TypePoint]
    before: list[TypePoint]
    stats: RunStats
    starts: list[ServerStart] = msgspec.field(default_factory=list)
    paused: Pause | None = None
    waiting: int = 0


def run_stats(counts: TypeCounts) -> RunStats:
    """Convert the counts of a type's runs into the statistics that the inspector returns."""
    by_outcome = dict(zip(OUTCOMES, counts.outcomes, strict=True))
    completed = by_outcome["completed"]
    failed = by_outcome["retried"] + by_outcome["dead"]
    return RunStats(
        started=counts.started,
        completed=completed,
        failed=failed,
        retried=by_outcome["retried"],
        dead=by_outcome["dead"],
        failure_share=failed / (completed + failed) if completed + failed else None,
        wait_p50=counts.waits.quantile(MEDIAN),
        wait_p95=counts.waits.quantile(HIGH),
        run_p50=counts.runs.quantile(MEDIAN),
        run_p95=counts.runs.quantile(HIGH),
    )
