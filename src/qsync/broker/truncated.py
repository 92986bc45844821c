"""Messages whose payload a view left out, since it was long: the rest of them decoded."""

from __future__ import annotations

from typing import Final

from qsync import codec
from qsync.task import Message, decode_message

HEAD: Final = 1024
"""How much of the beginning of a long message is there; what follows it is the end."""

_EMPTY: Final = b"\xc4\x00"
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""How many bytes of length follow the first byte of binary data and of text in msgpack."""


def decode_cut(data: bytes, length: int) -> Message:
    """The message of so many bytes of which this is there; a payload that is not is empty.

    CodecError when it is not a message of a known version, or nothing of it is there.
    """
    if len(data) == length:
        return decode_message(data)
    if not data:
        msg = f"{length} bytes are too large to look into"
        raise codec.CodecError(msg)
    try:
        begin, end = _payload(data[:HEAD])
    except IndexError as error:
        msg = "the message does not begin as one does"
        raise codec.CodecError(msg) from error
    rest = end - (length - (len(data) - HEAD))
    if rest < 0:
        msg = "the payload of the message is shorter than it says"
        raise codec.CodecError(msg)
    return decode_message(data[:begin] + _EMPTY + data[HEAD + rest :])


def _payload(head: bytes) -> tuple[int, int]:
    """Where the payload begins and ends, its length included. IndexError when there is none."""
    at = 1 + 1 + 9  # the head that the script put before it: array, version, stamp
    _, at = _run(head, at)  # the nonce
    _, at = _run(head, at)  # the type
    begin, end = _run(head, at)
    return begin, end


def _run(head: bytes, at: int) -> tuple[int, int]:
    """Where a piece of text or of binary data begins and ends."""
    kind = head[at]
    if 0xA0 <= kind <= 0xBF:
        return at, at + 1 + kind - 0xA0
    if kind not in _LENGTHS:
        raise IndexError
    size = _LENGTHS[kind]
    if at + 1 + size > len(head):
        raise IndexError
    return at, at + 1 + size + int.from_bytes(head[at + 1 : at + 1 + size])
