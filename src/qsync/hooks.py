"""The hooks of an app: functions that are called when a task is enqueued, starts or ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar, get_args

from qsync.callbacks import NEVER_RUNS, takes, yields
from qsync.errors import ConfigError
from qsync.value_text import raised_at, shorten

F = TypeVar("F", bound=Callable[..., Any])

Event = Literal["enqueued", "started", "completed", "snoozed", "failed", "dead"]

EVENTS: Final[tuple[Event, ...]] = get_args(Event)

WITH_ERROR: Final = frozenset({"snoozed", "failed", "dead"})
"""Events whose hooks receive the error as a second argument."""

Hook = Callable[..., Any]

log: Final = logging.getLogger("qsync.hooks")


class Hooks:
    """The hooks by event, in the order in which they were added."""

    def __init__(self) -> None:
        self._by_event: dict[str, list[Hook]] = {event: [] for event in EVENTS}

    def __bool__(self) -> bool:
        return any(self._by_event.values())

    def add(self, event: object, hook: F) -> F:
        """Add a hook and return it.

        Raise ConfigError if the hook cannot take the event's arguments, or is a generator function.
        """
        hooks = self._by_event[check_event(event)]
        if yields(hook):
            raise ConfigError(f"on {event!r}: {shorten(hook)} {NEVER_RUNS}: do not yield")
        arguments = ("task", "error") if event in WITH_ERROR else ("task",)
        if not takes(hook, len(arguments)):
            parameters = ", ".join(arguments)
            raise ConfigError(
                f"on {event!r}: {shorten(hook)} is not a function ({parameters}), def or async def"
            )
        hooks.append(hook)
        return hook

    def of(self, event: Event) -> Sequence[Hook]:
        """Return the hooks of an event."""
        return self._by_event[event]

    def copy(self) -> Hooks:
        """Return a copy; hooks that are added later are not in it."""
        copied = Hooks()
        copied._by_event = {event: list(hooks) for event, hooks in self._by_event.items()}
        return copied


def check_event(event: object) -> Event:
    """Check and return the name of an event. Raise ConfigError if no event has this name."""
    for name in EVENTS:
        if event == name:
            return name
    raise ConfigError(f"on: there is no event {shorten(event)}; use one of {', '.join(EVENTS)}")


def log_failure(event: Event, hook: Hook, id: str, error: BaseException) -> None:
    """Log the error of a hook, without its text, which may contain parts of a payload."""
    name = getattr(hook, "__qualname__", None) or type(hook).__qualname__
    log.error(
        "hook %s of event %r raised %s for task %s", name, event, raised_at(error), id,
        extra={"task_id": id},
    )  # fmt: skip
