"""Builds the full description of a task from its data in the store. Does no I/O."""

from __future__ import annotations

import codecs
import math
import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from qsync import codec
from qsync.backoff import ExponentialBackoff
from qsync.broker.leased_batch import crash_count
from qsync.broker.stored_task import lease_until, result_of
from qsync.broker.views import PendingPosition
from qsync.inspector.edit_values import former_payload
from qsync.inspector.msgpack_json import DEPTH_LIMIT, TEXT_LIMIT, preview
from qsync.inspector.task_rows import DecodedTask, row_of
from qsync.inspector.values import Attempt, Edit, Event, Shown, TaskDetail
from qsync.message import FailedAttempt, Message, StoredEdit, decode_message, edited_options
from qsync.phrase import Phrase, joined, phrase, plural_phrase
from qsync.state import TaskState
from qsync.times import from_us

HISTORY_SHOWN: Final = 100
"""Maximum number of failed attempts shown; servers keep fewer."""


def detail_of(queue: str, task: DecodedTask, located: PendingPosition) -> TaskDetail:
    """Return all known facts about a task."""
    next_us = located.next_run_us
    shown, message, failure, options = task.shown, task.message, task.failure, task.options
    payload = message.payload if message else shown.message or b""
    is_value = bool(message and message.is_value)
    result, result_error = _result(task)
    ran = shown.state is TaskState.DEAD and failure.attempts
    return TaskDetail(
        row=row_of(queue, task),
        payload=payload,
        is_value=is_value,
        shown=show(payload, is_value=is_value),
        headers=options.headers or {},
        attempt=failure.attempts if ran else failure.attempts + 1,
        error=task.error,
        history=[attempt_of(attempt) for attempt in failure.history[-HISTORY_SHOWN:]],
        events=_events(task),
        result=result,
        result_error=result_error,
        token=shown.owner,
        timeout=_seconds(options.timeout_us),
        retention=_seconds(options.retention_us),
        retry_delay=_retry_delay(options.retry_delay),
        retry_phrase=_retry_phrase(options.retry_delay),
        deadline=None if options.deadline_us is None else from_us(options.deadline_us),
        limits=list(options.limits or ()),
        fairness_key=options.fairness_key,
        lock=options.lock,
        lock_holder=located.holder,
        replaces=options.replaces,
        debounce=_seconds(options.debounce_us),
        debounce_max=_seconds(options.debounce_max_us),
        next_run_at=None if next_us is None else from_us(next_us),
        snoozes=failure.snoozes,
        unknown_since=from_us(failure.unknown_since_us) if failure.unknown_since_us else None,
        unknown_times=failure.unknown_times,
        message_error=_message_error(shown.message),
        begun_at=_begun_at(task),
        edits=[_edit_of(edit) for edit in edited_options(shown.message or b"").edits],
    )


def _retry_delay(stored: int | tuple[int, ...] | ExponentialBackoff | None) -> float | str | None:
    if isinstance(stored, int):
        return stored / 1_000_000
    text = _retry_phrase(stored)
    return None if text is None else str(text)


def _retry_phrase(stored: int | tuple[int, ...] | ExponentialBackoff | None) -> Phrase | None:
    if isinstance(stored, tuple):
        return joined((seconds_phrase(delay / 1_000_000) for delay in stored), ", ")
    if not isinstance(stored, ExponentialBackoff):
        return None
    return phrase(
        "%(first)s, each %(factor)s times as long, up to %(longest)s",
        first=seconds_phrase(stored.first), factor=float(stored.factor),
        longest=seconds_phrase(stored.longest),
    )  # fmt: skip


def seconds_phrase(seconds: float) -> Phrase:
    """Return a number of seconds as text, e.g. `5 s`."""
    return phrase("%(number)s s", number=float(seconds))


def attempt_of(attempt: FailedAttempt) -> Attempt:
    """Convert a stored failed attempt into an Attempt."""
    return Attempt(
        number=attempt.number,
        at=from_us(attempt.at_us),
        server=attempt.server,
        error=attempt.error,
        begun_at=from_us(attempt.begun_us) if attempt.begun_us else None,
    )


def _begun_at(task: DecodedTask) -> datetime | None:
    record = result_of(task.shown) if task.shown.state is TaskState.COMPLETED else None
    return from_us(record.begun_us) if record and record.begun_us else None


def _edit_of(edit: StoredEdit) -> Edit:
    payload = former_payload(edit)
    return Edit(
        at=from_us(edit.at_us), by=edit.by, payload=payload,
        shown=show(payload, is_value=edit.is_value),
    )  # fmt: skip


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / 1_000_000


def _message_error(data: bytes | None) -> str | None:
    if data is None:
        return "the store has lost it"
    try:
        decode_message(data)
    except codec.CodecError as error:
        return str(error)
    return None


def _result(task: DecodedTask) -> tuple[Shown | None, str | None]:
    record = result_of(task.shown)
    if record is None or task.shown.cancel is not None:
        return None, None
    if record.error is not None:
        return None, record.error
    return show(record.value, is_value=record.is_value), None


def _events(task: DecodedTask) -> list[Event]:
    """Return the past and future events of a task in order; events without a known time come
    first."""
    events = [*_enqueue_events(task.message), *_attempt_events(task), *_state_events(task)]
    crashes = crash_count(task.shown.crashes)
    if crashes:
        text = plural_phrase(
            "its server died once while running it",
            "its server died %(num)s times while running it",
            crashes,
        )
        events.append(_event(None, "crashed", text))
    if task.shown.cancel is not None and task.shown.state is not TaskState.COMPLETED:
        events.append(Event(at=None, what="cancel asked for"))
    earliest = datetime.min.replace(tzinfo=UTC)
    return sorted(events, key=lambda event: event.at or earliest)


def _event(at: datetime | None, what: str, text: Phrase) -> Event:
    return Event(at=at, what=what, detail=str(text), phrase=text)


def _enqueue_events(message: Message | None) -> list[Event]:
    if message is None:
        return []
    events = [Event(at=from_us(message.enqueued_at_us), what="enqueued")]
    if message.due_us > message.enqueued_at_us:
        events.append(Event(at=from_us(message.due_us), what="due"))
    if message.options and message.options.deadline_us is not None:
        events.append(Event(at=from_us(message.options.deadline_us), what="deadline"))
    return events


def _attempt_events(task: DecodedTask) -> list[Event]:
    failure = task.failure
    # The server's clock gives the time of an attempt, and the store's clock the time of a death.
    # The server's clock may be ahead, so cap an attempt's time at that of the death.
    latest = task.shown.score if task.shown.state is TaskState.DEAD else math.inf
    events = [
        _event(
            from_us(int(min(attempt.at_us, latest))),
            "failed",
            phrase(
                "attempt %(number)s on %(server)s: %(error)s",
                number=attempt.number,
                server=attempt.server,
                error=attempt.error,
            ),
        )
        for attempt in failure.history[-HISTORY_SHOWN:]
    ]
    if failure.snoozed_at_us:
        text = plural_phrase("once", "%(num)s times, last at this time", failure.snoozes)
        events.append(_event(from_us(failure.snoozed_at_us), "snoozed", text))
    if failure.unknown_since_us:
        text = plural_phrase(
            "once, by servers without a handler for its type",
            "%(num)s times since, by servers without a handler for its type",
            max(1, failure.unknown_times),
        )
        events.append(_event(from_us(failure.unknown_since_us), "handed back", text))
    return events


def _state_events(task: DecodedTask) -> list[Event]:
    shown, time = task.shown, from_us(task.shown.score)
    if shown.state is TaskState.ACTIVE:
        return [Event(at=lease_until(shown), what="leased until", detail=shown.owner or "")]
    if shown.state is TaskState.RETRY:
        number = task.failure.attempts + 1
        return [_event(time, "due", phrase("attempt %(number)s", number=number))]
    if shown.state is TaskState.SCHEDULED and task.failure.unknown_times:
        return [_event(time, "due", phrase("after it was handed back"))]
    if shown.state is TaskState.SCHEDULED and task.failure.snoozed_at_us:
        return [_event(time, "due", phrase("after its snooze"))]
    if shown.state is TaskState.DEAD:
        return [Event(at=time, what="died", detail=(task.error or "").partition("\n")[0])]
    if shown.state is TaskState.COMPLETED:
        return _ended(task, time)
    return []


def _ended(task: DecodedTask, until: datetime) -> list[Event]:
    outcome = "completed" if task.shown.cancel is None else "cancelled"
    kept_us = task.options.retention_us
    ended = None if kept_us is None else from_us(task.shown.score - kept_us)
    return [Event(at=ended, what=outcome), Event(at=until, what="kept until")]


DUMP_LIMIT: Final = 2 * 1024
"""Maximum number of bytes of binary data that are shown."""

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
        # A character that is cut off at the end of the part is ignored.
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
    """Return the nesting depth of the brackets, including brackets within strings."""
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
