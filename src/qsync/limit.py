"""Limits: how many tasks that name one may run or start at a time. Pure.

A limit is named by its tasks: `stripe`, or `customer:42`, whose name is `customer` and whose value
is `42`. The rule of a name holds for each of its values on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from string import Formatter
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from qsync.errors import InvalidTask
from qsync.keys import NAME, did_you_mean, shorten
from qsync.times import Duration, duration_us

LIMITS_LIMIT: Final = 4
"""Maximum number of limits of a task."""

LIMIT_LENGTH: Final = 256
"""Maximum length of a limit with its value, in characters."""

MAX_COUNT: Final = 1_000_000
"""Largest rate, burst and concurrency of a limit."""


class LimitRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a limit allows. `limit_rule` checks one.

    rate         starts in each `per_us` microseconds; None: any number
    burst        starts at once after a time without any
    concurrency  tasks that run at the same time; None: any number
    """

    rate: int | None = None
    per_us: int | None = None
    burst: int | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.rate is not None and self.per_us is not None:
            per = f"{self.per_us / 1_000_000:g} s"
            parts.append(f"{self.rate} per {per}, {self.burst} at once")
        if self.concurrency is not None:
            parts.append(f"{self.concurrency} at a time")
        return "; ".join(parts) or "unlimited"


def limit_rule(
    where: str,
    *,
    rate: int | None = None,
    per: Duration | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
) -> LimitRule:
    """Return the checked rule of a limit. InvalidTask names the field that is wrong, and `where`.

    The default of `burst` is a tenth of the rate, at least 1.
    """
    if rate is None:
        for name, value in (("per", per), ("burst", burst)):
            if value is not None:
                raise InvalidTask(f"{where}: {name}: {shorten(value)} needs rate=")
        if concurrency is None:
            raise InvalidTask(f"{where}: give rate= and per=, concurrency=, or all of them")
        return LimitRule(concurrency=_count(f"{where}: concurrency", concurrency))
    if per is None:
        raise InvalidTask(f"{where}: rate: {shorten(rate)} needs per=, e.g. per=1 for a second")
    rate, per_us = _count(f"{where}: rate", rate), duration_us(f"{where}: per", per, least=0.001)
    if rate > per_us:
        raise InvalidTask(f"{where}: rate: {rate} in {shorten(per)} s is over one a microsecond")
    return LimitRule(
        rate=rate,
        per_us=per_us,
        burst=max(1, rate // 10) if burst is None else _count(f"{where}: burst", burst),
        concurrency=None if concurrency is None else _count(f"{where}: concurrency", concurrency),
    )


def _count(field: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise InvalidTask(f"{field}: {shorten(value)} is not a whole number from 1 to {MAX_COUNT}")
    return value


def limit_name(limit: str) -> str:
    """Return the name of a limit: what stands before its first colon."""
    return limit.partition(":")[0]


def check_limit_name(value: object) -> str:
    """Return the name of a limit. Raise InvalidTask if it is not valid."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        msg = (
            f"limit: {shorten(value)} is not 1 to 128 of the characters A-Z, a-z, 0-9, '_', '.' "
            "and '-'"
        )
        raise InvalidTask(msg)
    return value


def check_limit(value: object, field: str = "limits") -> str:
    """Return a limit: a name, or a name, a colon and a value.

    Raises InvalidTask if it is not valid.
    """
    if not isinstance(value, str):
        raise InvalidTask(f"{field}: {shorten(value)} is not a text")
    if len(value) > LIMIT_LENGTH:
        msg = f"{field}: {shorten(value)} has {len(value)} characters, over {LIMIT_LENGTH}"
        raise InvalidTask(msg)
    name, colon, rest = value.partition(":")
    if not NAME.fullmatch(name):
        msg = (
            f"{field}: the name of {shorten(value)} is not 1 to 128 of the characters A-Z, a-z, "
            "0-9, '_', '.' and '-', before a colon and a value if it has one"
        )
        raise InvalidTask(msg)
    if colon and not (rest and rest.isprintable()):
        what = "characters that cannot be printed" if rest else "no value"
        raise InvalidTask(f"{field}: {shorten(value)} has {what} after its colon")
    return value


def check_limits(limits: object) -> tuple[str, ...] | None:
    """Return the limits of a task; None without any. Raise InvalidTask if one is wrong."""
    if limits is None:
        return None
    if not isinstance(limits, list | tuple):
        msg = f"limits: {shorten(limits)} is not a list of texts, e.g. ['stripe', 'customer:42']"
        raise InvalidTask(msg)
    if len(limits) > LIMITS_LIMIT:
        msg = f"limits: {len(limits)} of them are over {LIMITS_LIMIT}: {shorten(limits)}"
        raise InvalidTask(msg)
    checked = tuple(map(check_limit, limits))
    for limit in checked:
        if checked.count(limit) > 1:
            raise InvalidTask(f"limits: {shorten(limit)} is there twice")
    return checked or None


class _Template(NamedTuple):
    """The template of a limit, such as `customer:{customer_id}`, split at its placeholders."""

    text: str
    parts: Sequence[tuple[str, str | None]]
    """Literal texts, each with the name of the parameter after it, if there is one."""


class LimitTemplates:
    """The limits of a task function, which its arguments complete."""

    def __init__(self, texts: Sequence[str], parameters: Iterable[str]) -> None:
        """Raise InvalidTask for a placeholder that is no parameter, or no plain one."""
        check_limits(texts)
        known = list(parameters)
        self._templates = [_Template(text, _parts(text, known)) for text in texts]
        self.names: Sequence[str] = [limit_name(text) for text in texts]
        """Names of the limits."""

    @property
    def are_filled(self) -> bool:
        """Whether a limit has a placeholder."""
        return any(name for template in self._templates for _, name in template.parts)

    def fill(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return the limits for these arguments. Raise InvalidTask if a value cannot be used."""
        return [
            "".join(
                literal + ("" if name is None else _text(template.text, name, arguments))
                for literal, name in template.parts
            )
            for template in self._templates
        ]


def _parts(text: str, known: Sequence[str]) -> list[tuple[str, str | None]]:
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise InvalidTask(f"limits: {shorten(text)}: {error}") from None
    parts: list[tuple[str, str | None]] = []
    for literal, name, form, conversion in fields:
        if name is not None and name not in known:
            hint = did_you_mean(name, known)
            there = ", ".join(known) or "none"
            msg = f"limits: {shorten(text)}: no parameter {shorten(name)}, only {there}{hint}"
            raise InvalidTask(msg)
        if form or conversion:
            msg = f"limits: {shorten(text)}: write {{{name}}} without a conversion or a format"
            raise InvalidTask(msg)
        parts.append((literal, name))
    return parts


def _text(template: str, name: str, arguments: Mapping[str, Any]) -> str:
    if name not in arguments:
        raise InvalidTask(f"limits: {shorten(template)}: argument {name!r} is not given")
    value = arguments[name]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        msg = (
            f"limits: {shorten(template)}: argument {name!r} is {shorten(value)}, which is no "
            "text, whole number or UUID"
        )
        raise InvalidTask(msg)
    return str(value)
