"""Shows a part of a msgpack value as indented JSON, read directly from its bytes.

The cost is bounded for any input, because only the shown part is decoded. Does no I/O.
"""

from __future__ import annotations

import codecs
import math
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from qsync import codec, msgpack_extensions

TEXT_LIMIT: Final = 64 * 1024
"""Maximum number of characters in a preview, including indentation."""

DEPTH_LIMIT: Final = msgpack_extensions.MAX_DEPTH
"""Maximum nesting depth; deeper containers are shown as `…`."""

WIDTH_LIMIT: Final = 1_000
"""Maximum number of items shown per container."""

STRING_LIMIT: Final = 16 * 1024
"""Maximum number of bytes shown per string."""

STEPS: Final = 50_000
"""Maximum number of elements read, including those that are skipped."""

_SIZES: Final = {
    **dict.fromkeys((0xCC, 0xD0), 1), **dict.fromkeys((0xCD, 0xD1), 2),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 4), **dict.fromkeys((0xCB, 0xCF, 0xD3), 8),
}  # fmt: skip
"""Number of bytes that follow the first byte of a number, by first byte."""

_LENGTHS: Final = {
    0xD9: ("string", ">B"), 0xDA: ("string", ">H"), 0xDB: ("string", ">I"),
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
"""Kind of a value, and the format of the length that follows its first byte, by first byte."""


class _Full(Exception):
    """Raised when the preview has reached a limit."""


def preview(data: bytes) -> tuple[str, bool]:
    """Return the value as text, and whether the text is incomplete.

    Raises CodecError if the bytes that it reads are not valid msgpack.
    """
    writer = _Writer(data)
    try:
        writer.write(0)
        if writer.position != len(data):
            raise codec.CodecError("there are bytes after the value")
    except _Full:
        writer.parts.append(" …")
        writer.is_cut = True
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError) as error:
        raise codec.CodecError(str(error)) from error
    return "".join(writer.parts), writer.is_cut


class _Writer:
    def __init__(self, data: bytes) -> None:
        self.position = 0
        self.parts: list[str] = []
        self.is_cut = False
        self._data = data
        self._room = TEXT_LIMIT
        self._steps = STEPS

    def write(self, depth: int) -> None:
        """Write the next value."""
        kind, number, start = self._head()
        if kind == "array":
            self._container("[]", number, depth, self._item)
        elif kind == "map":
            self._container("{}", number, depth, self._pair)
        elif number > STRING_LIMIT:
            self._long(kind, number, start)
        else:
            self._put(_scalar(self._slice(start, number)))

    def _head(self) -> tuple[str, int, int]:
        """Skip the next header; return its kind, its length or count, and its offset."""
        self._steps -= 1
        if not self._steps:
            raise _Full
        start, first = self.position, self._data[self.position]
        self.position += 1
        if 0x80 <= first <= 0x9F:
            return ("map" if first < 0x90 else "array"), first & 0x0F, start
        if 0xA0 <= first <= 0xBF:
            return "string", first & 0x1F, start
        if first in _LENGTHS:
            kind, format = _LENGTHS[first]
            [number] = struct.unpack_from(format, self._data, self.position)
            self.position += struct.calcsize(format)
            return kind, number + (kind == "extension"), start
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 + (1 << (first - 0xD4)), start
        return "number", _SIZES.get(first, 0), start

    def _slice(self, start: int, length: int) -> bytes:
        """Skip a scalar and return its bytes, from the first byte on."""
        self.position += length
        if self.position > len(self._data):
            raise codec.CodecError("the bytes end within a value")
        return self._data[start : self.position]

    def _container(
        self, brackets: str, count: int, depth: int, write: Callable[[int], None]
    ) -> None:
        if not count:
            self._put(brackets)
            return
        if depth == DEPTH_LIMIT:
            self._put(f"{brackets[0]}…{brackets[1]}")
            self._skip(count * len(brackets) if brackets == "{}" else count)
            return
        self._put(brackets[0])
        for index in range(min(count, WIDTH_LIMIT)):
            self._put((",\n" if index else "\n") + "  " * (depth + 1))
            write(depth + 1)
        if count > WIDTH_LIMIT:
            rest = count - WIDTH_LIMIT
            self._put(f",\n{'  ' * (depth + 1)}… {rest:,} more")
            self._skip(rest * 2 if brackets == "{}" else rest)
        self._put("\n" + "  " * depth + brackets[1])

    def _item(self, depth: int) -> None:
        self.write(depth)

    def _pair(self, depth: int) -> None:
        begun = len(self.parts)
        self.write(depth)
        key = "".join(self.parts[begun:])
        if key.lstrip("-").isdigit():
            self.parts[begun:] = [f'"{key}"']  # JSON allows only strings as keys
        self._put(": ")
        self.write(depth)

    def _skip(self, count: int) -> None:
        """Skip `count` values."""
        self.is_cut = True
        while count:
            kind, number, start = self._head()
            count -= 1
            if kind == "array":
                count += number
            elif kind == "map":
                count += 2 * number
            else:
                self._slice(start, number)

    def _long(self, kind: str, length: int, start: int) -> None:
        """Write the beginning of a string that is too long to be shown in full."""
        begin = self.position
        self._slice(start, length)
        self.is_cut = True
        shown = self._data[begin : begin + STRING_LIMIT]
        if kind == "string":
            text = _json(codecs.getincrementaldecoder("utf-8")().decode(shown))
        else:
            text = _json(shown)
        self._put(f"{text[:-1]}…{text[-1]} ({length:,} bytes)")

    def _put(self, text: str) -> None:
        if len(text) > self._room:
            self.parts.append(text[: self._room])
            raise _Full
        self._room -= len(text)
        self.parts.append(text)


def _scalar(data: bytes) -> str:
    """Decode one scalar and write it as JSON."""
    value = codec.decode(data)
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, msgspec.msgpack.Ext):
        return f"<extension {value.code}, {len(bytes(value.data)):,} bytes>"
    return _json(value)


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return repr(value)
