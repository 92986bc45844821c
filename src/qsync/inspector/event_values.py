"""Actions of operators: who performs them, and how the inspector returns them."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from qsync.broker.event_ops import KEY_BYTES, EventRecord, StoredEvent, event_bytes
from qsync.formatting import plural
from qsync.inspector.values import Filter
from qsync.times import from_us
from qsync.value_text import plain_text

ACTIONS: Final = (
    "task.retry",
    "task.cancel",
    "task.delete",
    "task.reschedule",
    "task.edit",
    "task.copy",
    "queue.pause",
    "queue.resume",
    "queue.purge",
    "queue.delete",
    "dead.acknowledge",
    "type.pause",
    "type.resume",
    "bounds.set",
    "bounds.reset",
    "target.set",
    "weight.set",
    "weight.reset",
    "limit.set",
    "limit.reset",
    "limit.open",
    "schedule.put",
    "schedule.delete",
    "schedule.pause",
    "schedule.resume",
    "schedule.trigger",
    "schedule.backfill",
    "server.quiet",
    "server.stop",
)
"""Recorded actions."""


class OperatorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An action of an operator.

    at       when the action, or its first step, took place, by the store's clock
    action   name of the action, one of ACTIONS, e.g. `queue.pause`
    by       name of the operator; empty if the calling program passed none
    queue    queue of the action; None if the action belongs to no queue
    subject  name of the schedule, limit, fairness key, server or deleted queue; empty for others
    number   number of tasks or other objects that it changed
    ids      ids of the tasks; empty if there are too many to store
    detail   reason for a pause, filter of a bulk change, new rule or bounds
    """

    at: datetime
    action: str
    by: str
    queue: str | None
    subject: str
    number: int
    ids: list[str]
    detail: str

    @property
    def target(self) -> str:
        """The target of the action, in readable form."""
        if self.subject or len(self.ids) == 1:
            return self.subject or self.ids[0]
        return plural(self.number, "task") if self.of_tasks else self.queue or ""

    @property
    def of_tasks(self) -> bool:
        """Whether `number` counts tasks."""
        return self.action.startswith("task.") or self.action in ("queue.purge", "dead.acknowledge")


class Actor(NamedTuple):
    """The operator in whose name an inspector acts."""

    by: str = ""
    key: bytes = b""
    """Key of the one action under which all changes are recorded; empty if each is a separate
    action."""

    def event(
        self, action: str, subject: str = "", detail: str = "", *, by: str = "", key: bytes = b""
    ) -> bytes:
        """Encode an action for the scripts; with a `key`, the action is recorded as a step of the
        action that has this key."""
        texts = [plain_text(text) for text in (by or self.by, subject, detail)]
        record = EventRecord(action, *texts)
        key = key or self.key
        return event_bytes(record, key or new_key(), grows=bool(key))


def new_key() -> bytes:
    """Return a random key for an action."""
    return secrets.token_bytes(KEY_BYTES)


def operator_event(queue: str | None, stored: StoredEvent) -> OperatorEvent | None:
    """Convert a stored action into an OperatorEvent; None if the stored action cannot be read."""
    record = stored.record
    if record is None:
        return None
    return OperatorEvent(
        at=from_us(stored.at_us), action=record.action, by=record.by, queue=queue,
        subject=record.subject, number=stored.number, ids=stored.ids, detail=record.detail,
    )  # fmt: skip


def describe(state: str, filter: Filter | None) -> str:
    """Return which tasks a bulk change selects, e.g. `dead, error: Timeout`.

    Arguments are named without their values, which a dashboard may mask.
    """
    filter_fields = {} if filter is None else msgspec.structs.asdict(filter)
    filter_fields |= {"args": [path for path, _ in filter_fields.get("args", ())]}
    fields = [
        f"{name.replace('_', ' ')}: {_written(value)}"
        for name, value in filter_fields.items()
        if value
    ]
    return ", ".join([state, *fields])


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:g} s" if isinstance(value, float | int) else str(value)
