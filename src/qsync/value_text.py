"""Describes values and exceptions in messages and logs, even if their own code raises."""

from __future__ import annotations

from typing import Final

from qsync.url_masking import hide_credentials

SHOWN_LENGTH: Final = 80
URL_LIMIT: Final = 4096
"""Number of characters at the start of a value that are searched for a URL."""


def shorten(value: object) -> str:
    """Return a value as text for a message: escaped, and cut to about SHOWN_LENGTH characters.

    The credentials of a URL are replaced with dots, since a URL may be passed instead of another
    value.
    """
    try:
        text = ascii(value[:URL_LIMIT] if isinstance(value, str | bytes) else value)
        text = hide_credentials(text[:URL_LIMIT])
    except Exception:
        text = f"<{class_name(value)} that has no repr>"
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "..."


def plain_text(value: str) -> str:
    """Return a string as a plain str, since msgpack accepts no subclass of str, such as Markup."""
    return str.__str__(value)


def class_name(value: object) -> str:
    """Return the class name of a value, without calling code of its metaclass."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def class_path(value: object) -> str:
    """Return the module and qualified class name of a value; "" if they are unusable."""
    kind = type(value)
    module: object = type.__dict__["__module__"].__get__(kind)
    name: str = type.__dict__["__qualname__"].__get__(kind)
    path = f"{module}.{name}"
    valid = isinstance(module, str) and len(path) <= 256 and path.isprintable()
    return path if valid else ""


def raised_at(error: BaseException) -> str:
    """Return the class of an exception and where it was raised, without its text, which may contain
    secrets.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = ascii(class_name(error))[1:-1]
    if trace is None:
        return name
    return f"{name} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
