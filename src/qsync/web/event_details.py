"""The details of recorded actions in the language of the request.

A record keeps a detail as English text, since the command line shows it as well. This module reads
those that qsync itself writes; what people wrote stays as it is.
"""

from __future__ import annotations

import re
from typing import Final

from qsync.bounds import Bounds, WhenFull
from qsync.limit import LimitRule
from qsync.phrase import Phrase
from qsync.schedule import every_phrase
from qsync.state import TaskState
from qsync.web.translation import STATES, _, marked, translated

TEXTS: Final = {"and run now": marked("and run now")}
"""Whole details."""

_EVERY: Final = re.compile(r"every ([0-9.]+) (d|h|min|s)")
_SECONDS: Final = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
_RULE: Final = re.compile(
    r"(?:(?P<rate>\d+) per (?P<per>[0-9.e+-]+) s, (?P<burst>\d+) at once)?(?:; )?"
    r"(?:(?P<concurrency>\d+) at a time)?"
)
_BOUNDS: Final = re.compile(
    r"(?:(?P<tasks>[\d,]+) waiting tasks?)?(?: and )?(?:(?P<bytes>[\d,]+) bytes?)?"
    r", then (?P<action>raise|drop_oldest)"
)


def event_detail(detail: str) -> str:
    """Return a detail in the language of the request."""
    if detail in TEXTS:
        return _(TEXTS[detail])
    if detail in STATES:
        return _(STATES[TaskState(detail)])
    message = _every(detail) or _rule(detail) or _bounds(detail)
    return detail if message is None else translated(message)


def _every(detail: str) -> Phrase | None:
    match = _EVERY.fullmatch(detail)
    return None if match is None else every_phrase(float(match[1]) * _SECONDS[match[2]])


def _rule(detail: str) -> Phrase | None:
    match = _RULE.fullmatch(detail) if detail else None
    if match is None:
        return None
    per = match["per"]
    rule = LimitRule(
        rate=_number(match["rate"]), burst=_number(match["burst"]),
        per_us=None if per is None else round(float(per) * 1_000_000),
        concurrency=_number(match["concurrency"]),
    )  # fmt: skip
    return rule.phrase


def _bounds(detail: str) -> Phrase | None:
    match = _BOUNDS.fullmatch(detail)
    if match is None:
        return None
    when_full: WhenFull = "drop_oldest" if match["action"] == "drop_oldest" else "raise"
    bounds = Bounds(
        max_tasks=_number(match["tasks"]), max_bytes=_number(match["bytes"]), when_full=when_full
    )
    return bounds.phrase


def _number(text: str | None) -> int | None:
    return None if text is None else int(text.replace(",", ""))
