"""Parses the fields of queries and forms, with size limits.

The results depend only on the arguments and the language of the request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from qsync.errors import InvalidTask
from qsync.inspector import Filter
from qsync.phrase import Phrase, phrase
from qsync.state import TaskState
from qsync.value_text import shorten
from qsync.web.names import state_title
from qsync.web.translation import _, marked

T = TypeVar("T")

PAGE_SIZE: Final = 100
"""Maximum number of entries that a list shows."""

DEFAULT_LIMIT: Final = 50
"""Number of tasks that a list shows by default."""

MAX_LENGTH: Final = 300
"""Maximum number of characters that are read from a field."""

MAX_FIELDS: Final = 250

AGES: Final[Mapping[str, tuple[str, float | None, float | None]]] = {
    "": (marked("any age"), None, None),
    "1h": (marked("last hour"), None, 3600),
    "1d": (marked("last day"), None, 86_400),
    "over-1d": (marked("older than 1 day"), 86_400, None),
    "over-7d": (marked("older than 1 week"), 7 * 86_400, None),
}
"""Label, minimum age and maximum age of each choice of the age filter; ages are in seconds."""


class Fields:
    """The fields of a query or a form."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def text(self, name: str, max_length: int = MAX_LENGTH) -> str:
        """Return a field's first value, cut to `max_length` characters; "" if there is no value."""
        return next((value[:max_length] for key, value in self.pairs if key == name), "")

    def all(self, name: str, maximum: int = PAGE_SIZE) -> list[str]:
        """Return the first `maximum` values of a field, each cut to MAX_LENGTH characters."""
        return [value[:MAX_LENGTH] for key, value in self.pairs if key == name][:maximum]

    def number(self, name: str, default: int, minimum: int, maximum: int) -> int:
        """Return a whole number clamped to the bounds; the default if the text is not a number."""
        try:
            value = float(self.text(name, 40))
        except ValueError:
            return default
        return default if math.isnan(value) else int(max(minimum, min(maximum, value)))


def parse_form(body: bytes) -> Fields:
    """Parse a form as browsers send it.

    Raises InvalidTask if the form is invalid or has too many fields.
    """
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise InvalidTask(
            phrase(
                "form: must be URL-encoded ASCII with at most %(number)s fields", number=MAX_FIELDS
            )
        ) from None
    return Fields(pairs)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks a list shows: those that match all non-empty fields."""

    queue: str
    state: TaskState
    type: str = ""
    error: str = ""
    id: str = ""
    age: str = ""
    group: str = ""
    """Id of an ErrorGroup."""

    @property
    def filter(self) -> Filter | None:
        """The filter for the inspector; None if every task matches."""
        if not self.narrowed:
            return None
        _label, older, newer = AGES[self.age]
        return Filter(
            type=self.type or None,
            error=self.error or None,
            id=self.id or None,
            older_than=older,
            newer_than=newer,
            group=self.group or None,
        )

    @property
    def narrowed(self) -> bool:
        """Whether the selection has a filter other than queue and state."""
        return bool(self.type or self.error or self.id or self.age or self.group)

    @property
    def query(self) -> dict[str, str]:
        """Query parameters for a URL with this selection, without the state."""
        terms = {
            "type": self.type, "error": self.error, "id": self.id, "age": self.age,
            "group": self.group,
        }  # fmt: skip
        return {"queue": self.queue} | {name: text for name, text in terms.items() if text}

    @property
    def caption(self) -> str:
        """Title of the list of these tasks."""
        title = state_title(self.state)
        if self.queue:
            caption = _("%(state)s tasks in queue %(queue)s", state=title, queue=self.queue)
        else:
            caption = _("%(state)s tasks in all queues", state=title)
        if not self.narrowed:
            return caption
        return _("%(tasks)s %(filter)s", tasks=caption, filter=self.narrowing)

    @property
    def _id_condition(self) -> str:
        if self.error:
            return _("and whose id contains “%(text)s”", text=self.id)
        return _("whose id contains “%(text)s”", text=self.id)

    @property
    def narrowing(self) -> str:
        """Description of the filter, as the end of a list's title."""
        parts = [
            _("of type %(type)s", type=self.type) if self.type else "",
            _("whose error contains “%(text)s”", text=self.error) if self.error else "",
            self._id_condition if self.id else "",
            _("with error %(group)s", group=self.group) if self.group else "",
        ]
        text = ""
        for part in filter(None, parts):
            text = _("%(condition)s %(further)s", condition=text, further=part) if text else part
        if not self.age:
            return text
        age = _(AGES[self.age][0])
        return _("%(condition)s (%(age)s)", condition=text, age=age) if text else f"({age})"


def selection_of(fields: Fields, state: str | None = None) -> Selection:
    """Parse the selection from a query or a form. Raise InvalidTask if the state is unknown."""
    name = state or fields.text("state") or TaskState.PENDING
    try:
        known = TaskState(name)
    except ValueError:
        states = ", ".join(TaskState)
        raise InvalidTask(
            phrase("Unknown state “%(state)s”. Use one of: %(states)s.", state=name, states=states)
        ) from None
    age = fields.text("age")
    return Selection(
        queue=fields.text("queue"),
        state=known,
        type=fields.text("type").strip(),
        error=fields.text("error"),
        id=fields.text("id").strip(),
        age=age if age in AGES else "",
        group=fields.text("group", 40),
    )


@dataclass(frozen=True, slots=True)
class Sheet:
    """Position of a page in a list that the inspector returns as a whole."""

    number: int
    last: int
    total: int


def sheet_of(items: Sequence[T], fields: Fields) -> tuple[Sequence[T], Sheet]:
    """Return the page of a list that the field `page` requests, and its position."""
    last = max(1, math.ceil(len(items) / PAGE_SIZE))
    number = fields.number("page", 1, 1, last)
    return items[(number - 1) * PAGE_SIZE : number * PAGE_SIZE], Sheet(number, last, len(items))


def not_whole(field: str, text: str) -> Phrase:
    """Return the message for a field that is not a whole number."""
    return phrase("%(field)s: %(value)s is not a whole number", field=field, value=shorten(text))


def not_number(field: str, text: str) -> Phrase:
    """Return the message for a field that is not a number."""
    return phrase("%(field)s: %(value)s is not a number", field=field, value=shorten(text))


def not_seconds(field: str, text: str) -> Phrase:
    """Return the message for a field that is not a number of seconds."""
    value = shorten(text)
    return phrase("%(field)s: %(value)s is not a number of seconds", field=field, value=value)
