"""Creates the exceptions that handlers raised in other processes, from what these replied.

The class of an exception is looked up by its name in the modules that this process has imported.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from qsync.server.process_pool_child import Raised
from qsync.server.process_pool_member import HandlerError

_KEPT_APART: Final = (asyncio.CancelledError, GeneratorExit)
"""Classes that would control the coroutine that raises them in this process."""

_TOO_GENERAL: Final = (Exception, BaseException)


def original_of(raised: Raised) -> BaseException | None:
    """Return an exception of the raised class, or of a new subclass with the same name and text.

    Return None if this process has none of the exception's classes except Exception and
    BaseException, or if the exception is a CancelledError or GeneratorExit.
    """
    error = _rebuilt(raised)
    return None if isinstance(error, _KEPT_APART) else error


def _rebuilt(raised: Raised) -> BaseException | None:
    for module, name in raised.classes:
        error_class = _find(module, name)
        if error_class in _TOO_GENERAL:
            return None
        if error_class is not None:
            exact = (module, name) == tuple(raised.classes[0])
            return _make(error_class, raised, exact=exact)
    return None


def _find(module: str, name: str) -> type[BaseException] | None:
    value: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) and issubclass(value, BaseException) else None


def _make(error_class: type[BaseException], raised: Raised, *, exact: bool) -> BaseException | None:
    """Create the exception without calling `__init__`, whose parameters are unknown; set its
    attributes."""
    try:
        error = _filled(error_class, raised)
        if exact and str(error) == raised.text:
            return error
    except BaseException:  # the program's class may raise anything
        exact = False
    try:
        text = raised.text
        names = {"__str__": lambda self: text, "__module__": raised.classes[0][0]}
        named = type(raised.name.rpartition(".")[2], (error_class,), names)
        return _filled(named, raised)
    except BaseException:
        return None


def _filled(error_class: type[BaseException], raised: Raised) -> BaseException:
    args: tuple[Any, ...] = tuple(raised.args)
    if issubclass(error_class, BaseExceptionGroup):
        args = (raised.args[0], [_rebuilt(part) or _other(part) for part in raised.exceptions])
        error: BaseException = BaseExceptionGroup.__new__(error_class, *args)
    else:
        error = error_class.__new__(error_class, *args)
    error.args = args
    for name, value in raised.attributes.items():
        setattr(error, name, value)
    error.traceback = raised.traceback  # type: ignore[attr-defined]
    return error


def _other(raised: Raised) -> HandlerError:
    """Return a HandlerError for an exception whose class this process does not have."""
    return HandlerError(f"{raised.name}: {raised.text}" if raised.text else raised.name)
