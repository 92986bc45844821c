"""Writes strings, numbers, durations and times in the language of the request.

Templates use `{% trans %}` and `{{ _("…") }}`; Python code uses `_("No queue %(queue)s.",
queue=name)` and `ngettext(one, many, number)`. Lower layers return a Phrase, which pages translate.
All of them look up the English text in the catalogue of the language, which `make messages` keeps
up to date. docs/design/languages.md gives the reasons.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any, Final

from qsync import store_clock
from qsync.formatting import (
    Parts,
    duration_parts,
    ordinal,
    plain_number,
    short_count_parts,
    size_parts,
    whole_units,
)
from qsync.phrase import Ordinal, Phrase, filled
from qsync.state import TaskState
from qsync.web.language import ENGLISH, current


def marked(text: str) -> str:
    """Return the text unchanged; this marks it for the catalogue, and `_` translates it later."""
    return text


def marked_plural(one: str, many: str) -> tuple[str, str]:
    """Return the texts unchanged; this marks them for the catalogue, and `ngettext` translates them
    later."""
    return one, many


def _(text: str, /, **values: Any) -> str:
    """Translate a text into the language of the request, and fill in its values."""
    return filled(current().catalogue.gettext(text), values, written)


def ngettext(one: str, many: str, number: int, /, **values: Any) -> str:
    """Translate a text with the plural form for a number, and fill in the number as `%(num)s`."""
    text = current().catalogue.ngettext(one, many, number)
    return filled(text, {"num": number, **values}, written)


def translated(text: Phrase | str) -> str:
    """Translate a phrase into the language of the request; return a text unchanged."""
    if not isinstance(text, Phrase):
        return text
    if text.plural is None:
        return _(text.template, **text.values)
    return ngettext(text.template, text.plural, text.number, **text.values)


STATES: Final = {
    TaskState.SCHEDULED: marked("scheduled"),
    TaskState.PENDING: marked("pending"),
    TaskState.LIMITED: marked("limited"),
    TaskState.ACTIVE: marked("active"),
    TaskState.RETRY: marked("retry"),
    TaskState.COMPLETED: marked("completed"),
    TaskState.DEAD: marked("dead"),
    TaskState.CANCELLED: marked("cancelled"),
}
"""Display names of a task's states."""


def written(value: Any) -> str:
    """Format a value for a text in the language of the request."""
    match value:
        case Phrase():
            return translated(value)
        case TaskState():
            return _(STATES[value])
        case bool() | str():
            return str(value)
        case int():
            return current().digits(f"{value:,}")
        case float():
            return current().digits(f"{value:g}")
        case datetime():
            return utc(value)
        case timedelta():
            return duration(value.total_seconds())
        case Ordinal():
            return ordinal(value.number) if current() is ENGLISH else written(value.number)
        case _:
            return str(value)


UNITS: Final = {
    "d": marked("%(number)s d"),
    "h": marked("%(number)s h"),
    "min": marked("%(number)s min"),
    "s": marked("%(number)s s"),
    "ms": marked("%(number)s ms"),
    "B": marked("%(number)s B"),
    "KiB": marked("%(number)s KiB"),
    "MiB": marked("%(number)s MiB"),
    "GiB": marked("%(number)s GiB"),
    "k": marked("%(number)sk"),
    "M": marked("%(number)sM"),
    "G": marked("%(number)sG"),
}

MONTHS: Final = (
    marked("Jan"), marked("Feb"), marked("Mar"), marked("Apr"), marked("May"), marked("Jun"),
    marked("Jul"), marked("Aug"), marked("Sep"), marked("Oct"), marked("Nov"), marked("Dec"),
)  # fmt: skip


def _with_unit(number: str, unit: str) -> str:
    digits = current().digits(number)
    return _(UNITS[unit], number=digits) if unit else digits


def _in_units(parts: Parts) -> str:
    return " ".join(_with_unit(number, unit) for number, unit in parts)


def duration(seconds: float) -> str:
    """Return a duration in its largest two units."""
    return _in_units(duration_parts(seconds))


def seconds(value: float | None) -> str:
    """Return a duration in its largest two units; `none` for None."""
    if value is None:
        return _("none")
    return _with_unit("0", "s") if value <= 0 else duration(value)


def coarse(value: float) -> str:
    """Return a duration in its largest unit."""
    return _with_unit("0", "s") if value <= 0 else _in_units(duration_parts(value)[:1])


def relative(time: datetime | None) -> str:
    """Return a time relative to now, by the store's clock; empty if unknown."""
    if time is None:
        return ""
    seconds = (time - store_clock.now()).total_seconds()
    if round(abs(seconds)) < 1:
        return _("now")
    length = _in_units(whole_units(abs(seconds)))
    return _("in %(length)s", length=length) if seconds > 0 else _("%(length)s ago", length=length)


def utc(time: datetime | None) -> str:
    """Return a time in UTC, to the second; empty if unknown."""
    if time is None:
        return ""
    return f"{date_and_time(time)} UTC"


def date_and_time(time: datetime) -> str:
    """Return a time in its own time zone, to the second."""
    year, month, day, clock = f"{time:%Y %m %d %H:%M:%S}".split(" ")
    return _("%(year)s-%(month)s-%(day)s %(time)s", year=year, month=month, day=day, time=clock)


def day_and_month(day: date) -> str:
    """Return a day and its month, e.g. `29 Nov`."""
    number = f"{day:%d}"
    return _("%(day)s %(month)s", day=number, month=_(MONTHS[day.month - 1]))


def count(number: float | None) -> str:
    """Return a count with thousands separators; empty if unknown."""
    return "" if number is None else current().digits(f"{number:,.0f}")


def short_count(number: float) -> str:
    """Return a number in a short form, e.g. `12k`."""
    return _with_unit(*short_count_parts(number))


def size(number: int | None) -> str:
    """Return a number of bytes in a suitable unit; empty if unknown."""
    return "" if number is None else _with_unit(*size_parts(number))


def percent(progress: tuple[float, float] | None) -> str:
    """Return a handler's progress in percent, or its count if it reported no total; "" for None."""
    if progress is None:
        return ""
    done, total = progress
    if total > 0:
        return _("%(number)s%%", number=current().digits(f"{100 * done / total:.0f}"))
    return current().digits(plain_number(done))
