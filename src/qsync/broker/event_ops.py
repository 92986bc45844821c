"""The operations that write and read the record of operators' actions. See `qsync.broker.ops`.

`lua/include/record_event.lua` describes how entries are built and merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from qsync import codec
from qsync.broker.call import Call
from qsync.broker.script import Script, load
from qsync.keys import GlobalKeys, QueueKeys

T = TypeVar("T")

MOST_EVENTS: Final = 500
"""Number of actions that a stream keeps; the scripts contain the same number."""

KEY_BYTES: Final = 8

_TEXT_BYTES: Final = {"by": 128, "subject": 256, "detail": 512}
"""Maximum length of each string in a record, in bytes; longer strings are truncated."""


class EventRecord(msgspec.Struct, frozen=True, array_like=True):
    """A caller's description of an action, which the scripts store without reading it."""

    action: str
    by: str = ""
    subject: str = ""
    detail: str = ""


class StoredEvent(NamedTuple):
    """An entry in the record of operators' actions. `record` is None if it cannot be read."""

    at_us: int
    number: int
    ids: list[str]
    key: bytes
    record: EventRecord | None


def event_bytes(record: EventRecord, key: bytes, *, grows: bool) -> bytes:
    """Return an action in the form that the scripts expect.

    `key` is KEY_BYTES random bytes. With `grows`, calls with the same key and record are steps of
    one action, and the event has the sum of their numbers. Without `grows`, calls with the same key
    and record are retries of one call.
    """
    cut = {name: _cut(getattr(record, name), limit) for name, limit in _TEXT_BYTES.items()}
    return (b"+" if grows else b"-") + key + codec.encode(replace(record, **cut))


def recorded(call: Call[T], event: bytes) -> Call[T]:
    """Return the call with this action attached; a script that changes nothing does not record
    it."""
    if "events" not in call.script.keys:
        raise ValueError(f"{call.script.name} records no actions")
    return replace(call, args=(call.args[0], event, *call.args[2:]))


def record_event(
    keys: QueueKeys | GlobalKeys,
    event: bytes,
    *,
    number: int = 1,
    ids: Sequence[str] = (),
    now_us: int | None = None,
) -> Call[int]:
    """Record an action that no other script records; it concerns one queue or none."""
    script = load("record_event")
    args = ("" if now_us is None else now_us, event, number, *ids)
    return Call(script, _names(keys, script), args, int)


def events(
    keys: QueueKeys | GlobalKeys, *, count: int = MOST_EVENTS, since_us: int | None = None
) -> Call[list[StoredEvent]]:
    """Read the last actions, the latest first; with `since_us`, only those recorded since then."""
    script = load("events")
    since = "-" if since_us is None else str(max(0, since_us) // 1000)

    def decode(reply: Any) -> list[StoredEvent]:
        rows = zip(*(reply[index::5] for index in range(5)), strict=True)
        return [
            StoredEvent(_number(at_ms), _number(number), _ids(ids), key, _record(record))
            for at_ms, number, ids, key, record in rows
        ]

    return Call(script, _names(keys, script), (count, since), decode)


def _names(keys: QueueKeys | GlobalKeys, script: Script) -> tuple[str, ...]:
    """Return the keys of a script; actions that belong to no queue have no layout to check."""
    return (keys.events,) if isinstance(keys, GlobalKeys) else keys.names(script.keys)


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) <= 16 else 0


def _ids(text: bytes) -> list[str]:
    return text.decode(errors="backslashreplace").split(" ") if text else []


def _record(data: bytes) -> EventRecord | None:
    try:
        record: EventRecord = codec.decode(data, EventRecord)
    except codec.CodecError:
        return None
    return record


def _cut(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"
