"""Filters and functions of the templates.

Templates escape HTML. This module escapes characters that are invisible or that change the
direction of text, and translates phrases. The results depend only on the arguments and the language
of the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup, escape

from qsync.formatting import plain_number
from qsync.inspector.msgpack_json import TEXT_LIMIT
from qsync.phrase import Phrase, filled
from qsync.web import names, translation
from qsync.web.attempts import short_server
from qsync.web.event_names import action_name, event_detail, run_made, run_outcome
from qsync.web.language import current
from qsync.web.names import state_name, state_title

_KEPT: Final = "\n\t"
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]|(?<![0-9])\xa0|\xa0(?![0-9])"
)
"""Matches control characters, bidirectional marks, invisible spaces and joiners, and lone
surrogates.

A no-break space between digits is kept, because some languages use it to separate thousands.
"""


def escape_invisible(value: Any) -> Any:
    r"""Return the value with invisible characters written as `\u202e`; markup is unchanged.

    Jinja passes all output of templates through this function. The function also translates
    phrases.
    """
    if value is None:
        return ""
    if isinstance(value, Phrase):
        value = translation.translated(value)
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = str(value)
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}…"
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub(_code, text)


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def gettext(text: str, /, **values: Any) -> Markup:
    """Translate a template's string; the string may contain HTML tags."""
    return _markup(current().catalogue.gettext(text), values)


def ngettext(one: str, many: str, number: int, /, **values: Any) -> Markup:
    """Translate a string with the plural form for a number, and fill in the number as `%(num)s`;
    the string may contain HTML tags."""
    return _markup(current().catalogue.ngettext(one, many, number), {"num": number, **values})


def with_times(value: Phrase) -> Markup:
    """Translate a phrase; the page's script shows its times in the reader's time zone."""
    catalogue, values = current().catalogue, value.values
    if value.plural is None:
        text = catalogue.gettext(value.template)
    else:
        text = catalogue.ngettext(value.template, value.plural, value.number)
        values = {"num": value.number, **values}
    return _markup(str(escape(text)), values, _escaped_with_times)


def _escaped_with_times(value: Any) -> str:
    match value:
        case Phrase():
            return with_times(value)
        case datetime():
            tag = '<time datetime="%(at)s" title="%(utc)s" data-local>%(utc)s</time>'
            return _markup(tag, {"at": value.isoformat(), "utc": translation.utc(value)})
        case _:
            return _escaped(value)


def _markup(
    text: str, values: Mapping[str, Any], write: Callable[[Any], str] | None = None
) -> Markup:
    """Fill in the values of a translated string; the values are escaped like all output."""
    if "<" not in text:  # a template may put the text into an HTML attribute
        text = text.replace('"', "&#34;")
    return Markup(filled(text, values, write or _escaped))  # noqa: S704 - from the catalogue


def _escaped(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    return escape(escape_invisible(translation.written(value)))


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "_": gettext,
    "gettext": gettext,
    "ngettext": ngettext,
}


def form_number(value: float | None) -> str:
    """Format a number for a form field; empty for None."""
    return "" if value is None else plain_number(value)


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "coarse": translation.coarse,
    "count": translation.count,
    "short_count": translation.short_count,
    "seconds": translation.seconds,
    "size": translation.size,
    "utc": translation.utc,
    "with_times": with_times,
    "relative": translation.relative,
    "percent": translation.percent,
    "number": translation.written,
    "day_and_month": translation.day_and_month,
    "action_name": action_name,
    "run_made": run_made,
    "run_outcome": run_outcome,
    "state_name": state_name,
    "short_server": short_server,
    "form_number": form_number,
    "state_title": state_title,
    "event_detail": event_detail,
    "event_name": names.event_name,
    "counter_name": names.counter_name,
    "kind_name": names.kind_name,
    "retry_delay": names.retry_delay,
}
