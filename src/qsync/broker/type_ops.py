"""The operations on task types: pause and resume types, and count tasks by type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qsync.broker.call import Argument, Call, queue_call, queue_query
from qsync.broker.script import load
from qsync.broker.stored_task import number
from qsync.keys import QueueKeys

PAUSED_MOST: Final = 100
"""Maximum number of types that are paused in a queue at the same time."""

TYPE_MARK: Final = "@"
"""First character of the limit for which tasks of a paused type wait; no other limit begins with
it."""


def type_limit(type: str) -> str:
    """Return the limit for which the tasks of a type wait while the type is paused."""
    return f"{TYPE_MARK}{type}"


@dataclass(frozen=True, slots=True)
class StoredPause:
    """A paused type of a queue; the note says who paused it and why."""

    type: str
    note: bytes
    paused_at_us: int
    waiting: int
    """Number of tasks that wait until the type is resumed."""


def pause_type(
    keys: QueueKeys, type: str, note: bytes, *, now_us: int | None = None
) -> Call[bool | None]:
    """Pause a task type.

    Return False if it was paused already, and None if too many types are paused.
    """
    return _pause_type(keys, type, note or b"paused", now_us)


def resume_type(keys: QueueKeys, type: str, *, now_us: int | None = None) -> Call[bool | None]:
    """Resume a task type; return False if it was not paused."""
    return _pause_type(keys, type, b"", now_us)


def _pause_type(keys: QueueKeys, type: str, note: bytes, now_us: int | None) -> Call[bool | None]:
    args = ("" if now_us is None else now_us, "", type, note, PAUSED_MOST)
    return queue_call("pause_type", keys, args, lambda reply: None if reply < 0 else bool(reply))


def paused_types(keys: QueueKeys, *, now_us: int | None = None) -> Call[list[StoredPause]]:
    """Read which types of a queue are paused."""
    script = load("paused_types")

    def decode(reply: Any) -> list[StoredPause]:
        types = []
        for name, pause, waiting in script.reply(reply)["types"]:
            at_us, _, note = pause.partition(b" ")
            types.append(
                StoredPause(
                    name.decode(errors="replace"), note, number(at_us),
                    waiting,
                )
            )  # fmt: skip
        return sorted(types, key=lambda paused: paused.type)

    return Call(script, keys.names(script.keys), ("" if now_us is None else now_us,), decode)


@dataclass(frozen=True, slots=True)
class StateSample:
    """The types of `read` tasks, which were sampled from all `total` tasks of a state."""

    total: int
    read: int
    types: dict[str, int]


@dataclass(frozen=True, slots=True)
class TypeSample:
    """The types of a queue's pending and dead tasks, and its paused types."""

    pending: StateSample
    dead: StateSample
    paused: list[str]


def sample_types(keys: QueueKeys, *, count: int) -> Call[TypeSample]:
    """Count the types of up to `count` pending and `count` dead tasks, which are sampled from the
    whole state."""

    def decode(found: dict[str, Any]) -> TypeSample:
        paused = sorted(name.decode(errors="replace") for name in found["paused"])
        return TypeSample(_sample(found["pending"]), _sample(found["dead"]), paused)

    return queue_query("sample_types", keys, (count,), decode)


def _sample(row: list[Any]) -> StateSample:
    total, read, *flat = row
    names = [name.decode(errors="replace") for name in flat[::2]]
    return StateSample(total, read, dict(zip(names, flat[1::2], strict=True)))


REPORTS_READ: Final = 200
"""Maximum number of reports that one call reads."""

MAX_REPORTS: Final = 1000
"""Maximum number of server reports on a queue that an inspector reads."""

FIELDS_READ: Final = 500
"""Maximum number of fields that one call reads."""


@dataclass(frozen=True, slots=True)
class StoredTypeStats:
    """The statistics of a queue's types, as the store holds them."""

    now_us: int
    blocks: dict[str, bytes | None]
    reports: dict[str, bytes]


def report_types(keys: QueueKeys, reports: Mapping[str, bytes]) -> Call[list[str]]:
    """Store reports, given by field; return the fields of the reports that the store already
    had."""
    args: list[Argument] = []
    for field, report in reports.items():
        args += (field, report)
    return queue_call("report_types", keys, args, _texts)


def roll_types(
    keys: QueueKeys, directory: bytes, reports: Sequence[str], fields: Mapping[str, bytes | None]
) -> Call[bool]:
    """Replace reports with fields of the statistics. Return False if another server has done so
    since the caller read the `directory`."""
    args: list[Argument] = [directory, len(reports), *reports]
    for field, block in fields.items():
        args += (field, block or b"")
    return queue_call("roll_types", keys, args, bool)


def type_stats(
    keys: QueueKeys,
    fields: Sequence[str],
    *,
    reports: int = 0,
    offset: int = 0,
    now_us: int | None = None,
) -> Call[StoredTypeStats]:
    """Read up to FIELDS_READ fields of the statistics, and some of the reports."""
    args = ("" if now_us is None else now_us, reports, offset, *fields)

    def decode(answer: dict[str, Any]) -> StoredTypeStats:
        flat = answer["reports"]
        blocks = dict(zip(fields, answer["blocks"], strict=True))
        names = _texts(flat[::2])
        held = {name: data for name, data in zip(names, flat[1::2], strict=True) if data}
        return StoredTypeStats(int(answer["now"]), blocks, held)

    return queue_query("type_stats", keys, args, decode)


def _texts(raw: Sequence[bytes]) -> list[str]:
    return [text.decode(errors="replace") for text in raw]
