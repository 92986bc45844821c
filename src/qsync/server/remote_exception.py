"""Rebuilds an exception that was raised in another process, without unpickling or importing.

It looks up the class by name in the modules that this process has imported. If the class is not
there, it uses the nearest base class that is.
"""

from __future__ import annotations

import sys
from typing import Any

from qsync.server.process_pool_child import Raised


def original_of(raised: Raised) -> Exception | None:
    """Return an exception of the raised class, or of a new subclass with the same name and text.

    Return None if this process knows none of its classes, or if it is not an Exception.
    """
    for module, name in raised.classes:
        error_class = _find(module, name)
        if error_class is Exception:
            return None
        if error_class is not None:
            exact = (module, name) == tuple(raised.classes[0])
            return _make(error_class, raised, exact=exact)
    return None


def _find(module: str, name: str) -> type[Exception] | None:
    value: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) and issubclass(value, Exception) else None


def _make(error_class: type[Exception], raised: Raised, *, exact: bool) -> Exception | None:
    """Make the exception without `__init__`, whose parameters are unknown; set the attributes."""
    try:
        error = _filled(error_class, raised)
        if exact and str(error) == raised.text:
            return error
    except Exception:  # the program's class may raise anything
        exact = False
    try:
        text = raised.text
        names = {"__str__": lambda self: text, "__module__": raised.classes[0][0]}
        named = type(raised.name.rpartition(".")[2], (error_class,), names)
        return _filled(named, raised)
    except Exception:
        return None


def _filled(error_class: type[Exception], raised: Raised) -> Exception:
    error = error_class.__new__(error_class, *raised.args)
    error.args = tuple(raised.args)
    for name, value in raised.attributes.items():
        setattr(error, name, value)
    error.traceback = raised.traceback  # type: ignore[attr-defined]
    return error
