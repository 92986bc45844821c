"""From msgpack to a value of an annotated type: by msgspec, or by pydantic where it is pydantic's.

pydantic is imported only for an annotation that has one of its types in it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, Literal, get_args, get_origin

import msgspec
import msgspec.inspect

from qsync import codec
from qsync.errors import ConfigError

Convert = Callable[[bytes | msgspec.Raw], Any]
"""Raises one of MISFITS when the bytes are no value of the type."""

MISFITS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)

as_it_is: Convert = msgspec.msgpack.Decoder().decode
"""Any value: as msgpack has it."""


def nodes(annotation: Any) -> Iterator[Any]:
    """An annotation and all annotations within it, those of a class's fields left out."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from nodes(inner)


def converter(annotation: Any) -> Convert:
    """What makes values of the annotated type; ConfigError when no payload can hold one."""
    if annotation is Any or annotation is object:
        return as_it_is
    inside = list(nodes(annotation))
    if any(map(_is_pydantics, inside)):
        return _by_pydantic(annotation)
    try:
        for node in inside:
            _check(node)
        return msgspec.msgpack.Decoder(annotation, dec_hook=_revive).decode
    except TypeError as error:
        raise ConfigError(str(error)) from None


def converter_of(annotation: Any) -> Convert:
    """As `converter`, made once for each annotation."""
    try:
        return _converters(annotation)
    except TypeError:  # one that cannot be a key
        return converter(annotation)


@lru_cache(maxsize=1024)
def _converters(annotation: Any) -> Convert:
    return converter(annotation)


def _check(node: Any) -> None:
    """TypeError when it is a class that neither msgspec nor we can make from a payload."""
    if not isinstance(node, type) and get_origin(node) is None:
        return  # an argument of a Literal or an Annotated, or a list of arguments
    found = msgspec.inspect.type_info(node)
    if isinstance(found, msgspec.inspect.CustomType) and not _is_ours(found.cls):
        msg = f"{found.cls.__qualname__} is no type that can be made from a payload"
        raise TypeError(msg)


def _is_ours(cls: type) -> bool:
    return cls is object or issubclass(cls, codec.TEXTS)


def _revive(cls: type, value: Any) -> Any:
    """What msgspec asks for classes that it does not know."""
    if cls is object:
        return value
    if issubclass(cls, codec.TEXTS) and isinstance(value, str):
        return cls(value)
    if _is_pydantics(cls):  # within a dataclass, say
        return _validator(cls)(value)
    msg = f"{cls.__qualname__} cannot be made from {type(value).__name__}"
    raise ValueError(msg)


def _is_pydantics(node: Any) -> bool:
    """Whether it is a class of pydantic's making, or a constraint for pydantic in an Annotated."""
    return "pydantic" in sys.modules and (
        hasattr(node, "__get_pydantic_core_schema__")
        or hasattr(node, "__pydantic_decorators__")
        or type(node).__module__.partition(".")[0] in ("pydantic", "annotated_types")
    )


def _by_pydantic(annotation: Any) -> Convert:
    validate = _validator(annotation)
    return lambda data: validate(as_it_is(data))


@cache
def _validator(annotation: Any) -> Callable[[Any], Any]:
    import pydantic

    try:
        adapter = pydantic.TypeAdapter(annotation)
    except (pydantic.PydanticUserError, NameError, TypeError) as error:
        raise ConfigError(str(error).partition("\n")[0]) from error
    # Models are carried by the names of their fields, whatever aliases these have.
    by_name = "by_name" in inspect.signature(adapter.validate_python).parameters
    options: dict[str, Any] = {"by_name": True} if by_name else {}

    def validate(value: Any) -> Any:
        try:
            return adapter.validate_python(value, **options)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
        # Not while the other is handled: its text has the input in it.
        raise ValueError("; ".join(_shown(one["loc"], one["msg"]) for one in found[:5]))

    return validate


def _shown(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message}" if place else message
