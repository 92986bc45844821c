"""Messages about invalid fields of forms."""

from __future__ import annotations

from qsync.keys import shorten
from qsync.phrase import Phrase, phrase


def not_whole(field: str, text: str) -> Phrase:
    """Return that a field is not a whole number."""
    return phrase("%(field)s: %(value)s is not a whole number", field=field, value=shorten(text))


def not_number(field: str, text: str) -> Phrase:
    """Return that a field is not a number."""
    return phrase("%(field)s: %(value)s is not a number", field=field, value=shorten(text))


def not_seconds(field: str, text: str) -> Phrase:
    """Return that a field is not a number of seconds."""
    value = shorten(text)
    return phrase("%(field)s: %(value)s is not a number of seconds", field=field, value=value)
