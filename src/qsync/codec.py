"""Values to bytes and back, and the envelope in which a message lies in the store.

All data in the store is msgpack; nothing is ever unpickled. An envelope is a msgpack array whose
first element is VERSION and whose second is the time of enqueue, which the store's clock fills in:
the client sends all after these two (`seal`), and the script puts HEAD and eight bytes before it.
A later minor version appends elements, which this one ignores.
"""

from __future__ import annotations

import ipaddress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

T = TypeVar("T")

VERSION: Final = 1
MAX_DEPTH: Final = 64

TEXTS: Final = (
    PurePath,
    ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface,
    ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface,
)  # fmt: skip
"""Types that are carried as their text, and made from it again."""

_KEPT: Final = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)


def _known(value: object) -> object:
    """A value that msgspec does not know, as one that it does."""
    if isinstance(value, TEXTS) or hasattr(type(value), "unicode_string"):  # URLs of pydantic
        return str(value)
    if hasattr(type(value), "__pydantic_decorators__"):  # a model
        serializer: Any = type(value).__pydantic_serializer__  # type: ignore[attr-defined]  # as above
        return serializer.to_python(
            value, mode="python", by_alias=False, round_trip=True, warnings=False
        )
    msg = f"Encoding objects of type {type(value).__qualname__} is unsupported"
    raise TypeError(msg)


_encoder = msgspec.msgpack.Encoder(enc_hook=_known)
_decode_any = msgspec.msgpack.Decoder().decode


class CodecError(ValueError):
    """The value cannot be encoded, or the bytes cannot be decoded."""


def encode(value: object) -> bytes:
    """Encode a value as msgpack; CodecError when msgpack cannot carry it."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
        msg = f"{type(value).__name__} cannot be encoded as msgpack: {error}"
        raise CodecError(msg) from error


def plain(value: object, *, sort: bool = False) -> object:
    """A copy of the value of builtin types alone; CodecError when msgpack cannot carry it.

    Paths, IP addresses and models of pydantic may be in it. `sort`: sets and dicts in one order,
    so that equal values have equal bytes.
    """
    order: Any = "deterministic" if sort else None
    try:
        return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_known, order=order)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(str(error)) from error


def decode(data: bytes, type: Any = Any) -> Any:
    """Decode msgpack and check it against a type; CodecError when it does not fit."""
    try:
        if type is Any:
            return _decode_any(data)
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        msg = str(error) or error.__class__.__name__
        raise CodecError(msg) from error


def check_depth(value: object) -> None:
    """Raise CodecError when containers are nested deeper than MAX_DEPTH."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | tuple | dict | set | frozenset)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    msg = f"the value is nested deeper than {MAX_DEPTH} levels"
    raise CodecError(msg)


def head(elements: int) -> bytes:
    """What the script puts before the stamp: an array of so many elements, VERSION, a uint64."""
    return bytes((0x90 | elements, VERSION, 0xCF))


def seal(envelope: msgspec.Struct) -> bytes:
    """Encode an array-like struct of at most 13 fields without its array header."""
    return _encoder.encode(envelope)[1:]
