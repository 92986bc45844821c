"""Bytes made readable for people. Pure; what it returns is not escaped for anything."""

from __future__ import annotations

from typing import Final

import msgspec

from qsync import codec
from qsync.inspector.values import Shown

TEXT_LIMIT: Final = 64 * 1024
"""How much of a text is shown, characters."""

DUMP_LIMIT: Final = 2 * 1024
"""How much is shown of bytes that are no text."""


def show(data: bytes, *, is_value: bool) -> Shown:
    """A payload or a result for reading: a value decoded, text as it is, else a dump."""
    if is_value:
        text = _value(data)
        return _dump(data) if text is None else _cut("value", text)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _dump(data)
    if not all(char.isprintable() or char in "\n\r\t" for char in text[:TEXT_LIMIT]):
        return _dump(data)
    if text[:1] in ("{", "["):
        try:
            return _cut("json", msgspec.json.format(text, indent=2))
        except (msgspec.DecodeError, RecursionError):
            pass
    return _cut("text", text)


def _value(data: bytes) -> str | None:
    try:
        value = codec.decode(data)
    except codec.CodecError:
        return None
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass  # not everything that msgpack carries is JSON
    try:
        return repr(value)
    except RecursionError:
        return None


def _cut(kind: str, text: str) -> Shown:
    cut = len(text) > TEXT_LIMIT
    return Shown(kind=kind, text=text[:TEXT_LIMIT] if cut else text, cut=cut)  # type: ignore[arg-type]  # one of its kinds


def _dump(data: bytes) -> Shown:
    lines = [
        f"{at:06x}  {data[at : at + 16].hex(' ')}"
        for at in range(0, min(len(data), DUMP_LIMIT), 16)
    ]
    return Shown(kind="binary", text="\n".join(lines), cut=len(data) > DUMP_LIMIT)
