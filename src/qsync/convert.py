"""Converts msgpack to values of an annotated type: with msgspec, or with pydantic for its types.

pydantic is imported only for an annotation that contains one of its types.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec
import msgspec.inspect

from qsync import msgpack_extensions
from qsync.errors import ConfigError

Convert = Callable[[bytes | msgspec.Raw], Any]
"""A function that converts msgpack to a value of its type.

The function raises one of MISFITS if the bytes are not a value of the type; `misfit` turns the
exception into a message.
"""

MISFITS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)

as_it_is: Convert = msgspec.msgpack.Decoder(ext_hook=msgpack_extensions.revive).decode
"""The converter for values of any type."""

_GENERICS: Final = (list, dict, tuple, set, frozenset)

_RECORD_HINT: Final = (
    "a payload does not say which of them it holds; use msgspec.Struct with tag=True, or pydantic "
    "models with a discriminator"
)


class _OneOf(type):
    """Metaclass of a placeholder for a union that msgspec rejects but msgpack extensions can
    carry."""

    members: frozenset[type]

    def __instancecheck__(cls, value: object) -> bool:
        return type(value) in cls.members


def nodes(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all annotations within it, except those of a class's fields."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from nodes(inner)


def leaves(annotation: Any) -> frozenset[type]:
    """Return the types of the annotation if msgpack carries them all unchanged, else an empty set.

    If `float` is one of the types, the result also contains `int`, which `float` parameters accept.
    """
    members = _members(annotation)
    if not all(
        isinstance(member, type) and member in msgpack_extensions.LEAVES for member in members
    ):
        return frozenset()
    return frozenset({*members, int} if float in members else members)


def is_steady(annotation: Any) -> bool:
    """Return whether a plain value of this type either arrives unchanged or is rejected by the
    server."""
    if annotation is Any or annotation is object or leaves(annotation):
        return True
    if (origin := get_origin(annotation)) in (Union, UnionType, list, dict):
        inner = get_args(annotation)
        return all(map(is_steady, inner)) and not (origin is dict and not leaves(inner[0]))
    return annotation in (list, dict)


def converter(annotation: Any) -> Convert:
    """Return a converter for the annotated type.

    Raise ConfigError if no payload can hold such values.
    """
    if annotation is Any or annotation is object:
        return as_it_is
    if any(map(_is_pydantics, nodes(annotation))):
        return _by_pydantic(annotation)
    rewritten = _rewritten(annotation)
    try:
        for node in nodes(rewritten):
            _check(node)
        decode = msgspec.msgpack.Decoder(
            rewritten, dec_hook=_revive, ext_hook=msgpack_extensions.revive
        ).decode
    except TypeError as error:
        raise ConfigError(_explained(str(error))) from None
    if leaves(annotation):
        return decode

    def convert(data: bytes | msgspec.Raw) -> Any:
        try:
            return decode(data)
        except msgspec.ValidationError as error:
            failed = error
        # Replace extensions with their values and try again, since a value may match the type even
        # where its extension does not.
        try:
            return msgspec.convert(as_it_is(data), rewritten, dec_hook=_revive)
        except msgspec.ValidationError:
            raise failed from None

    return convert


def converter_of(annotation: Any) -> Convert:
    """Return the converter for the annotated type, as `converter` does, but cached."""
    try:
        return _converters(annotation)
    except TypeError:  # an annotation that is not hashable
        return converter(annotation)


@lru_cache(maxsize=1024)
def _converters(annotation: Any) -> Convert:
    return converter(annotation)


def misfit(error: Exception) -> str:
    """Return the message of one of MISFITS, without the values that it quotes."""
    text = str(error) or type(error).__name__
    place = re.search(r" - at `(\$[\w.\[\]]*)`\Z", text)
    for start in ("Invalid enum value", "Invalid value", "Object contains unknown field"):
        if text.startswith(start):
            return start + (place[0] if place else "")
    return text


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself; None becomes NoneType."""
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    return tuple(type(None) if member is None else member for member in members)


def _rewritten(annotation: Any) -> Any:
    """Return the annotation with `float` replaced by `int | float`, and with unions that msgspec
    accepts."""
    members = _members(annotation)
    if len(members) > 1:
        return _union(members)
    if annotation is float:
        return int | float
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in _GENERICS and inner:
        return origin[tuple(item if item is ... else _rewritten(item) for item in inner)]
    return annotation


def _union(members: tuple[Any, ...]) -> Any:
    """Return a union for msgspec, or a `_OneOf` when only extensions tell its types apart."""
    rewritten: Any = Union.__getitem__(tuple(map(_rewritten, members)))
    try:
        msgspec.msgpack.Decoder(rewritten, dec_hook=_revive)
    except TypeError:
        if all(
            isinstance(member, type) and member in msgpack_extensions.CARRIED for member in members
        ):
            name = " | ".join(member.__name__ for member in members)
            return _OneOf(name, (), {"members": frozenset(members)})
    return rewritten


def _explained(text: str) -> str:
    """Return msgspec's error message about a type, with advice."""
    if re.search(r"more than one (dict-like|custom|dataclass|Struct)|must be tagged", text):
        return f"{text}; {_RECORD_HINT}"
    if text.startswith("Type unions may not"):
        return (
            f"{text}; a payload does not say which of them it holds: annotate one of them, or Any, "
            "and then each value arrives with its own type"
        )
    return text


def _check(node: Any) -> None:
    """Raise TypeError for a class that neither msgspec nor this module can make from a payload."""
    if not isinstance(node, type) and get_origin(node) is None:
        return  # an argument of a Literal or an Annotated, or a list of arguments
    _check_info(msgspec.inspect.type_info(node), set())


def _check_info(info: Any, seen: set[Any]) -> None:
    """Check a msgspec type description and the fields in it, as `_check` does."""
    if isinstance(info, msgspec.inspect.CustomType):
        if _is_pydantics(info.cls):
            _validator(info.cls)
        elif not _is_ours(info.cls):
            raise TypeError(_no_type(info.cls))
    cls = getattr(info, "cls", None)
    if cls in seen:
        return
    if cls is not None:
        seen.add(cls)
    for name in getattr(info, "__struct_fields__", ()):
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            inner = part.type if isinstance(part, msgspec.inspect.Field) else part
            if isinstance(inner, msgspec.inspect.Type):
                _check_info(inner, seen)


def _no_type(cls: type) -> str:
    text = f"{cls.__qualname__} is not a type that can be made from a payload"
    if msgpack_extensions.is_model(cls):
        return f"{text}; annotate the type of its primary key, and read the object in the task"
    bases: Iterator[type] = (
        parent for parent in cls.__mro__ if parent in msgpack_extensions.CARRIED
    )
    for base in bases:
        if base is not object:
            return f"{text}; annotate {base.__name__} and create the {cls.__qualname__} in the task"
    return f"{text}; use builtin types, a dataclass, msgspec.Struct, TypedDict or pydantic model"


def _is_ours(cls: type) -> bool:
    return cls is object or isinstance(cls, _OneOf) or issubclass(cls, msgpack_extensions.TEXTS)


def _revive(cls: type, value: Any) -> Any:
    """Create a value of a class that msgspec does not know.

    Raise ValueError if the data do not match the class.
    """
    if isinstance(value, cls):  # cls is object or a _OneOf, or the value came from an extension
        return value
    if issubclass(cls, msgpack_extensions.TEXTS) and isinstance(value, str):
        return _constructed(cls, value)
    if _is_pydantics(cls):  # e.g. in a field of a dataclass
        return _validator(cls)(value)
    name = cls.__qualname__ or cls.__name__
    raise ValueError(f"Expected `{name}`, got `{type(value).__name__}`")


def _constructed(cls: type, text: str) -> Any:
    try:
        return cls(text)
    except ValueError:
        msg = f"Invalid {cls.__name__}"
    raise ValueError(msg)  # outside of `except`, since the original error quotes the value


def _is_pydantics(node: Any) -> bool:
    """Return whether a node is a pydantic class, or a pydantic constraint within an Annotated
    type."""
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
        if not isinstance(adapter.core_schema, dict):  # pydantic builds some schemas on first use
            adapter.rebuild(force=True)
    except (pydantic.PydanticUserError, NameError, TypeError) as error:
        raise ConfigError(str(error).partition("\n")[0]) from error
    names = _field_names(adapter.core_schema)
    # The payload contains the names of a model's fields, not their aliases.
    by_name = "by_name" in inspect.signature(adapter.validate_python).parameters
    options: dict[str, Any] = {"by_name": True} if by_name else {}

    def validate(value: Any) -> Any:
        try:
            return adapter.validate_python(value, **options)
        except pydantic.ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
        # Raised outside of `except`, since the original error quotes the input.
        raise ValueError("; ".join(_detail_text(detail, names) for detail in errors[:5]))

    return validate


def _field_names(schema: Any) -> set[str]:
    """Return the names of all fields in a pydantic schema.

    Raises ConfigError if the schema contains ImportString.
    """
    names: set[str] = set()
    seen: set[int] = set()
    pending = [schema]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            fields = part.get("fields", ())
            named = fields.items() if isinstance(fields, dict) else [(_name(f), f) for f in fields]
            for name, field in named:
                names.add(name)
                if isinstance(field, dict):
                    names.add(str(field.get("validation_alias")))
            pending += part.values()
        elif isinstance(part, list | tuple):
            pending += part
        elif getattr(part, "__name__", "") == "import_string" and _is_pydantics_own(part):
            raise ConfigError(
                "pydantic.ImportString imports whatever a payload names; accept a str, and look it "
                "up in a table of allowed names"
            )
    return names


def _name(field: Any) -> str:
    """Return the name of a field, which is a string or a dict in pydantic's list of fields."""
    return field if isinstance(field, str) else str(field["name"])


def _is_pydantics_own(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("pydantic.")


def _detail_text(error: Any, names: set[str]) -> str:
    """Return a pydantic error as text, without quoting the value."""
    quoting = {
        "union_tag_invalid": "Input has an unexpected tag",
        "uuid_parsing": "Input should be a valid UUID",
    }
    message = quoting.get(error["type"], error["msg"])
    steps = [
        str(step) if isinstance(step, int) or step in names else "..." for step in error["loc"]
    ]
    return f"{'.'.join(steps)}: {message}" if steps else message
