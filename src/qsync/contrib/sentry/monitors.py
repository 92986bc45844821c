"""Monitors of Sentry for the periodic tasks of an app."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from sentry_sdk.crons import capture_checkin
from sentry_sdk.crons.consts import MonitorStatus

from qsync.schedule import Cron, Every, Periodic, Schedule
from qsync.server.server import Server
from qsync.task import TaskInfo
from qsync.times import MINUTE_US

NAMESPACE: Final = uuid.UUID("6f1f5b38-6f0e-4f8e-9d39-0a5c3f0b7f51")
"""Namespace for the ids of check-ins, which are derived from task ids."""

SLUG_LENGTH: Final = 50

UNITS: Final = (("day", 1440), ("hour", 60), ("minute", 1))


class Monitors:
    """Checks in at Sentry when a tick's task starts, and when it is completed or dead.

    All attempts of a tick share one check-in, so a retry that succeeds raises no alarm.
    """

    def __init__(self) -> None:
        self._periodics: dict[str, Periodic] = {}

    def watch(self, server: Server) -> None:
        """Watch the ticks that this server runs."""
        for task in server.periodic:
            if config_of(task.periodic.schedule) is not None:
                self._periodics[task.periodic.name] = task.periodic
        if self._periodics:
            server.hooks.add("started", self._started)
            server.hooks.add("completed", self._completed)
            server.hooks.add("dead", self._dead)

    async def _started(self, task: TaskInfo) -> None:
        if task.attempt == 1:
            self._check_in(task, MonitorStatus.IN_PROGRESS)

    async def _completed(self, task: TaskInfo) -> None:
        self._check_in(task, MonitorStatus.OK)

    async def _dead(self, task: TaskInfo, error: BaseException) -> None:
        self._check_in(task, MonitorStatus.ERROR)

    def _check_in(self, task: TaskInfo, status: str) -> None:
        periodic = self._periodics.get(task.id.rpartition("@")[0])
        if periodic is None:
            return
        capture_checkin(
            monitor_slug=slug_of(periodic.name),
            check_in_id=uuid.uuid5(NAMESPACE, f"{task.queue}/{task.id}").hex,
            status=status,
            monitor_config=config_of(periodic.schedule),
        )


def slug_of(name: str) -> str:
    """Return a monitor's name for a schedule: lower-case letters, digits, - and _."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:SLUG_LENGTH] or "schedule"


def config_of(schedule: Schedule) -> Any:
    """Return a schedule as Sentry describes it; None if it has no such schedule.

    Sentry supports only cron expressions of five fields, and whole minutes.
    """
    if isinstance(schedule, Cron):
        if len(schedule.expression.split()) != 5:
            return None
        return {
            "schedule": {"type": "crontab", "value": schedule.expression},
            "timezone": schedule.tz,
        }
    if isinstance(schedule, Every) and schedule.period_us % MINUTE_US == 0:
        minutes = schedule.period_us // MINUTE_US
        unit, size = next((unit, size) for unit, size in UNITS if minutes % size == 0)
        return {
            "schedule": {"type": "interval", "value": minutes // size, "unit": unit},
            "timezone": "UTC",
        }
    return None
