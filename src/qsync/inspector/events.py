"""Reads the record of operators' actions."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from qsync.broker import event_ops
from qsync.broker.event_ops import MOST_EVENTS, StoredEvent
from qsync.errors import InvalidTask
from qsync.inspector.base import Base
from qsync.inspector.event_values import ACTIONS, OperatorEvent, operator_event
from qsync.phrase import phrase
from qsync.suggestions import did_you_mean
from qsync.times import datetime_us
from qsync.value_text import shorten

READ_PER_QUEUE: Final = 100
"""Number of actions read per queue if a request without a filter would read more than READ_MOST."""

READ_MOST: Final = 50_000
"""If all queues together have at most this many actions, a request without a filter reads them
all."""


class _EventsMixin(Base):
    """Operations on the record of actions."""

    async def events(
        self,
        *,
        queue: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        task: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[OperatorEvent]:
        """Return the matching actions of operators, the latest first.

        queue    only this queue; "" means actions that belong to no queue; None means all, except
                 queues whose data a later version of qsync wrote; `overview` names these queues
        action   one action, e.g. `queue.pause`, or all of a kind, e.g. `queue`
        subject  only actions on the schedule, limit, fairness key or server of this name
        task     only actions on the task with this id
        since    only actions at this time or later
        limit    1 to 500

        The store keeps the last 500 actions of each queue, and 500 that belong to no queue, e.g.
        those on servers. Raises InvalidTask if an argument is invalid.
        """
        _check_limit(limit)
        since_us = None if since is None else datetime_us("since", since)
        picks = (_check_action(action), subject, task)
        names = [] if queue is not None else await self.queue_names()
        count = MOST_EVENTS if any(picks) else limit
        if not any(picks) and len(names) * limit > READ_MOST:
            count = min(limit, READ_PER_QUEUE)
        records: list[tuple[str | None, list[StoredEvent]]] = []
        if not queue:
            call = event_ops.events(self._globals, count=count, since_us=since_us)
            records.append((None, await self._broker.run(call)))
        if queue is None:
            of_queues, _ = await self._read_each(
                names,
                lambda name: event_ops.events(self._keys(name), count=count, since_us=since_us),
            )
            records += of_queues.items()
        elif queue:
            call = event_ops.events(self._keys(queue), count=count, since_us=since_us)
            records.append((queue, await self._broker.run(call)))
        every = (operator_event(name, stored) for name, entries in records for stored in entries)
        events = [
            event
            for event in every
            if event and _matches(event, *picks) and (since is None or event.at >= since)
        ]
        return sorted(events, key=lambda event: event.at, reverse=True)[:limit]


def _check_limit(limit: int) -> None:
    """Raise InvalidTask unless this is a number of actions from 1 to MOST_EVENTS."""
    if type(limit) is not int or not 1 <= limit <= MOST_EVENTS:
        raise InvalidTask(f"limit: {shorten(limit)} is not a whole number from 1 to {MOST_EVENTS}")


def _check_action(action: str | None) -> str | None:
    """Check and return an action or kind of actions. Raise InvalidTask if the name is unknown."""
    names = [*ACTIONS, *dict.fromkeys(name.partition(".")[0] for name in ACTIONS)]
    if action is None or action in names:
        return action
    raise InvalidTask(
        phrase(
            "action: %(value)s is not recorded%(hint)s; use one of %(actions)s, or a kind such as "
            "'queue'",
            value=shorten(action), hint=did_you_mean(action, names), actions=", ".join(ACTIONS),
        )
    )  # fmt: skip


def _matches(
    event: OperatorEvent, action: str | None, subject: str | None, task: str | None
) -> bool:
    return (
        (action is None or event.action == action or event.action.startswith(f"{action}."))
        and (subject is None or event.subject == subject)
        and (task is None or task in event.ids)
    )
