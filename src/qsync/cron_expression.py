"""Parses cron expressions: their fields, the matching times, and the errors in invalid ones.
Without I/O."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from qsync.errors import InvalidTask
from qsync.phrase import Phrase, phrase, plural_phrase
from qsync.url_masking import hide_credentials
from qsync.value_text import URL_LIMIT, shorten

_ANY_TIME = datetime(1970, 1, 1)  # noqa: DTZ001 - a reading of a clock
_RANGES: Final = {
    "second": phrase("0 to 59"),
    "minute": phrase("0 to 59"),
    "hour": phrase("0 to 23"),
    "day-of-month": phrase("1 to 31, L or LW"),
    "month": phrase("1 to 12, or JAN to DEC"),
    "day-of-week": phrase("0 to 7, SUN to SAT, or e.g. 5L or 1#2"),
}
"""Allowed values of each field of a cron expression, by the field's name in cronsim's errors."""
_NAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Shorthand names that other cron implementations accept, and the equivalent expressions."""


def cron_matches(expression: str, wall: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Return the wall-clock times after `wall` (or before it) that match, the nearest first.

    Raises ValueError if the expression is not valid, or has a number with thousands of digits.
    """
    # Imported here, so that programs without cron schedules start sooner.
    from cronsim import CronSim, CronSimError

    try:
        return CronSim(expression, wall, reverse)
    except CronSimError as error:
        raise ValueError(str(error)) from None


def cron_fields(expression: object) -> list[str]:
    """Return the fields of an expression. Raise InvalidTask if the expression is not valid."""
    if not isinstance(expression, str):
        raise InvalidTask(f"cron={shorten(expression)}: must be a string")
    try:
        cron_matches(expression, _ANY_TIME)
    except ValueError as error:
        why = _problem(expression.split(), str(error))
        raise InvalidTask(field_error("cron", expression, why)) from error
    return expression.split()


def field_error(field: str, value: object, why: Phrase) -> Phrase:
    """Return the text of an error about a value: the field, the value and what to do."""
    shown = shorten(value)
    if isinstance(value, str):  # may be a long cron expression
        shown = hide_credentials(repr(value[:URL_LIMIT])[:URL_LIMIT])[:200]
    return phrase("%(field)s=%(value)s: %(why)s", field=field, value=shown, why=why)


def _problem(fields: list[str], error: str) -> Phrase:
    """Return what is wrong with the fields of an expression, given cronsim's error."""
    if len(fields) == 1 and (expression := _NAMES.get(fields[0].lower())):
        return phrase("names are not supported; use %(expression)s", expression=repr(expression))
    if len(fields) not in (5, 6):
        return plural_phrase(
            "%(num)s field; use 5 (minute, hour, day, month, weekday) or 6 with seconds first, "
            "e.g. '0 9 * * *'",
            "%(num)s fields; use 5 (minute, hour, day, month, weekday) or 6 with seconds first, "
            "e.g. '0 9 * * *'",
            len(fields),
        )
    name = error.removeprefix("Bad ")
    if name not in _RANGES:
        return phrase("%(error)s", error=error)
    value = fields[list(_RANGES).index(name) - 6]
    if name == "day-of-month" and _is_cron(f"0 0 {value} * *"):
        return phrase(
            "%(error)s %(value)s; no month of %(months)s has that day",
            error=error, value=f"{value!r:.80}", months=f"{fields[-2]!r:.80}",
        )  # fmt: skip
    values = {"error": error, "value": f"{value!r:.80}", "range": _RANGES[name]}
    if set(value) & set("-/"):
        return phrase(
            "%(error)s %(value)s; use %(range)s; a range must ascend, "
            "and a step must be at least 1",
            **values,
        )
    return phrase("%(error)s %(value)s; use %(range)s", **values)


def _is_cron(expression: str) -> bool:
    try:
        cron_matches(expression, _ANY_TIME)
    except ValueError:
        return False
    return True
