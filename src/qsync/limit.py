"""Limits on the concurrent runs and the start rate of the tasks that name them. Without I/O.

Tasks name their limits: `stripe`, or `customer:42`, whose name is `customer` and whose value is
`42`. The rule of a name applies to each of its values separately.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from string import Formatter
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from qsync.errors import InvalidTask
from qsync.keys import NAME
from qsync.phrase import Phrase, joined, phrase, within
from qsync.suggestions import did_you_mean
from qsync.times import Duration, duration_us
from qsync.value_text import plain_text, shorten

LIMITS_LIMIT: Final = 4
"""Maximum number of limits per task."""

LIMIT_LENGTH: Final = 256
"""Maximum length of a limit with its value, in characters."""

MAX_COUNT: Final = 1_000_000
"""Maximum rate, burst and concurrency of a limit."""


class LimitRule(msgspec.Struct, frozen=True, kw_only=True):
    """The starts and concurrent runs that a limit allows. `limit_rule` checks a rule.

    rate         number of starts per `per_us` microseconds; None means any number
    burst        number of tasks that may start together after an idle period
    concurrency  number of tasks that may run at the same time; None means any number
    """

    rate: int | None = None
    per_us: int | None = None
    burst: int | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        return str(self.phrase)

    @property
    def phrase(self) -> Phrase:
        """The rule as readable text."""
        parts = []
        if self.rate is not None and self.per_us is not None:
            per = _period(self.per_us)
            parts.append(
                phrase(
                    "%(rate)s per %(per)s, %(burst)s at once",
                    rate=str(self.rate), per=per, burst=str(self.burst),
                )
            )  # fmt: skip
        if self.concurrency is not None:
            parts.append(phrase("%(number)s at a time", number=str(self.concurrency)))
        return joined(parts, "; ") if parts else phrase("unlimited")


def _period(per_us: int) -> Phrase | timedelta:
    """Return a period in the largest units that give its exact length."""
    seconds, rest = divmod(per_us, 1_000_000)
    unit = 3600 if seconds >= 86_400 else 60 if seconds >= 3600 else 1
    if rest or seconds % unit:
        return phrase("%(number)s s", number=per_us / 1_000_000 if rest else seconds)
    return timedelta(seconds=seconds)


def limit_rule(
    where: Phrase | str,
    *,
    rate: int | None = None,
    per: Duration | None = None,
    burst: int | None = None,
    concurrency: int | None = None,
) -> LimitRule:
    """Return the checked rule of a limit. InvalidTask names `where` and the wrong field.

    The default of `burst` is a tenth of the rate, at least 1.
    """
    if rate is None:
        for name, value in (("per", per), ("burst", burst)):
            if value is not None:
                why = phrase("%(field)s: %(value)s needs rate=", field=name, value=shorten(value))
                raise InvalidTask(within(where, why))
        if concurrency is None:
            why = phrase("pass rate= and per=, or concurrency=, or all three")
            raise InvalidTask(within(where, why))
        return LimitRule(concurrency=_count(within(where, "concurrency"), concurrency))
    if per is None:
        why = phrase("rate: %(value)s needs per=, e.g. per=1 for a second", value=shorten(rate))
        raise InvalidTask(within(where, why))
    rate = _count(within(where, "rate"), rate)
    per_us = duration_us(within(where, "per"), per, minimum=0.001)
    if rate > per_us:
        why = phrase(
            "rate: %(value)s in %(per)s s is more than one per microsecond", value=str(rate),
            per=shorten(per),
        )  # fmt: skip
        raise InvalidTask(within(where, why))
    return LimitRule(
        rate=rate,
        per_us=per_us,
        burst=max(1, rate // 10) if burst is None else _count(within(where, "burst"), burst),
        concurrency=(
            None if concurrency is None else _count(within(where, "concurrency"), concurrency)
        ),
    )


def check_rule(rule: LimitRule) -> LimitRule:
    """Check a rule that was created without `limit_rule`, and fill in its burst.

    Raise InvalidTask if the rule is not valid. A rule without any field allows everything.
    """
    if rule == LimitRule():
        return rule
    per_us, where = rule.per_us, "rule"
    if per_us is not None and (type(per_us) is not int or abs(per_us) >= 2**63):
        why = phrase(
            "%(field)s: %(value)s is not a whole number of microseconds",
            field=within(where, "per_us"), value=shorten(per_us),
        )  # fmt: skip
        raise InvalidTask(why)
    return limit_rule(
        where, rate=rule.rate, per=None if per_us is None else per_us / 1_000_000,
        burst=rule.burst, concurrency=rule.concurrency,
    )  # fmt: skip


def _count(field: Phrase, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s is not a whole number from %(least)s to %(most)s",
                field=field, value=shorten(value), least=1, most=str(MAX_COUNT),
            )
        )  # fmt: skip
    return value


def limit_name(limit: str) -> str:
    """Return the name of a limit: the part before its first colon."""
    return limit.partition(":")[0]


def check_limit_name(value: object) -> str:
    """Check and return the name of a limit. Raise InvalidTask if the name is not valid."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InvalidTask(
            f"limit: must be 1 to 128 of the characters A-Z, a-z, 0-9, '_', '.' and '-', not "
            f"{shorten(value)}"
        )
    return value


def check_limit(value: object, field: str = "limits") -> str:
    """Check and return a limit: a name, or a name, a colon and a value.

    Raise InvalidTask if the limit is not valid.
    """
    if not isinstance(value, str):
        raise InvalidTask(
            phrase("%(field)s: %(value)s is not a string", field=field, value=shorten(value))
        )
    if len(value) > LIMIT_LENGTH:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s has %(number)s characters, over %(most)s",
                field=field, value=shorten(value), number=str(len(value)), most=LIMIT_LENGTH,
            )
        )  # fmt: skip
    name, colon, rest = value.partition(":")
    if not NAME.fullmatch(name):
        raise InvalidTask(
            phrase(
                "%(field)s: the name in %(value)s must be 1 to 128 of the characters A-Z, a-z, "
                "0-9, '_', '.' and '-'; a colon and a value may follow",
                field=field, value=shorten(value),
            )
        )  # fmt: skip
    if colon and not rest:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s has no value after its colon",
                field=field, value=shorten(value),
            )
        )  # fmt: skip
    if colon and not rest.isprintable():
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s has unprintable characters after its colon",
                field=field, value=shorten(value),
            )
        )  # fmt: skip
    return plain_text(value)


def check_limits(limits: object) -> tuple[str, ...] | None:
    """Check and return a task's limits; None if it has none.

    Raise InvalidTask if a limit is invalid.
    """
    if limits is None:
        return None
    if not isinstance(limits, list | tuple):
        msg = f"limits: {shorten(limits)} is not a list of strings, e.g. ['stripe', 'customer:42']"
        raise InvalidTask(msg)
    if len(limits) > LIMITS_LIMIT:
        msg = (
            f"limits: {len(limits)} are more than the maximum of {LIMITS_LIMIT}: {shorten(limits)}"
        )
        raise InvalidTask(msg)
    checked = tuple(map(check_limit, limits))
    for limit in checked:
        if checked.count(limit) > 1:
            raise InvalidTask(f"limits: {shorten(limit)} is listed twice")
    return checked or None


class _Template(NamedTuple):
    """The template of a limit, such as `customer:{customer_id}`, split at its placeholders."""

    text: str
    parts: Sequence[tuple[str, str | None]]
    """Literal strings, each with the name of the parameter that follows it, or with None if none
    follows."""


class LimitTemplates:
    """The limits of a task function, with placeholders that are filled from the task's
    arguments."""

    def __init__(self, texts: Sequence[str], parameters: Iterable[str]) -> None:
        """Raise InvalidTask if a placeholder does not name a plain parameter."""
        check_limits(texts)
        names = list(parameters)
        self._templates = [_Template(text, _parts(text, names)) for text in texts]
        self.names: Sequence[str] = [limit_name(text) for text in texts]
        """Names of the limits."""

    def fill(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return the limits for these arguments.

        Raise InvalidTask if a value cannot be part of a limit.
        """
        limits = [
            "".join(
                literal + ("" if name is None else _text(template.text, name, arguments))
                for literal, name in template.parts
            )
            for template in self._templates
        ]
        for limit, template in zip(limits, self._templates, strict=True):
            if limit.endswith(":") or len(limit) > LIMIT_LENGTH or not limit.isprintable():
                check_limit(limit, _filled(template, arguments))
        return limits


_NOTHING_TO_FILL: Final = (
    "nor any other; only the arguments of an @app.task function fill placeholders, so name the "
    "limit without them, e.g. 'customer'"
)


_PLACEHOLDER: Final = re.compile(r"\{(\w+)[^{}]*\}")


def check_literal_keys(
    name: str, options: Mapping[str, Any], parameters: Iterable[str] | None
) -> None:
    """Raise InvalidTask if an option looks like a template of a limit, but is used as it is.

    `parameters` are the names that a placeholder may have, or None for any name. A key with a
    placeholder would be the same for all tasks.
    """
    known = None if parameters is None else frozenset(parameters)
    for option in ("unique_key", "fairness_key"):
        text = options.get(option)
        for field in _PLACEHOLDER.findall(text) if isinstance(text, str) else ():
            if known is None or field in known:
                raise InvalidTask(
                    f"task {name!r}: {option}: {shorten(text)}: {{{field}}} is not filled from the "
                    f'arguments; set the key for each call: .options({option}=f"...").enqueue(...)'
                )


def _parts(text: str, parameters: Sequence[str]) -> list[tuple[str, str | None]]:
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise InvalidTask(f"limits: {shorten(text)}: {error}") from None
    parts: list[tuple[str, str | None]] = []
    for literal, name, form, conversion in fields:
        if name is not None and name not in parameters:
            hint = did_you_mean(name, parameters)
            there = f"only {', '.join(parameters)}{hint}" if parameters else _NOTHING_TO_FILL
            msg = f"limits: {shorten(text)}: no parameter {shorten(name)}, {there}"
            raise InvalidTask(msg)
        if form or conversion:
            msg = f"limits: {shorten(text)}: write {{{name}}} without a conversion or a format"
            raise InvalidTask(msg)
        parts.append((literal, name))
    return parts


def _filled(template: _Template, arguments: Mapping[str, Any]) -> str:
    """Return the name of a filled template for an error message: `limits: 'c:{id}' with id=''`."""
    values = [f"{name}={shorten(arguments[name])}" for _, name in template.parts if name]
    return f"limits: {shorten(template.text)} with {', '.join(values)}"


def _text(template: str, name: str, arguments: Mapping[str, Any]) -> str:
    if name not in arguments:
        raise InvalidTask(f"limits: {shorten(template)}: argument {name!r} was not passed")
    value = arguments[name]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise InvalidTask(
            f"limits: {shorten(template)}: argument {name!r} is {shorten(value)}, which is not "
            "a string, whole number or UUID, or an enum of these"
        )
    return str(value)
