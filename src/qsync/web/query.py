"""Parses the fields of queries and forms, with limits on their size. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from qsync.errors import InvalidTask
from qsync.inspector import Filter
from qsync.state import TaskState

T = TypeVar("T")

PAGE: Final = 100
"""Largest number of entries that a list shows."""

LIMIT: Final = 50
TEXT: Final = 300
"""Number of characters of a field that are read."""

MOST_FIELDS: Final = 250

AGES: Final[Mapping[str, tuple[str, float | None, float | None]]] = {
    "": ("of any age", None, None),
    "1h": ("of the last hour", None, 3600),
    "1d": ("of the last day", None, 86_400),
    "over-1d": ("over a day old", 86_400, None),
    "over-7d": ("over a week old", 7 * 86_400, None),
}
"""Name -> label, older than, newer than; in seconds."""


class Fields:
    """The fields of a query or a form."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def text(self, name: str, limit: int = TEXT) -> str:
        """Return the first value, cut to `limit` characters; empty if there is none."""
        return next((value[:limit] for key, value in self.pairs if key == name), "")

    def all(self, name: str, most: int = PAGE) -> list[str]:
        """Return the first `most` values, each cut to TEXT characters."""
        return [value[:TEXT] for key, value in self.pairs if key == name][:most]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a whole number clamped to the bounds; the default if it is not a number."""
        try:
            value = float(self.text(name, 40))
        except ValueError:
            return default
        return default if math.isnan(value) else int(max(least, min(most, value)))


def parse_form(body: bytes) -> Fields:
    """Parse a form as browsers send it; InvalidTask if it is invalid or has too many fields."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError:
        msg = f"form: it is not one, or has over {MOST_FIELDS} fields"
        raise InvalidTask(msg) from None
    return Fields(pairs)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Selects the tasks of a list: those that match all non-empty fields."""

    queue: str
    state: TaskState
    type: str = ""
    error: str = ""
    id: str = ""
    age: str = ""

    @property
    def filter(self) -> Filter | None:
        """The filter for the inspector; None if every task matches."""
        if not self.narrowed:
            return None
        _, older, newer = AGES[self.age]
        return Filter(
            type=self.type or None,
            error=self.error or None,
            id=self.id or None,
            older_than=older,
            newer_than=newer,
        )

    @property
    def narrowed(self) -> bool:
        """Whether there is a filter, besides queue and state."""
        return bool(self.type or self.error or self.id or self.age)

    @property
    def query(self) -> dict[str, str]:
        """Query parameters of the selection, without the state."""
        given = {"type": self.type, "error": self.error, "id": self.id, "age": self.age}
        return {"queue": self.queue} | {name: text for name, text in given.items() if text}

    @property
    def place(self) -> str:
        """Name of the queue, for people."""
        return f"queue {self.queue}" if self.queue else "all queues"

    def __str__(self) -> str:
        parts = [
            f"of type {self.type}" if self.type else "",
            f"whose error contains “{self.error}”" if self.error else "",
            f"whose id contains “{self.id}”" if self.id else "",
            AGES[self.age][0] if self.age else "",
        ]
        return ", ".join(filter(None, parts))


def wanted(fields: Fields, state: str | None = None) -> Wanted:
    """Parse the selection from a query or a form; InvalidTask if the state is unknown."""
    name = state or fields.text("state") or TaskState.PENDING
    try:
        found = TaskState(name)
    except ValueError:
        msg = f"state: there is none of that name, but {', '.join(TaskState)}"
        raise InvalidTask(msg) from None
    age = fields.text("age")
    return Wanted(
        queue=fields.text("queue"),
        state=found,
        type=fields.text("type").strip(),
        error=fields.text("error"),
        id=fields.text("id").strip(),
        age=age if age in AGES else "",
    )


@dataclass(frozen=True, slots=True)
class Sheet:
    """One part of a list that the inspector returns whole."""

    number: int
    last: int
    total: int


def sheet_of(items: Sequence[T], fields: Fields) -> tuple[Sequence[T], Sheet]:
    """Return the requested part of a list, of 100 items each."""
    last = max(1, math.ceil(len(items) / PAGE))
    number = fields.number("page", 1, 1, last)
    return items[(number - 1) * PAGE : number * PAGE], Sheet(number, last, len(items))
