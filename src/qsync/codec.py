"""Values to bytes and back, and the envelope in which a message lies in the store.

All data in the store is msgpack; nothing is ever unpickled. An envelope is a msgpack array whose
first element is VERSION and whose second is the time of enqueue, which the store's clock fills in:
the client sends all after these two (`seal`), and the script puts HEAD and eight bytes before it.
A later minor version appends elements, which this one ignores.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

VERSION: Final = 1
STAMP_BYTES: Final = 8
MAX_DEPTH: Final = 64

_encoder = msgspec.msgpack.Encoder()
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
