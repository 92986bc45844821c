"""Bounds of a queue: the maximum number of waiting tasks, and the maximum size of its messages.
Without I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, cast, get_args

import msgspec

from qsync.errors import InvalidTask
from qsync.phrase import Phrase, phrase, plural_phrase
from qsync.times import from_us
from qsync.value_text import shorten

WhenFull = Literal["raise", "drop_oldest"]
"""Action of an enqueue into a full queue: raise QueueFull, or drop the oldest waiting tasks."""

MAX_BOUND: Final = 1_000_000_000_000_000
"""Maximum value of a bound."""

NEAR: Final = 0.9
"""Share of a bound above which a queue counts as nearly full."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a queue. `bounds_of` checks them.

    max_tasks  maximum number of waiting tasks: pending, limited, scheduled or waiting for a retry
    max_bytes  maximum size of all messages of the queue, in bytes
    when_full  "raise" or "drop_oldest"
    """

    max_tasks: int | None = None
    max_bytes: int | None = None
    when_full: WhenFull = "raise"

    def __str__(self) -> str:
        return str(self.phrase)

    @property
    def phrase(self) -> Phrase:
        """The bounds as readable text."""
        parts = []
        if self.max_tasks is not None:
            parts.append(tasks_phrase(self.max_tasks))
        if self.max_bytes is not None:
            parts.append(bytes_phrase(self.max_bytes))
        if not parts:
            return phrase("no bounds")
        bounds = parts[0]
        if len(parts) == 2:
            bounds = phrase("%(tasks)s and %(bytes)s", tasks=parts[0], bytes=parts[1])
        return phrase("%(bounds)s, then %(action)s", bounds=bounds, action=self.when_full)

    @property
    def stored(self) -> str:
        """The bounds in the form that the store's scripts read."""
        tasks = "" if self.max_tasks is None else self.max_tasks
        size = "" if self.max_bytes is None else self.max_bytes
        return f"{tasks} {size} {self.when_full}"


NO_BOUNDS: Final = Bounds()


def tasks_phrase(number: int) -> Phrase:
    """Return a number of tasks as text, e.g. `5 waiting tasks`."""
    return plural_phrase("%(num)s waiting task", "%(num)s waiting tasks", number)


def bytes_phrase(number: int) -> Phrase:
    """Return a number of bytes as text, e.g. `5 bytes`."""
    return plural_phrase("%(num)s byte", "%(num)s bytes", number)


_NOTES: Final = {
    # (the queue is full, an enqueue into a full queue drops the oldest tasks)
    (True, True): phrase(
        "full: %(used)s (%(bound)s); an enqueue into a full queue drops the oldest tasks"
    ),
    (True, False): phrase("full: %(used)s (%(bound)s); an enqueue into a full queue is refused"),
    (False, True): phrase(
        "nearly full: %(used)s (%(bound)s); an enqueue into a full queue drops the oldest tasks"
    ),
    (False, False): phrase(
        "nearly full: %(used)s (%(bound)s); an enqueue into a full queue is refused"
    ),
}


MIN_WEIGHT: Final = 0.001
MAX_WEIGHT: Final = 1000.0


def check_weight(value: object) -> float:
    """Check and return the weight of a fairness key. Raise InvalidTask if the weight is invalid."""
    if type(value) not in (int, float) or not MIN_WEIGHT <= cast("float", value) <= MAX_WEIGHT:
        raise InvalidTask(
            phrase(
                "weight: %(value)s is not a number from %(least)s to %(most)s",
                value=shorten(value), least=MIN_WEIGHT, most=MAX_WEIGHT,
            )
        )  # fmt: skip
    return float(cast("float", value))


def bounds_of(
    *, max_tasks: int | None = None, max_bytes: int | None = None, when_full: WhenFull = "raise"
) -> Bounds:
    """Return the checked bounds. InvalidTask names the field that is wrong."""
    if when_full not in get_args(WhenFull):
        raise InvalidTask(
            phrase(
                "when_full: %(value)s is neither 'raise' nor 'drop_oldest'",
                value=shorten(when_full),
            )
        )
    return Bounds(
        max_tasks=_bound("max_tasks", max_tasks),
        max_bytes=_bound("max_bytes", max_bytes),
        when_full=when_full,
    )


def _bound(field: str, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_BOUND:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s is not a whole number from %(least)s to %(most)s",
                field=field, value=shorten(value), least=1, most=str(MAX_BOUND),
            )
        )  # fmt: skip
    return value


class OperatorBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds that an operator set, who set them, and when."""

    bounds: Bounds
    by: str
    at: datetime | None


class QueueBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a queue, and how close it is to them.

    program   bounds that the program sets with `app.queue`; None if it sets none
    operator  bounds that an operator sets, which override the program's; None if not set
    waiting   number of waiting tasks
    bytes     total size of the messages; None unless a bound needs it
    """

    program: Bounds | None = None
    operator: OperatorBounds | None = None
    waiting: int = 0
    bytes: int | None = None

    @property
    def in_force(self) -> Bounds:
        """The bounds in force: the operator's, else the program's."""
        return self.operator.bounds if self.operator is not None else self.program or NO_BOUNDS

    @property
    def fullest(self) -> tuple[str, int, int] | None:
        """The bound closest to being reached: its name, value and current amount.

        None if there are no bounds.
        """
        bounds = self.in_force
        rows = [
            (name, most, there)
            for name, most, there in (
                ("max_tasks", bounds.max_tasks, self.waiting),
                ("max_bytes", bounds.max_bytes, self.bytes or 0),
            )
            if most is not None
        ]
        return max(rows, key=lambda row: row[2] / row[1], default=None)

    @property
    def of_program(self) -> Bounds:
        """The program's bounds; NO_BOUNDS if the program sets none."""
        return self.program or NO_BOUNDS

    @property
    def note(self) -> str:
        """A note about a queue that is full or nearly full; empty otherwise."""
        return "" if self.phrase is None else str(self.phrase)

    @property
    def phrase(self) -> Phrase | None:
        """The note as a template and its values; None if there is no note."""
        if self.fullest is None:
            return None
        name, most, there = self.fullest
        if there < NEAR * most:
            return None
        used = phrase("%(there)s of %(tasks)s", there=there, tasks=tasks_phrase(most))
        if name == "max_bytes":
            used = phrase(
                "%(there)s of %(bytes)s of messages", there=there, bytes=bytes_phrase(most)
            )
        is_full, drops = there >= most, self.in_force.when_full == "drop_oldest"
        template = _NOTES[is_full, drops]
        return phrase(template.template, used=used, bound=name)


def full_text(queue: str, bound: str, limit: int, count: int, accepted: str = "") -> str:
    """Return the text of QueueFull. `accepted` says how many tasks of the call were accepted."""
    one, more = "task is waiting", "tasks are waiting"
    if bound == "max_bytes":
        one, more = "byte of messages is stored", "bytes of messages are stored"
    problem, advice = "is full", "try again later"
    if count < limit:
        problem = "does not have enough space for this call"
        advice = f"{advice}, enqueue fewer or smaller tasks per call"
    return (
        f"queue {queue} {problem}: {count:,} {one if count == 1 else more}, and {bound} is "
        f"{limit:,}; {accepted}{advice}, or raise the bound"
    )


def read_bounds(program: bytes, operator: bytes, waiting: int, size: int) -> QueueBounds:
    """Decode the stored bounds of a queue."""
    return QueueBounds(
        program=_read(program.decode(errors="replace")) if program else None,
        operator=_read_operator(operator.decode(errors="replace")) if operator else None,
        waiting=waiting,
        bytes=None if size < 0 else size,
    )


def _read(text: str) -> Bounds:
    tasks, size, way, *_ = [*text.split(" "), "", "", ""]
    when_full: Any = way if way in get_args(WhenFull) else "raise"
    return Bounds(
        max_tasks=int(tasks) if _is_number(tasks) else None,
        max_bytes=int(size) if _is_number(size) else None,
        when_full=when_full,
    )


def _read_operator(text: str) -> OperatorBounds:
    *_, at_us, by = [*text.split(" ", 4), "", "", "", "", ""][:5]
    return OperatorBounds(
        bounds=_read(text),
        by=by,
        at=from_us(int(at_us)) if _is_number(at_us) else None,
    )


def _is_number(text: str) -> bool:
    """Return whether `int` accepts a stored text, which may be damaged."""
    return text.isascii() and text.isdigit() and len(text) < 17
