"""Msgpack extensions for values that msgpack has no type for. Without I/O.

An extension with code CODE contains the msgpack array `[name, data]`; `FORMS` defines the data of
each name. The extension preserves the type of a value where no annotation names the type: in a
parameter without annotation, in the payload of a `Task`, or in a result.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import NoneType
from typing import Any, Final
from uuid import UUID

import msgspec

Ext = msgspec.msgpack.Ext

CODE: Final = 1
"""Code of the extension; applications may use the other codes."""

MAX_DEPTH: Final = 64

LEAVES: Final[frozenset[type]] = frozenset({int, str, bytes, bool, float, NoneType})
"""Types that msgpack carries unchanged."""

_KEYS: Final = frozenset({int, str})

_IP: Final = (
    ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface,
    ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface,
)  # fmt: skip

TEXTS: Final = (PurePath, *_IP)
"""Types that are encoded as text for an annotated parameter, in addition to those of msgspec."""


def _iso(value: datetime | time) -> str | list[Any]:
    """Return ISO 8601 text, or text and `fold` if the value has no time zone and sets `fold`."""
    text = value.isoformat()
    return [text, value.fold] if value.fold and value.tzinfo is None else text


def _from_iso(cls: type[datetime | time], data: str | list[Any]) -> datetime | time:
    """Return the value that `_iso` encoded."""
    text, fold = (data, 0) if isinstance(data, str) else data
    return cls.fromisoformat(text).replace(fold=fold)


def _days(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


FORMS: Final[dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    # name: (type, value -> data, data -> value)
    "decimal": (Decimal, str, Decimal),
    "uuid": (UUID, str, UUID),
    "datetime": (datetime, _iso, partial(_from_iso, datetime)),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, _iso, partial(_from_iso, time)),
    "timedelta": (timedelta, _days, lambda data: timedelta(*data)),
    "bytearray": (bytearray, bytes, bytearray),
    "path": (type(Path()), str, Path),
    "pureposixpath": (PurePosixPath, str, PurePosixPath),
    "purewindowspath": (PureWindowsPath, str, PureWindowsPath),
    **{one.__name__.lower(): (one, str, one) for one in _IP},
}
_CONTAINERS: Final = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}
_DATA: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(FORMS, (str,)),
    "datetime": (str, list),
    "time": (str, list),
    "timedelta": (list,),
    "bytearray": (bytes,),
    **dict.fromkeys(_CONTAINERS, (list,)),
}
"""Types that the data may have, by name.

The constructors accept more types, e.g. `bytearray(n)`, which would allocate n bytes.
"""

_NAMES: Final = {cls: name for name, (cls, _, _) in FORMS.items()} | {
    cls: name for name, cls in _CONTAINERS.items()
}
CARRIED: Final[frozenset[type]] = frozenset({*LEAVES, *_NAMES, list, Ext})
"""Types of values that keep their type on arrival even without an annotation."""


class NotCarried(TypeError):
    """A value that msgpack cannot encode; `place` is its path in the payload, e.g. `[0]['x']`."""

    def __init__(self, why: str, place: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.why}" if self.place else self.why


def is_plain(value: Any) -> bool:
    """Return whether msgpack preserves the types of the value and of everything in it.

    Raises NotCarried when lists and dicts are nested deeper than MAX_DEPTH.
    """
    cls = type(value)
    if cls in LEAVES:
        return True
    if cls is dict:  # most payloads are flat
        if LEAVES.issuperset(map(type, value.values())) and _KEYS.issuperset(map(type, value)):
            return True
    elif cls is not list:
        return False
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        types = {*map(type, level)} - LEAVES
        if not types:
            return True
        if not types <= {list, dict}:
            return False
        deeper: list[Any] = []
        for inner in level:
            if type(inner) is list:
                deeper += inner
            elif type(inner) is dict:
                if not {*map(type, inner)} <= _KEYS:
                    return False
                deeper += inner.values()
        level = deeper
    raise NotCarried(f"it is nested deeper than {MAX_DEPTH} levels")


def tag(value: Any, *, sort: bool = False) -> Any:
    """Return a copy of the value with extensions for types that msgpack does not have.

    Records (dataclasses, structs, models) become maps, and enums become their values, so the code
    that reads them has to name the classes. `sort` puts dicts in a fixed order; sets are always in
    a fixed order. Raises NotCarried.
    """
    return _tag(value, sort, 0)


def _tag(value: Any, sort: bool, depth: int) -> Any:
    cls = type(value)
    if cls in LEAVES or cls is Ext:
        return value
    if depth > MAX_DEPTH:
        raise NotCarried(f"it is nested deeper than {MAX_DEPTH} levels")
    if cls is datetime and value.tzinfo is UTC:
        return value  # msgpack's own timestamp
    name = _NAMES.get(cls)
    if name in FORMS:
        return _ext(name, FORMS[name][1](value))
    if cls is list:
        return _items(value, sort, depth)
    if cls is dict:
        return _dict(value, sort, depth)
    if cls is tuple:
        return _ext("tuple", _items(value, sort, depth))
    if cls is set or cls is frozenset:
        return _ext(name, sorted(_items(value, sort, depth), key=encode))
    return _tag(_record(value), sort, depth + 1)


def _items(values: Any, sort: bool, depth: int) -> list[Any]:
    items = []
    for index, value in enumerate(values):
        try:
            items.append(_tag(value, sort, depth + 1))
        except NotCarried as error:
            raise NotCarried(error.why, f"[{index}]{error.place}") from None
    return items


def _dict(value: dict[Any, Any], sort: bool, depth: int) -> Any:
    plain = {*map(type, value)} <= _KEYS
    pairs = []
    for key, inner in value.items():
        try:
            pairs.append(
                (key if plain else _tag(key, sort, depth + 1), _tag(inner, sort, depth + 1))
            )
        except NotCarried as error:
            place = f"[{key!r}]" if type(key) in _KEYS else "[...]"
            raise NotCarried(error.why, place + error.place) from None
    if sort:
        pairs.sort(key=lambda pair: encode(pair[0]))
    return dict(pairs) if plain else _ext("dict", pairs)


def _record(value: Any) -> Any:
    """Return an instance of a class as a map of its fields or as a builtin value, or raise
    NotCarried."""
    cls = type(value)
    if hasattr(cls, "__pydantic_decorators__") and hasattr(value, "__pydantic_extra__"):
        return model_fields(value)
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    if hasattr(cls, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in cls.__dataclass_fields__}
    if hasattr(cls, "__attrs_attrs__"):
        return {attribute.name: getattr(value, attribute.name) for attribute in cls.__attrs_attrs__}
    if hasattr(cls, "__members__") and hasattr(value, "value"):  # an enum
        return value.value
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return list(value)
    raise NotCarried(unsupported_reason(value))


def _struct(value: msgspec.Struct) -> Any:
    config = value.__struct_config__
    fields = [
        (field.encode_name, getattr(value, field.name)) for field in msgspec.structs.fields(value)
    ]
    tagged = [] if config.tag is None else [(config.tag_field, config.tag)]
    if config.array_like:
        return [inner for _, inner in [*tagged, *fields]]
    return dict([*tagged, *((name, inner) for name, inner in fields if inner is not msgspec.UNSET)])


def model_fields(model: Any) -> Any:
    """Return all fields of a pydantic model by name, including those with `exclude=True`."""
    if getattr(type(model), "__pydantic_root_model__", False):
        return model.root
    names = type(model).model_fields
    fields = {name: value for name, value in model.__dict__.items() if name in names}
    return {**fields, **(model.__pydantic_extra__ or {})}  # without cached properties


_BASES: Final[tuple[type, ...]] = (*LEAVES - {NoneType}, *_NAMES, list)
_AS_BASE: Final[dict[type, str]] = {
    datetime: "datetime.fromisoformat(value.isoformat())",
    date: "date.fromisoformat(value.isoformat())",
    time: "time.fromisoformat(value.isoformat())",
    timedelta: "timedelta(value.days, value.seconds, value.microseconds)",
    UUID: "UUID(bytes=value.bytes)",
}
"""Code that converts a value of a subclass to its base class, for classes where `base(value)`
fails."""


def is_model(cls: type) -> bool:
    """Return whether a class is a Django model; tasks should take its primary key instead."""
    return hasattr(cls, "_meta") and hasattr(cls, "pk")


def unsupported_reason(value: object) -> str:
    """Return why msgpack cannot encode a value, and what to pass instead."""
    cls = type(value)
    name = cls.__qualname__
    for base in _BASES:
        if issubclass(cls, base):
            how = _AS_BASE.get(base, f"{base.__name__}(value)")
            return f"{name} is a subclass of {base.__name__} and cannot be encoded; pass {how}"
    if hasattr(cls, "item") and hasattr(cls, "dtype"):
        return f"a value of type {name} cannot be encoded; pass value.item() or value.tolist()"
    if is_model(cls) or name == "SimpleLazyObject":  # e.g. Django's request.user
        return f"a value of type {name} cannot be encoded; pass its primary key, value.pk"
    if cls.__name__ == "__proxy__":  # Django's lazily translated string
        return "a lazy string cannot be encoded; pass str(value)"
    return (
        f"a value of type {name} cannot be encoded; pass builtin values, or a dataclass with "
        "an annotation"
    )


encode: Final = msgspec.msgpack.Encoder().encode
_decode: Callable[[memoryview], Any]


def _ext(name: str | None, data: Any) -> Any:
    return Ext(CODE, encode([name, data]))


def revive(code: int, data: memoryview) -> Any:
    """Return the value of an extension, or an Ext if its code is unknown.

    Raise ValueError if the data are invalid.
    """
    if code != CODE:
        return Ext(code, bytes(data))
    inner = _decode(data)  # without a copy for each level of nesting
    failed = f"msgpack extension {CODE} holds no value that this version knows"
    try:
        name, content = inner
        if type(content) in _DATA[name]:
            make: Any = FORMS[name][2] if name in FORMS else _CONTAINERS[name]
            return make(content)
    except (TypeError, ValueError, ArithmeticError, LookupError):
        pass  # raise outside of `except`, since the original error may quote the value
    raise ValueError(failed)


_decode = msgspec.msgpack.Decoder(ext_hook=revive).decode
