"""Formats values for pages. Pure.

Templates escape HTML. This module escapes characters that are invisible or that change the
direction of text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup

from qsync.inspector.explain import duration
from qsync.inspector.msgpack_json import TEXT_LIMIT

_KEPT: Final = "\n\t"
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Controls, bidirectional marks, invisible spaces and joiners, and lone surrogates."""


def escape_invisible(value: Any) -> Any:
    r"""Return the value with invisible characters written as `\u202e`; markup is unchanged.

    Jinja passes all output of templates through this function.
    """
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = str(value)
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}…"
    return _INVISIBLE.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def count(number: float | None) -> str:
    """Format a number as `1,234,567`; empty if unknown."""
    return "" if number is None else f"{number:,.0f}"


def short(number: float) -> str:
    """Format a number in few characters: `987`, `12.3k`, `4.5M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * (10 if unit == "k" else 1):
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.2g}"


def seconds(value: float | None) -> str:
    """Format a duration: `0.02 s`, `4 min 10 s`; `none` for None."""
    if value is None:
        return "none"
    return "0 s" if value <= 0 else duration(value)


def size(number: int | None) -> str:
    """Format a size: `321 B`, `1.2 MiB`; empty if unknown."""
    if number is None:
        return ""
    left = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1024 or unit == "GiB":
            break
        left /= 1024
    return f"{number} B" if unit == "B" else f"{left:,.1f} {unit}"


def plural(number: int, noun: str) -> str:
    """Format a count: `1 task`, `1,234 tasks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock(at: datetime | None) -> str:
    """Format a time in UTC, to the second."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def relative(at: datetime | None) -> str:
    """Format a time as `3 min 4 s ago` or `in 2 h`, by this machine's clock."""
    if at is None:
        return ""
    left = (at - datetime.now(UTC)).total_seconds()
    if abs(left) < 1:
        return "now"
    return f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"


def percent(progress: tuple[float, float] | None) -> str:
    """Format a handler's progress: `30 %`, or the count if it gave no total."""
    if progress is None:
        return ""
    done, total = progress
    return f"{done / total:.0%}".replace("%", " %") if total > 0 else f"{done:g}"


FILTERS: Final = {
    "count": count,
    "short": short,
    "seconds": seconds,
    "size": size,
    "plural": plural,
    "clock": clock,
    "relative": relative,
    "percent": percent,
}
