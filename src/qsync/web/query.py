"""What a request asks for, bounded: whatever it says, a page stays a page. Pure."""

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
"""The most that any list shows at a time."""

LIMIT: Final = 50
TEXT: Final = 300
"""How many characters of a parameter count."""

MOST_FIELDS: Final = 250

AGES: Final[Mapping[str, tuple[str, float | None, float | None]]] = {
    "": ("of any age", None, None),
    "1h": ("of the last hour", None, 3600),
    "1d": ("of the last day", None, 86_400),
    "over-1d": ("over a day old", 86_400, None),
    "over-7d": ("over a week old", 7 * 86_400, None),
}
"""Name -> what people read, older than, newer than; seconds."""


class Fields:
    """The fields of a query or of a form."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def text(self, name: str, limit: int = TEXT) -> str:
        """The first value, cut; empty without one."""
        return next((value[:limit] for key, value in self.pairs if key == name), "")

    def all(self, name: str, most: int = PAGE) -> list[str]:
        """All values, the first so many of them."""
        return [value[:TEXT] for key, value in self.pairs if key == name][:most]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number, brought within the bounds; the default when it is none."""
        try:
            value = float(self.text(name, 40))
        except ValueError:
            return default
        return default if math.isnan(value) else int(max(least, min(most, value)))


def parse_form(body: bytes) -> Fields:
    """A form as browsers send it; InvalidTask when it is none, or has too many fields."""
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
    """Which tasks a list shows: those that fit all that is not empty."""

    queue: str
    state: TaskState
    type: str = ""
    error: str = ""
    id: str = ""
    age: str = ""

    @property
    def filter(self) -> Filter | None:
        """The same for the inspector; None when every task fits."""
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
        """Whether not every task of the state fits."""
        return bool(self.type or self.error or self.id or self.age)

    @property
    def query(self) -> dict[str, str]:
        """The parameters that say so; the state is left out."""
        given = {"type": self.type, "error": self.error, "id": self.id, "age": self.age}
        return {"queue": self.queue} | {name: text for name, text in given.items() if text}

    @property
    def place(self) -> str:
        """Which queues these are, for people."""
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
    """What a query or a form asks for; InvalidTask when there is no such state."""
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
    """A part of a list that the inspector gives whole."""

    number: int
    last: int
    total: int


def sheet_of(items: Sequence[T], fields: Fields) -> tuple[Sequence[T], Sheet]:
    """The sheet that is asked for, of 100 each."""
    last = max(1, math.ceil(len(items) / PAGE))
    number = fields.number("page", 1, 1, last)
    return items[(number - 1) * PAGE : number * PAGE], Sheet(number, last, len(items))
