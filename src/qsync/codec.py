"""Encodes values and messages for the store, and decodes them.

All data in the store is msgpack; nothing is ever unpickled. The envelope of a message is a msgpack
array. The first element of the envelope is VERSION, and the second is the time of enqueue by the
store's clock. The client sends the elements after these two (`encode_tail`), and the script adds
`head` and the eight bytes of the time in front of them. A later minor version appends elements,
which this version ignores.
"""

from __future__ import annotations

import zlib
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from qsync import msgpack_extensions
from qsync.msgpack_extensions import TEXTS

T = TypeVar("T")

VERSION: Final = 1

_KEPT: Final = (bytes, bytearray, memoryview, date, time, timedelta, UUID, Decimal)
"""Types that msgspec encodes without loss.

They exclude datetime, which would lose its time zone.
"""


def _known(value: object) -> object:
    """Convert a value of a class unknown to msgspec to a known class, or raise TypeError."""
    if isinstance(value, TEXTS) or hasattr(type(value), "unicode_string"):  # pydantic URLs
        return str(value)
    if hasattr(type(value), "__pydantic_decorators__"):  # a model
        return msgpack_extensions.model_fields(value)
    raise TypeError(msgpack_extensions.unsupported_reason(value))


_encoder = msgspec.msgpack.Encoder(enc_hook=_known)
_decode_any = msgspec.msgpack.Decoder(ext_hook=msgpack_extensions.revive).decode


class CodecError(ValueError):
    """The value cannot be encoded, or the bytes cannot be decoded."""


def encode(value: object) -> bytes:
    """Encode a value as msgpack. Raise CodecError if msgpack cannot encode it."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
        why = _misfit(value) or str(error)
        raise CodecError(f"{type(value).__name__} cannot be encoded as msgpack: {why}") from error


def encode_value(value: object) -> bytes:
    """Encode a payload or a result so that `decode` returns it with its types.

    A record (a dataclass, a struct, a model) becomes a map of its fields; an enum becomes its
    value.
    """
    try:
        return _encoder.encode(
            value if msgpack_extensions.is_plain(value) else msgpack_extensions.tag(value)
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        why = (
            str(error)
            if isinstance(error, msgpack_extensions.NotCarried)
            else _misfit(value) or str(error)
        )
    raise CodecError(f"{type(value).__name__} cannot be encoded as msgpack: {why}")


def encode_natural(copy: object) -> bytes:
    """Encode a copy that `natural` or `tagged` returned. Dates and UUIDs become text."""
    try:
        return _encoder.encode(copy)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(_misfit(copy) or str(error)) from None


def natural(value: object, *, sort: bool = False) -> object:
    """Return a copy made of builtin types, for a reader that knows the type.

    `sort` puts sets and dicts in a fixed order, so that equal values have equal bytes.
    """
    order: Any = "deterministic" if sort else None
    try:
        return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_known, order=order)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(_misfit(value) or str(error)) from None


def tagged(value: object, *, sort: bool = False) -> object:
    """Return a copy with msgpack extensions, from which `decode` restores the types."""
    try:
        return msgpack_extensions.tag(value, sort=sort)
    except msgpack_extensions.NotCarried as error:
        raise CodecError(str(error)) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(_misfit(value) or str(error)) from None


def _misfit(value: object, place: str = "") -> str | None:
    """Return where msgpack cannot encode a value, and why; None if it can encode the whole
    value."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        text = "only integers from -2**63 to 2**64 - 1 can be encoded; pass this one as a string"
    elif isinstance(value, str) and not _is_unicode(value):
        text = "a string with lone surrogates is not valid Unicode; pass its bytes instead"
    elif isinstance(value, dict):
        inner = [(key, f"{place}[key]") for key in value]
        inner += [(item, f"{place}[{key!r}]") for key, item in value.items()]
        return next(filter(None, (_misfit(*item) for item in inner)), None)
    elif isinstance(value, list | tuple | set | frozenset):
        return next(
            filter(None, (_misfit(item, f"{place}[{index}]") for index, item in enumerate(value))),
            None,
        )
    else:
        return None
    return f"{place}: {text}" if place else text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode(data: bytes, type: Any = Any) -> Any:
    """Decode msgpack and check it against a type. Raise CodecError if the value does not match."""
    try:
        if type is Any:
            return _decode_any(data)
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(str(error) or error.__class__.__name__) from error


def encode_compressed(value: object) -> bytes:
    """Encode a value as msgpack, and compress it. Raise CodecError if msgpack cannot encode it."""
    return zlib.compress(encode(value), 9)


def decode_compressed(data: bytes, type: Any, limit: int) -> Any:
    """Decompress at most `limit` bytes of msgpack, and check them against a type.

    Raise CodecError if the data are damaged, exceed the limit, or have another type.
    """
    try:
        raw = zlib.decompressobj().decompress(data, limit)
    except zlib.error as error:
        raise CodecError(str(error)) from error
    return decode(raw, type)


def head(elements: int) -> bytes:
    """Return the bytes before the time of enqueue: array header, VERSION and uint64 marker."""
    return bytes((0x90 | elements, VERSION, 0xCF))


def encode_tail(envelope: msgspec.Struct | tuple[Any, ...]) -> bytes:
    """Encode an array-like struct, or a tuple, of at most 13 fields without its array header."""
    return _encoder.encode(envelope)[1:]
