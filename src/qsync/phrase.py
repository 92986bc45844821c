"""Translatable user-facing text: an English template and its values. Without I/O.

    text = phrase("Queue %(queue)s is paused.", queue="mail")
    str(text)                         # the English text: for the command line, logs and exceptions
    plural_phrase("%(num)s task", "%(num)s tasks", 5)

The layers below the dashboard use English, and the dashboard translates the template, as
`qsync.web.language` describes. The templates must be literals, so that `make messages` finds them
in the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from qsync.formatting import duration, ordinal, utc_time


class Ordinal(msgspec.Struct, frozen=True):
    """A position in an order, which is written as `3rd` in English."""

    number: int


class Phrase(msgspec.Struct, frozen=True):
    """An English template with named placeholders `%(name)s`, and their values.

    A value is a string, a number, a datetime, a timedelta, an Ordinal or another Phrase; each is
    written in the form that the language uses. `plural` and `number` are set if the template has a
    plural.
    """

    template: str
    values: Mapping[str, Any] = {}
    plural: str | None = None
    number: int = 1

    def __str__(self) -> str:
        template = self.template if self.plural is None or self.number == 1 else self.plural
        return filled(template, self.values, english)


def phrase(template: str, /, **values: Any) -> Phrase:
    """Return a phrase with these values."""
    return Phrase(template, values)


def plural_phrase(one: str, many: str, number: int, /, **values: Any) -> Phrase:
    """Return a phrase that depends on a number, which replaces the placeholder `%(num)s`."""
    return Phrase(one, {"num": number, **values}, many, number)


def joined(parts: Iterable[str | Phrase], separator: str = " ") -> Phrase:
    """Join several phrases or strings into one phrase."""
    values = {f"part{number}": part for number, part in enumerate(parts)}
    return Phrase(separator.join(f"%({name})s" for name in values), values)


def within(where: str | Phrase, text: str | Phrase) -> Phrase:
    """Return a phrase with a prefix that names the place: `limit stripe: rate: ...`."""
    return joined([where, text], ": ")


def phrase_of(error: BaseException) -> Phrase | str:
    """Return the message of an exception; a Phrase if the exception was raised with one."""
    message = error.args[0] if error.args else ""
    return message if isinstance(message, Phrase) else str(error)


def filled(template: str, values: Mapping[str, Any], write: Callable[[Any], str]) -> str:
    """Return the template filled with its values, which `write` formats."""
    return template % {name: write(value) for name, value in values.items()}


def english(value: Any) -> str:
    """Format a value in English."""
    match value:
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case datetime():
            return utc_time(value)
        case timedelta():
            return duration(value.total_seconds())
        case Ordinal():
            return ordinal(value.number)
        case _:
            return str(value)
