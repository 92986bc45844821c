"""All that people on call, the command line and the dashboard may look at and do.

Each call is bounded, whatever the queues hold: it makes a few script calls of a few milliseconds.
Work on many tasks comes in steps that say where to go on. A change carries the state in which its
task was seen, and answers what became of it: `done`, `not_found`, `too_late`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from qsync.broker.shell import AsyncBroker
from qsync.inspector.bulk import _BulkMixin
from qsync.inspector.explain_queries import _ExplainMixin
from qsync.inspector.merged_pages import Merged
from qsync.inspector.queues import _QueuesMixin
from qsync.inspector.schedules import Schedules
from qsync.inspector.servers import Servers
from qsync.inspector.values import (
    Attempt,
    Change,
    Day,
    Event,
    Explanation,
    Filter,
    Forgotten,
    Overview,
    Page,
    Pause,
    QueueInfo,
    Reason,
    RunningTask,
    ScheduleInfo,
    ServerInfo,
    Shown,
    Step,
    TaskDetail,
    TaskRow,
)

__all__ = [
    "Attempt",
    "Change",
    "Day",
    "Event",
    "Explanation",
    "Filter",
    "Forgotten",
    "Inspector",
    "Overview",
    "Page",
    "Pause",
    "QueueInfo",
    "Reason",
    "RunningTask",
    "ScheduleInfo",
    "ServerInfo",
    "Shown",
    "Step",
    "TaskDetail",
    "TaskRow",
]


class Inspector(_QueuesMixin, Merged, _BulkMixin, Servers, Schedules, _ExplainMixin):
    """Looks into the queues of a prefix, and changes them. `app.inspector()` makes one.

    Use it in one event loop, and close it, or `async with`. What it answers are frozen values that
    `msgspec.json.encode` takes; texts in them are as somebody wrote them, and not escaped.

    Every call may raise StoreUnavailable; ConfigError when the store refuses the user that right
    (`qsync acl reader` looks, `qsync acl admin` changes); and InvalidTask when an argument is none.
    """

    def __init__(self, broker: AsyncBroker, *, prefix: str = "qsync") -> None:
        super().__init__(broker, prefix=prefix)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
