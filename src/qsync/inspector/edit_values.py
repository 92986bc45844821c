"""Converts payloads to JSON for editing and back, and records former payloads. Does no I/O."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.errors import InvalidTask
from qsync.message import EditedOptions, Message, StoredEdit
from qsync.phrase import phrase
from qsync.task import PAYLOAD_LIMIT
from qsync.value_transport import difference

OPTIONS_LIMIT: Final = 11 * 1024
"""Maximum size of a message's encoded options, in bytes. Lists of tasks read only the last 12 KiB
of a message, which must include its options."""

EDITS_KEPT: Final = 5
"""Maximum number of former payloads that a task keeps."""

_SPECIAL: Final = re.compile(r"[^\n -~]")
"""Characters that may be invisible."""

_KINDS: Final[dict[type, str]] = {
    dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number",
    bool: "true or false", type(None): "null",
}  # fmt: skip


def too_large_for_form() -> InvalidTask:
    """Return the error for a payload whose text is too long for a form."""
    return InvalidTask(phrase("The payload is too large for a form: use `qsync task edit`."))


def payload_as_json(payload: bytes, *, is_value: bool, limit: int | None = None) -> str:
    """Return a payload as text to edit: JSON, or its bytes decoded as text.

    Raises InvalidTask if the payload does not survive the round trip through text, or if the text
    has more than `limit` characters. Forms set this limit, which also bounds the cost of the check.
    """
    # A payload of over 4 * limit bytes needs over `limit` characters of JSON. Numbers give the
    # fewest characters per byte: one of 9 bytes takes at least three, with its comma or bracket.
    if limit is not None and len(payload) > 4 * limit:
        raise too_large_for_form()
    if not is_value:
        text = payload.decode(errors="replace")
        if text.encode() != payload or not all(c.isprintable() or c in "\n\t" for c in text):
            raise InvalidTask(phrase("The payload is binary data, which cannot be edited as text."))
        return text
    value = codec.decode(payload)
    try:
        data = msgspec.json.encode(value)
        if limit is not None and len(data) > limit:
            raise too_large_for_form()
        place = difference(value, msgspec.json.decode(data))
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        place = f": {error}"
    if place is not None:
        raise InvalidTask(
            phrase(
                "The payload has values that JSON cannot represent: payload%(where)s.", where=place
            )
        )
    text = msgspec.json.format(data, indent=2).decode()
    if limit is not None and len(text) > limit:  # with indentation
        raise too_large_for_form()
    return _SPECIAL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    """Return an invisible character as its JSON escape, and any other character unchanged."""
    char = match[0]
    return char if char.isprintable() else json.dumps(char)[1:-1]


def payload_from_json(text: str, *, is_value: bool) -> Any:
    """Convert an edited text back to a payload. Raise InvalidTask if the text is not JSON."""
    if not is_value:
        return text.encode()
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidTask(phrase("The payload is not JSON: %(error)s.", error=str(error))) from None


def encoded_payload(payload: Any) -> tuple[bytes, bool]:
    """Return a payload's bytes, and whether it is a value.

    Raise InvalidTask if the payload is invalid.
    """
    if isinstance(payload, bytes):
        data, is_value = payload, False
    else:
        try:
            data, is_value = codec.encode_value(payload), True
        except codec.CodecError as error:
            raise InvalidTask(phrase("payload: %(error)s", error=str(error))) from None
    if len(data) > PAYLOAD_LIMIT:
        text = phrase(
            "The payload has %(size)s bytes; %(limit)s are allowed.",
            size=len(data), limit=PAYLOAD_LIMIT,
        )  # fmt: skip
        raise InvalidTask(text)
    return data, is_value


def payload_version(payload: bytes, *, is_value: bool) -> str:
    """Return a short string that changes with the payload, so that an edit applies only to the
    payload that was shown."""
    return hashlib.sha256(payload + bytes([is_value])).hexdigest()[:32]


def check_shape(message: Message, payload: Any) -> None:
    """Raise InvalidTask if a payload is not of the same kind as the task's payload."""
    if isinstance(payload, bytes) == message.is_value:
        raise InvalidTask(
            phrase("The task's payload is a value, not bytes.")
            if message.is_value
            else phrase("The task's payload is bytes, not a value.")
        )
    if not message.is_value:
        return
    before, after = (_KINDS.get(type(item)) for item in (codec.decode(message.payload), payload))
    if before is not None and before != after:
        text = phrase(
            "The payload of this task is %(before)s, and the new one is %(after)s.",
            before=before, after=after or type(payload).__name__,
        )  # fmt: skip
        raise InvalidTask(text)


def differences(former: bytes, payload: Any, *, is_value: bool) -> list[str]:
    """Return the arguments that an edit added (`+`), removed (`-`) or changed (`~`), by name."""
    before = codec.decode(former) if is_value else former
    if not (isinstance(before, dict) and isinstance(payload, dict)):
        return [] if before == payload else ["~ payload"]
    names = sorted({*map(str, before), *map(str, payload)})
    marks = {
        name: "+" if name not in before else "-" if name not in payload else "~" for name in names
    }
    return [
        f"{mark} {name}" for name, mark in marks.items()
        if mark != "~" or before[name] != payload[name]
    ]  # fmt: skip


def with_edit(
    message: Message, options: EditedOptions, data: bytes, *, is_value: bool, at_us: int, by: str
) -> Message:
    """Return the message with another payload; the message's options keep the former payload.

    Raises InvalidTask if the former payload is too large to be kept.
    """
    if (data, is_value) == (message.payload, message.is_value):
        return message
    packed = base64.b64encode(zlib.compress(message.payload, 9)).decode()
    edit = StoredEdit(at_us, by[:100], packed, message.is_value)
    edits = [*options.edits, edit][-EDITS_KEPT:]
    while True:
        changed = msgspec.structs.replace(options, edits=tuple(edits))
        if len(codec.encode(changed)) <= OPTIONS_LIMIT:
            break
        edits = edits[1:]
        if not edits:
            raise InvalidTask(
                phrase(
                    "The former payload of %(size)s bytes is too large to be kept in the task. "
                    "Make a copy with the new payload instead.",
                    size=len(message.payload),
                )
            )
    return msgspec.structs.replace(message, payload=data, is_value=is_value, options=changed)


def former_payload(edit: StoredEdit) -> bytes:
    """Return the payload that an edit replaced; empty if its record cannot be read."""
    try:
        unpacker = zlib.decompressobj()
        return unpacker.decompress(base64.b64decode(edit.packed), PAYLOAD_LIMIT)
    except (ValueError, zlib.error):
        return b""
