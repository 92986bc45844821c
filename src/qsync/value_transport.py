"""Prepares values of an annotated type for encoding, so that they arrive unchanged. Without I/O."""

from __future__ import annotations

import inspect
import re
from datetime import datetime, time
from decimal import Decimal
from typing import Any

import msgspec

from qsync import codec, msgpack_extensions
from qsync.convert import MISFITS, Convert, is_steady, leaves, misfit
from qsync.msgpack_extensions import model_fields


class ValueTransport:
    """Copies values of one annotated type into builtin types that arrive unchanged."""

    def __init__(self, annotation: Any, convert: Convert) -> None:
        self.leaves: frozenset[type] = leaves(annotation)
        """Types whose values need no copy and no check."""
        self._steady = is_steady(annotation)
        self._any = annotation is Any or annotation is object
        self._convert = convert
        self._annotation = annotation

    def carry(self, value: Any, *, sort: bool = False, tagged: bool = False) -> Any:
        """Return a copy made of builtin types and extensions.

        Raises CodecError if the value would not arrive unchanged.

        Dates, UUIDs and similar values become text where the annotation names their type. Without
        such an annotation, or with `tagged`, these values become extensions. `sort` puts sets and
        dicts in a fixed order.
        """
        try:
            steady = self._any or (self._steady and type(value) in (list, dict))
            if steady and msgpack_extensions.is_plain(value):
                return codec.natural(value, sort=sort)
        except msgpack_extensions.NotCarried as error:
            raise codec.CodecError(str(error)) from None
        ways = [codec.tagged, codec.natural]
        if not tagged and not self._any:
            ways.reverse()
        why = ""
        for way in ways:
            try:
                copy = way(value, sort=sort)
                changed = self._changed(value, copy)
            except codec.CodecError as error:
                changed = str(error)
            if changed is None:
                return copy
            why = why or changed
        raise codec.CodecError(why)

    def _changed(self, value: Any, copy: Any) -> str | None:
        """Return how the value would change on arrival; None if it arrives unchanged."""
        data = codec.encode_natural(copy)
        try:
            got = self._convert(msgspec.Raw(data))
        except MISFITS as error:
            return self._refusal(value, misfit(error))
        problem = difference(value, got)
        if problem is None:
            return None
        hint = ""
        if self._any:
            hint = "; annotate it with its type"
        elif " would arrive as " in problem:
            problem = re.sub(r": (\S+) would arrive as (\S+)\Z", r": expected \2, got \1", problem)
            hint = "; pass a value of exactly the annotated type"
        return f"{problem.removeprefix(': ')}{hint}"

    def _refusal(self, value: Any, why: str) -> str:
        """Return why the decoder rejects a value.

        If the value's type is the reason, name only the two types.
        """
        type_name = "None" if value is None else type(value).__qualname__
        if not re.fullmatch(r"Expected `[^`]*`, got `[^`]*`", why):
            return f"{type_name} does not match the annotation: {why}"
        annotation = self._annotation
        name = (
            annotation.__qualname__
            if isinstance(annotation, type)
            else inspect.formatannotation(annotation)
        )
        return f"expected {name}, got {type_name}"


def difference(sent: Any, got: Any) -> str | None:
    """Return where and how `got` differs from `sent`, without quoting values; None if they are
    equal."""
    cls = type(sent)
    if cls is not type(got):
        if cls in (int, bool) and type(got) is float and got == sent:
            # An int may become a float, since the numbers are equal and type checkers accept it.
            return None
        return f": {cls.__qualname__} would arrive as {type(got).__qualname__}"
    if cls is list or cls is tuple:
        return _items(sent, got)
    if cls is dict:
        return _dicts(sent, got)
    fields = _fields(sent)
    if fields is not None:
        return _records(fields, _fields(got) or {})
    return None if _equal(sent, got) else f": {cls.__qualname__} would arrive with another value"


def _equal(sent: Any, got: Any) -> bool:
    if isinstance(sent, datetime | time):
        return _mark(sent) == _mark(got)
    if isinstance(sent, Decimal):
        return bool(sent.as_tuple() == got.as_tuple())
    if isinstance(sent, set | frozenset):
        return {*map(_mark, sent)} == {*map(_mark, got)}
    if isinstance(sent, float) and sent != sent:
        return bool(got != got)
    return bool(sent == got)


def _mark(value: Any) -> tuple[type, Any]:
    """Return a key that is equal for a value and its exact copies only.

    Datetimes are compared by their ISO text: `==` ignores offsets, and treats equal times in a
    repeated hour as unequal. Without a time zone, `fold` also counts. With a time zone, the offset
    already reflects `fold`.
    """
    if isinstance(value, datetime | time):
        fold = value.fold if value.tzinfo is None else None
        return type(value), (value.isoformat(), fold)
    return type(value), value


def _items(sent: Any, got: Any) -> str | None:
    if len(sent) != len(got):
        return ": it would arrive with another length"
    for index, (one, other) in enumerate(zip(sent, got, strict=True)):
        if (problem := difference(one, other)) is not None:
            return f"[{index}]{problem}"
    return None


def _dicts(sent: dict[Any, Any], got: dict[Any, Any]) -> str | None:
    arrived = {_mark(key): value for key, value in got.items()}
    if len(sent) != len(got) or {*map(_mark, sent)} != set(arrived):
        return ": it would arrive with other keys"
    for key, value in sent.items():
        if (problem := difference(value, arrived[_mark(key)])) is not None:
            return f"[{key!r}]{problem}" if type(key) in (int, str) else f"[...]{problem}"
    return None


def _records(sent: dict[str, Any], got: dict[str, Any]) -> str | None:
    for name, value in sent.items():
        if name not in got:
            return f".{name}: it would be lost"
        if (problem := difference(value, got[name])) is not None:
            return f".{name}{problem}"
    return None


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of a record by name; None if the value is not a record."""
    cls = type(value)
    if hasattr(cls, "__pydantic_decorators__") and hasattr(value, "__pydantic_extra__"):
        inside = model_fields(value)
        fields = inside if isinstance(inside, dict) else {"root": inside}
        return {**fields, **(value.__pydantic_private__ or {})}
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in cls.__struct_fields__}
    if hasattr(cls, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in cls.__dataclass_fields__}
    if hasattr(cls, "__attrs_attrs__"):
        return {attribute.name: getattr(value, attribute.name) for attribute in cls.__attrs_attrs__}
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return dict(zip(cls._fields, value, strict=True))
    return None
