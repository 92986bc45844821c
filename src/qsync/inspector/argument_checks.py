"""Checks the arguments of an inspector's methods against their annotations.

A method sends most of its arguments to the store, so a wrong argument would otherwise raise a
Python error from inside the method, or find nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from qsync.errors import InvalidTask
from qsync.inspector.search_query import SearchQuery
from qsync.inspector.values import Filter
from qsync.limit import LimitRule
from qsync.value_text import shorten

C = TypeVar("C", bound=type)


def _is_text(value: object) -> bool:
    """Return whether a value is a string that the store accepts: without lone surrogates."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_whole_number(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(map(_is_text, value))
    )


_KINDS: Final[dict[str, tuple[str, Callable[[object], bool]]]] = {
    "str": ("a string", _is_text),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "int": ("a whole number", _is_whole_number),
    "float": ("a number", _is_number),
    "datetime": ("a datetime", lambda value: isinstance(value, datetime)),
    "Filter": ("a Filter", lambda value: isinstance(value, Filter)),
    "LimitRule": ("a LimitRule", lambda value: isinstance(value, LimitRule)),
    "SearchQuery": ("a SearchQuery", lambda value: isinstance(value, SearchQuery)),
    "Sequence[str]": ("a list of strings", _are_texts),
}
"""For each annotation, a name for this kind of argument and a function that recognizes its
values."""


def check_arguments(cls: C) -> C:
    """Make the public methods of a class raise InvalidTask for an argument of the wrong kind."""
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if not name.startswith("_") and inspect.isfunction(method):
            checked = _checked(method)
            if checked is not method:
                setattr(cls, name, checked)
    return cls


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    kinds = {}
    for name, text in method.__annotations__.items():
        annotation, _, optional = str(text).partition(" | ")
        if name != "return" and annotation in _KINDS and optional in ("", "None"):
            kinds[name] = (*_KINDS[annotation], bool(optional))
    if not kinds:
        return method

    # Read the signature at the first call, because reading the signatures of all methods at import
    # takes 4 ms.
    @functools.cache
    def signature() -> inspect.Signature:
        return inspect.signature(method)

    def check(args: Any, options: Any) -> None:
        try:
            values = signature().bind_partial(*args, **options).arguments
        except TypeError:  # the call itself raises this error
            return
        for name, value in values.items():
            kind, fits, is_optional = kinds.get(name, ("", _is_anything, False))
            if not (fits(value) or (is_optional and value is None)):
                raise InvalidTask(f"{name}: {shorten(value)} is not {kind}")

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def checked(*args: Any, **options: Any) -> Any:
            check(args, options)
            return await method(*args, **options)
    else:

        @functools.wraps(method)
        def checked(*args: Any, **options: Any) -> Any:
            check(args, options)
            return method(*args, **options)

    return checked


def _is_anything(value: object) -> bool:
    return True
