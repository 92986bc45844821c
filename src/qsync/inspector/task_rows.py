"""Converts tasks from the store into list rows, and applies filters. Does no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.broker.leased_batch import crash_count
from qsync.broker.stored_task import (
    StoredTask,
    last_error,
    lease_until,
    number,
    progress_of,
    state_of,
)
from qsync.broker.truncated import decode_cut
from qsync.broker.views import StoredTaskRow, TruncatedMessage
from qsync.fingerprint import FAILING, Fingerprint, fingerprint_of
from qsync.inspector.search_query import argument_at
from qsync.inspector.values import Filter, Pause, TaskRow
from qsync.keys import server_of_token
from qsync.message import NORMAL_PRIORITY, Failure, Message, StoredOptions, decode_failure
from qsync.state import TaskState
from qsync.times import from_us

ERROR_SHOWN: Final = 200
_PATTERN: Final = re.compile(r"[*?]")


@dataclass(frozen=True, slots=True)
class DecodedTask:
    """A task from the store, decoded as far as possible; the payload may be missing."""

    id: str
    shown: StoredTask
    length: int
    message: Message | None
    failure: Failure

    @property
    def options(self) -> StoredOptions:
        """Options of the message; empty if the message cannot be read."""
        return (self.message.options if self.message else None) or StoredOptions()

    @property
    def error(self) -> str | None:
        """Full text of the last error."""
        return last_error(self.shown)

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the last error; its id is read from the failure record's mark if the
        record has one."""
        error = self.error or ""
        fingerprint = fingerprint_of(self.message.type if self.message else "", error)
        mark = self.failure.mark if error == self.failure.error else ""
        return msgspec.structs.replace(fingerprint, id=mark[-8:]) if mark else fingerprint

    def since_us(self) -> int:
        """Return the time from which the task's age counts: when it died if it is dead, otherwise
        when it was enqueued."""
        if self.shown.state is TaskState.DEAD:
            return self.shown.score
        return self.message.enqueued_at_us if self.message else 0


def decode_task(id: str, shown: StoredTask, length: int | None = None) -> DecodedTask:
    """Decode a task from a view; `length` is the full size of its message, which may be cut."""
    data = shown.message or b""
    size = len(data) if length is None else length
    return DecodedTask(
        id, shown, size, message_in(TruncatedMessage(data, size)), decode_failure(shown.failure)
    )


def decode_row(row: StoredTaskRow) -> DecodedTask:
    """Decode a row of a page."""
    return decode_task(row.id, row.shown, row.length)


def message_in(cut: TruncatedMessage) -> Message | None:
    """Return the message, possibly without its payload; None if it is missing or unreadable."""
    try:
        return decode_cut(cut.data, cut.length) if cut.length else None
    except codec.CodecError:
        return None


def waiting_since_us(message: Message | None, failure: Failure) -> int | None:
    """Return the time at which a pending task began to wait for a server; None if unknown."""
    return None if message is None else max(message.due_us, failure.due_us)


def row_of(queue: str, task: DecodedTask) -> TaskRow:
    """Return the task as a list row."""
    shown, state = task.shown, task.shown.state  # the stored state: `completed` if cancelled
    time = from_us(shown.score)
    is_active = state is TaskState.ACTIVE
    error = task.error
    return TaskRow(
        id=task.id,
        queue=queue,
        state=state_of(shown),
        type=task.message.type if task.message else "",
        size=task.length,
        enqueued_at=from_us(task.message.enqueued_at_us) if task.message else None,
        attempts=task.failure.attempts,
        retry=task.message.retry if task.message else 0,
        crashes=crash_count(shown.crashes),
        error=None if error is None else error.partition("\n")[0][:ERROR_SHOWN],
        due_at=time if state in (TaskState.SCHEDULED, TaskState.RETRY) else None,
        lease_until=lease_until(shown) if is_active else None,
        server=server_of(shown) if is_active else None,
        progress=progress_of(shown) if is_active or state is TaskState.COMPLETED else None,
        died_at=time if state is TaskState.DEAD else None,
        kept_until=time if state is TaskState.COMPLETED else None,
        ended_at=_ended_at(task) if state is TaskState.COMPLETED else None,
        cancelled=shown.cancel is not None,
        priority=task.options.priority or NORMAL_PRIORITY,
    )


def _ended_at(task: DecodedTask) -> datetime | None:
    """Return when a kept task ended: the time of its deletion minus its `retention`."""
    kept_us = task.options.retention_us
    return None if kept_us is None else from_us(task.shown.score - kept_us)


def server_of(shown: StoredTask) -> str | None:
    """Return the id of the server that holds the lease."""
    return server_of_token(shown.owner) if shown.owner else None


def matches(filter: Filter | None, task: DecodedTask, now_us: int) -> bool:
    """Return whether a task matches a filter."""
    if filter is None:
        return True
    if filter.type is not None and not _is_type(filter.type, task):
        return False
    if filter.id is not None and filter.id not in task.id:
        return False
    if filter.error is not None and filter.error.casefold() not in (task.error or "").casefold():
        return False
    if filter.group is not None and not _is_in_group(filter.group, task):
        return False
    if not (_has_key(filter.key, task) and _has_words(filter.words, task)):
        return False
    if filter.args and not _has_args(filter.args, task):
        return False
    age = (now_us - task.since_us()) / 1_000_000
    if filter.older_than is not None and age < filter.older_than:
        return False
    return filter.newer_than is None or age <= filter.newer_than


def is_unread(filter: Filter | None, task: DecodedTask) -> bool:
    """Return whether a filter needs the arguments of a task whose payload was not read."""
    return bool(filter and filter.args) and task.length > len(task.shown.message or b"")


def fits(pattern: str, text: str) -> bool:
    """Return whether a string matches a pattern; without `*` or `?`, the two must be equal."""
    return fnmatchcase(text, pattern) if _PATTERN.search(pattern) else text == pattern


def _is_type(pattern: str, task: DecodedTask) -> bool:
    return fits(pattern, task.message.type if task.message else "")


def _has_key(pattern: str | None, task: DecodedTask) -> bool:
    key = task.options.fairness_key
    return pattern is None or (key is not None and fits(pattern, key))


def _has_words(words: tuple[str, ...], task: DecodedTask) -> bool:
    if not words:
        return True
    type = task.message.type if task.message else ""
    text = f"{task.id}\n{type}\n{task.error or ''}".casefold()
    return all(word.casefold() in text for word in words)


def _has_args(args: tuple[tuple[str, str], ...], task: DecodedTask) -> bool:
    message = task.message
    if message is None or task.length > len(task.shown.message or b""):
        return False
    try:
        value = codec.decode(message.payload) if message.is_value else _json(message.payload)
    except codec.CodecError:
        return False
    return all(
        any(fits(pattern, text) for text in argument_at(value, path)) for path, pattern in args
    )


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def _is_in_group(group: str, task: DecodedTask) -> bool:
    return task.shown.state in FAILING and task.fingerprint.id == group


def pause_of(note: bytes | None, at_us: int) -> Pause | None:
    """Return the operator, reason and time of a queue's pause; None if it is not paused."""
    if note is None:
        return None
    try:
        by, why = codec.decode(note, tuple[str, str])
    except codec.CodecError:  # not written by an inspector
        by, why = "", note.decode(errors="backslashreplace")
    return Pause(by=by, why=why, at=_moment_or_none(at_us))


def schedule_pause_of(note: bytes | None) -> Pause | None:
    """Return the pause that a schedule's stored note describes; the note begins with the time."""
    if note is None:
        return None
    at_us, _, rest = note.partition(b" ")
    return pause_of(rest, number(at_us))


def note_of(by: str, why: str) -> bytes:
    """Return the stored note of a pause."""
    return codec.encode((by[:NOTE_LIMIT], why[:NOTE_LIMIT]))


NOTE_LIMIT: Final = 1000


def _moment_or_none(us: int) -> datetime | None:
    return from_us(us) if us else None
