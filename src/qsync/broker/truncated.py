"""Decodes messages that a view has truncated. All fields except the payload are complete."""

from __future__ import annotations

from typing import Final

from qsync import codec
from qsync.message import Message, decode_message

HEAD: Final = 1024
"""Number of bytes kept from the beginning of a long message; the bytes after them are its end."""

_EMPTY: Final = b"\xc4\x00"
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Sizes, in bytes, of the length fields of binary data and text in msgpack. The keys are the first
bytes of such values."""


def decode_cut(data: bytes, length: int) -> Message:
    """Decode a message of `length` bytes. If `data` is only a part of the message, the payload is
    empty.

    Raises CodecError if `data` is empty or not a message of a known version.
    """
    if len(data) == length:
        return decode_message(data)
    if not data:
        raise codec.CodecError(f"{length} bytes are too many to decode")
    try:
        begin, end = _payload(data[:HEAD])
    except IndexError as error:
        raise codec.CodecError("the message has no valid beginning") from error
    rest = end - (length - (len(data) - HEAD))
    if rest < 0:
        raise codec.CodecError("the payload of the message is shorter than its length field says")
    return decode_message(data[:begin] + _EMPTY + data[HEAD + rest :])


def _payload(head: bytes) -> tuple[int, int]:
    """Return the start and the end of the payload, including its length field.

    Raises IndexError if the message has none.
    """
    offset = 1 + 1 + 9  # the head that the script adds: array, version, time stamp
    _, offset = _run(head, offset)  # the nonce
    _, offset = _run(head, offset)  # the type
    begin, end = _run(head, offset)
    return begin, end


def _run(head: bytes, offset: int) -> tuple[int, int]:
    """Return the start and the end of the text or binary data at `offset`."""
    kind = head[offset]
    if 0xA0 <= kind <= 0xBF:
        return offset, offset + 1 + kind - 0xA0
    if kind not in _LENGTHS:
        raise IndexError
    size = _LENGTHS[kind]
    if offset + 1 + size > len(head):
        raise IndexError
    return offset, offset + 1 + size + int.from_bytes(head[offset + 1 : offset + 1 + size])
