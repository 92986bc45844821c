"""Makes payloads and results readable for people. Pure; the text is not escaped."""

from __future__ import annotations

import codecs
import re
from typing import Final

import msgspec

from qsync import codec
from qsync.inspector.msgpack_json import DEPTH_LIMIT, TEXT_LIMIT, preview
from qsync.inspector.values import Shown

DUMP_LIMIT: Final = 2 * 1024
"""Largest number of bytes shown of binary data."""

_BRACKETS: Final = re.compile(r"[\[{]|[\]}]")


def show(data: bytes, *, is_value: bool) -> Shown:
    """Return a payload or result in readable form: decoded if possible, as text, or as a dump.

    The cost is bounded for any input.
    """
    if is_value:
        try:
            text, cut = preview(data)
        except codec.CodecError:
            return _dump(data)
        return Shown(kind="value", text=text, cut=cut)
    try:
        # A character that is cut at the end of the part is not an error.
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = decoder.decode(data[: 4 * TEXT_LIMIT], final=len(data) <= 4 * TEXT_LIMIT)
    except UnicodeDecodeError:
        return _dump(data)
    cut = len(text) > TEXT_LIMIT
    text = text[:TEXT_LIMIT]
    if not all(char.isprintable() or char in "\n\r\t" for char in text):
        return _dump(data)
    if not cut and text[:1] in ("{", "[") and _depth(text) <= DEPTH_LIMIT:
        try:
            text = msgspec.json.format(text, indent=2)
            return Shown(kind="json", text=text[:TEXT_LIMIT], cut=len(text) > TEXT_LIMIT)
        except (msgspec.DecodeError, RecursionError):
            pass
    return Shown(kind="text", text=text, cut=cut)


def _depth(text: str) -> int:
    """Return the nesting depth of the brackets; brackets within strings count, too."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _dump(data: bytes) -> Shown:
    lines = [
        f"{start:06x}  {data[start : start + 16].hex(' ')}"
        for start in range(0, min(len(data), DUMP_LIMIT), 16)
    ]
    return Shown(kind="binary", text="\n".join(lines), cut=len(data) > DUMP_LIMIT)
