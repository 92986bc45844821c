"""All uses of undocumented parts of typer, each with a fallback."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import typer.core

_MISSING: Any = object()


def defer_pydantic() -> None:
    """Make typer convert text, flags and defaults without pydantic. By default, typer imports
    pydantic to convert any value, which takes a third of the time of a short command.

    If the internals of the installed typer differ, typer converts all values as usual.
    """
    build = getattr(typer.core, "build_runtime_param", None)
    if build is not None:
        vars(typer.core)["build_runtime_param"] = lambda descriptor: _Converter(descriptor, build)


class _Converter:
    """Converts the values of one parameter; uses typer's converter only for values that need it."""

    def __init__(self, descriptor: Any, build: Callable[[Any], Any]) -> None:
        self._descriptor = descriptor
        self._build = build

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the converted value, as typer's own converter does."""
        converted = _converted(value, self._descriptor, param)
        if converted is not _MISSING:
            return converted
        return self._build(self._descriptor).coerce(value, param=param, ctx=ctx)


def _converted(value: Any, descriptor: Any, param: Any) -> Any:
    """Convert the value without typer; return _MISSING if typer has to convert it."""
    is_multiple = param.multiple or param.nargs == -1
    if value is None:
        return () if is_multiple else None
    annotation, info = descriptor.annotation, descriptor.parameter_info
    if is_multiple or getattr(info, "click_type", None) is not None:
        is_text = annotation == list[str] and info.parser is None
        return list(value) if is_text and all(type(part) is str for part in value) else _MISSING
    if info.parser is not None:
        try:
            return info.parser(value)
        except Exception:
            return _MISSING  # so that typer calls the parser, fails too, and prints the error
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation._value2member_map_.get(value, _MISSING) if type(value) is str else value
    if get_origin(annotation) is Literal:
        return value if value in get_args(annotation) else _MISSING
    # The command line passes numbers as text, so a value that already has the type is a default.
    is_converted = annotation in (str, int, float, bool) and type(value) is annotation
    return value if is_converted else _MISSING
