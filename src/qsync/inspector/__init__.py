"""The Inspector: reads and changes queues, tasks, schedules and servers.

Each call makes a few script calls of a few milliseconds each, regardless of the size of the queues.
Bulk changes run in steps; each step returns the cursor for the next step. A change to a task may
name the state in which the task was seen; the outcome of the change is `done`, `not_found`,
`too_late` or another value of `Change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from qsync.broker.aio import AsyncBroker
from qsync.context_hints import AsyncOnly
from qsync.declared_limits import DeclaredLimits
from qsync.inspector.argument_checks import check_arguments
from qsync.inspector.bounds import _BoundsMixin
from qsync.inspector.composition import Composition, KeyShares, _CompositionMixin
from qsync.inspector.edits import _EditsMixin
from qsync.inspector.error_groups import ErrorGroup, ErrorPart, _ErrorsMixin, merge_groups
from qsync.inspector.event_values import OperatorEvent
from qsync.inspector.events import _EventsMixin
from qsync.inspector.explain import _ExplainMixin
from qsync.inspector.explanation import Explanation, Reason
from qsync.inspector.limits import LimitInfo, LimitPage, OperatorRule, _LimitsMixin
from qsync.inspector.live_servers import HandlerStack
from qsync.inspector.merged_pages import _TaskListsMixin
from qsync.inspector.monitoring import LastRun, QueueSample, TypeShares, _MonitoringMixin
from qsync.inspector.queues import Overview, _QueuesMixin
from qsync.inspector.schedule_runs import Backfill, MissedRun, ScheduleRun, _ScheduleRunsMixin
from qsync.inspector.search import SearchPage, SearchStep, _SearchMixin
from qsync.inspector.search_query import SearchQuery, Term, parse_search
from qsync.inspector.servers import Fleet, LongRun, _ServersMixin
from qsync.inspector.slow_tasks import SlowTask, _SlowTasksMixin
from qsync.inspector.type_values import (
    PausedType,
    Period,
    RunStats,
    Sample,
    ServerStart,
    TypeInfo,
    TypeList,
    TypePoint,
    TypeStats,
)
from qsync.inspector.types import _TypesMixin
from qsync.inspector.values import (
    Attempt,
    Change,
    Day,
    Died,
    Edit,
    Event,
    Filter,
    Forgotten,
    Page,
    Pause,
    QueueInfo,
    RunningTask,
    ScheduleInfo,
    ServerInfo,
    Shown,
    Step,
    TaskDetail,
    TaskRow,
)
from qsync.task_builder import TaskBuilder

__all__ = [
    "Attempt",
    "Backfill",
    "Change",
    "Composition",
    "Day",
    "Died",
    "Edit",
    "ErrorGroup",
    "ErrorPart",
    "Event",
    "Explanation",
    "Filter",
    "Fleet",
    "Forgotten",
    "HandlerStack",
    "Inspector",
    "KeyShares",
    "LastRun",
    "LimitInfo",
    "LimitPage",
    "LongRun",
    "MissedRun",
    "OperatorEvent",
    "OperatorRule",
    "Overview",
    "Page",
    "Pause",
    "PausedType",
    "Period",
    "QueueInfo",
    "QueueSample",
    "Reason",
    "RunStats",
    "RunningTask",
    "Sample",
    "ScheduleInfo",
    "ScheduleRun",
    "SearchPage",
    "SearchQuery",
    "SearchStep",
    "ServerInfo",
    "ServerStart",
    "Shown",
    "SlowTask",
    "Step",
    "TaskDetail",
    "TaskRow",
    "Term",
    "TypeInfo",
    "TypeList",
    "TypePoint",
    "TypeShares",
    "TypeStats",
    "merge_groups",
    "parse_search",
]


@check_arguments
class Inspector(
    _QueuesMixin,
    _TaskListsMixin,
    _SearchMixin,
    _ErrorsMixin,
    _EditsMixin,
    _ServersMixin,
    _ScheduleRunsMixin,
    _LimitsMixin,
    _BoundsMixin,
    _CompositionMixin,
    _TypesMixin,
    _SlowTasksMixin,
    _ExplainMixin,
    _EventsMixin,
    _MonitoringMixin,
    AsyncOnly,
):
    """Reads and changes the queues of a prefix. Create an inspector with `app.inspector()`. Use an
    inspector in one event loop, and close it with `aclose()` or use `async with`. The returned
    values are frozen and can be passed to `msgspec.json.encode`; their strings come from users and
    are not escaped.

    Every call may raise StoreUnavailable. A call raises ConfigError if the store user lacks the
    permission (`qsync acl reader` is enough to read, `qsync acl admin` to change), and InvalidTask
    if an argument is invalid.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        prefix: str = "qsync",
        builders: Sequence[TaskBuilder] = (),
        declared: DeclaredLimits | None = None,
    ) -> None:
        super().__init__(broker, prefix=prefix, builders=builders, declared=declared)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
