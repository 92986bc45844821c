"""Rebuilds an exception that was raised in another process. Nothing is unpickled or imported.

Its class is looked up by name among the modules that this process has imported already; when it is
not there, the nearest of its bases that is.
"""

from __future__ import annotations

import sys
from typing import Any

from qsync.server.process_child import Raised


def original_of(raised: Raised) -> Exception | None:
    """An exception of the class that was raised, or of a subclass with the same name and text.

    None when this process knows none of its classes, and for what is no Exception.
    """
    for module, name in raised.classes:
        known = _find(module, name)
        if known is Exception:
            return None
        if known is not None:
            exact = (module, name) == tuple(raised.classes[0])
            return _make(known, raised, exact=exact)
    return None


def _find(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _make(known: type[Exception], raised: Raised, *, exact: bool) -> Exception | None:
    """Without `__init__`, which may want anything; arguments and attributes are set afterwards."""
    try:
        error = _filled(known, raised)
        if exact and str(error) == raised.text:
            return error
    except Exception:  # whatever a class of the program's does
        exact = False
    try:
        text = raised.text
        names = {"__str__": lambda self: text, "__module__": raised.classes[0][0]}
        named = type(raised.name.rpartition(".")[2], (known,), names)
        return _filled(named, raised)
    except Exception:
        return None


def _filled(known: type[Exception], raised: Raised) -> Exception:
    error = known.__new__(known, *raised.args)
    error.args = tuple(raised.args)
    for name, value in raised.attributes.items():
        setattr(error, name, value)
    error.traceback = raised.traceback  # type: ignore[attr-defined]
    return error
