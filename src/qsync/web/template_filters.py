"""Formats values for pages. Pure.

Templates escape HTML. This module escapes characters that are invisible or that change the
direction of text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from markupsafe import Markup

from qsync.formatting import (
    coarse_duration,
    count,
    duration,
    percent,
    plural,
    relative,
    short_count,
    size,
    utc_time,
)
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


def seconds(value: float | None) -> str:
    """Format a duration; `none` for None."""
    if value is None:
        return "none"
    return "0 s" if value <= 0 else duration(value)


def coarse(value: float) -> str:
    """Format a duration in its largest unit."""
    return "0 s" if value <= 0 else coarse_duration(value)


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "coarse": coarse,
    "count": count,
    "short_count": short_count,
    "seconds": seconds,
    "size": size,
    "plural": plural,
    "utc": utc_time,
    "relative": relative,
    "percent": percent,
}
