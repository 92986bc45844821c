"""Everything that is read from the store without changing it: one pure function for each script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qsync import codec
from qsync.broker.call import Argument, Call
from qsync.broker.ops import crash_count
from qsync.broker.script import load
from qsync.keys import QueueKeys
from qsync.state import TaskState
from qsync.task import (
    Message,
    Options,
    Result,
    TaskStatus,
    decode_failure,
    decode_message,
    moment,
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A task as it stands in the store, not yet decoded."""

    state: TaskState
    score: int
    message: bytes | None
    owner: str | None
    crashes: bytes | None
    failure: bytes | None
    result: bytes | None
    cancel: bytes | None
    progress: bytes | None


def show(keys: QueueKeys, ids: Sequence[str], *, messages: bool = True) -> Call[list[Shown | None]]:
    """Tasks as they stand, in order; None for one that is not in the queue.

    Without `messages`, each that is there is an empty one: they may be large, and who only waits
    for an end does not need them.
    """
    script = load("show")
    return Call(script, keys.names(script.keys), ("1" if messages else "", *ids), _shown)


def _shown(reply: Any) -> list[Shown | None]:
    return [_one(row) if row else None for row in reply]


def _one(row: list[Any]) -> Shown:
    state, score, message, owner, crashes, failure, result, cancel, progress = row
    return Shown(
        TaskState(state.decode()), int(score), message,
        None if owner is None else owner.decode(errors="backslashreplace"),
        crashes, failure, result, cancel, progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a queue holds: `states` are its tasks by state, `others` the entries of other keys.

    `stats` are its counters (qsync.keys.COUNTERS), and those of a day as `<counter>:<day number>`.
    """

    states: dict[TaskState, int]
    others: dict[str, int]
    stats: dict[str, int]


def counts(keys: QueueKeys) -> Call[Counts]:
    """How much a queue holds at this moment, and its counters; all 0 for one that is not there."""
    script = load("counts")

    def decode(reply: Any) -> Counts:
        sizes = dict(zip(script.keys, map(int, reply[0]), strict=False))
        states = {state: sizes.pop(state.value) for state in TaskState}
        pairs = zip(reply[1][::2], reply[1][1::2], strict=True)
        # A counter that somebody spoilt is left out, as if it had not begun.
        stats = {
            name.decode(errors="backslashreplace"): int(value)
            for name, value in pairs
            if value.isdigit() and len(value) < 20
        }
        return Counts(states, sizes, stats)

    return Call(script, keys.names(script.keys), (), decode)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an id stands in a queue at one moment, as an audit sees it."""

    id: str
    states: tuple[str, ...]
    beside: tuple[str, ...]
    """The hashes that have an entry of it."""
    lock: str
    """The lock that it is said to hold; empty: none."""
    holder: str
    """Who has that lock."""
    claim: str
    """A lock that names it as its holder, when the audit came by that; for an entry among the
    locks that is none, its name, with an empty id."""
    message: bytes | None
    """Given when the claim is not its lock."""


def audit(
    keys: QueueKeys, source: str, *, cursor: str = "0", count: int = 100
) -> Call[tuple[str, list[Standing]]]:
    """Go through a part of a key: the next cursor, 0 at the end, and how the ids in it stand."""
    return _audit(keys, (source, cursor, count))


def stand(keys: QueueKeys, rows: Sequence[tuple[str, str]]) -> Call[tuple[str, list[Standing]]]:
    """How ids stand: rows of an id, and of the lock that names it or an empty text."""
    return _audit(keys, ("", "0", 0, *[_raw(value) for row in rows for value in row]))


def _raw(text: str) -> bytes:
    """The bytes in the store of an id that an audit found, whatever they are."""
    return text.encode(errors="surrogateescape")


def _audit(keys: QueueKeys, args: tuple[Argument, ...]) -> Call[tuple[str, list[Standing]]]:
    script = load("audit")
    return Call(script, keys.names(script.keys), args, _standing)


def _standing(reply: Any) -> tuple[str, list[Standing]]:
    cursor, rows = reply
    found = []
    for *texts, message in rows:
        id, states, beside, lock, holder, claim = (
            text.decode(errors="surrogateescape") for text in texts
        )
        row = Standing(
            id, tuple(states.split()), tuple(beside.split()), lock, holder, claim, message or None
        )
        found.append(row)
    return cursor.decode(), found


def types(keys: QueueKeys) -> Call[tuple[dict[str, str], int]]:
    """The type of each key of the queue that is there, and the length of its list for wakes."""
    script = load("types")

    def decode(reply: Any) -> tuple[dict[str, str], int]:
        kinds = {name: kind.decode() for name, kind in zip(script.keys, reply[0], strict=True)}
        return {name: kind for name, kind in kinds.items() if kind != "none"}, int(reply[1])

    return Call(script, keys.names(script.keys), (), decode)


def message_of(shown: Shown) -> Message | None:
    """The message decoded; None when it is missing or cannot be read."""
    if shown.message is None:
        return None
    try:
        return decode_message(shown.message)
    except codec.CodecError:
        return None


def result_of(shown: Shown) -> Result | None:
    """The result record decoded; None when there is none or it cannot be read."""
    if shown.result is None:
        return None
    try:
        record: Result = codec.decode(shown.result, Result)
    except codec.CodecError:
        return None
    return record


def last_error(shown: Shown) -> str | None:
    """Why the last attempt, or the task as a whole, came to nothing; None when nothing did."""
    if shown.state is TaskState.DEAD:
        if shown.message is None:
            return "the store lost the message of this task"
        if shown.crashes is not None and shown.crashes.endswith(b"!"):
            return f"crashed {crash_count(shown.crashes)} times"
    return decode_failure(shown.failure).error or None


def status(id: str, queue: str, shown: Shown) -> TaskStatus:
    """The task for a user's eyes; fields of a message that cannot be read are left empty."""
    message = message_of(shown)
    failure = decode_failure(shown.failure)
    options = (message.options if message else None) or Options()
    waits = shown.state in (TaskState.SCHEDULED, TaskState.RETRY)
    return TaskStatus(
        id=id,
        queue=queue,
        type=message.type if message else "",
        payload=message.payload if message else shown.message or b"",
        is_value=bool(message and message.is_value),
        retry=message.retry if message else 0,
        attempt=_attempt(shown.state, failure.attempts),
        crashes=crash_count(shown.crashes),
        enqueued_at_us=message.enqueued_at_us if message else 0,
        deadline_us=options.deadline_us,
        headers=options.headers or {},
        token=shown.owner or "",
        state=shown.state,
        due_at=_moment(shown.score) if waits else None,
        last_error=last_error(shown),
        progress=_progress(shown.progress),
        cancelled=shown.cancel is not None,
        retention_us=options.retention_us,
    )


def _moment(us: int) -> datetime:
    """As `moment`; a time that no datetime can hold is cut to the last one that can."""
    try:
        return moment(us)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _attempt(state: TaskState, failed: int) -> int:
    """The attempt under way or next; of a dead task that was run, its last one."""
    return failed if state is TaskState.DEAD and failed else failed + 1


def _progress(text: bytes | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        done, total = text.split(b"/")
        return float(done), float(total)
    except ValueError:
        return None
