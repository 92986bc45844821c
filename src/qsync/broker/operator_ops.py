"""The operations for operators, one pure function per script: run, delete, purge, repair, pause."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from qsync.broker.call import (
    Argument,
    Call,
    bounded,
    now_argument,
    pairs_of,
    queue_call,
    queue_query,
    text_of,
    texts_of,
)
from qsync.broker.enqueue_options import fairness_member
from qsync.broker.op_values import MAINTENANCE_BATCH, MAX_TASKS_PER_CALL, NO_CALL_ID
from qsync.keys import QueueKeys
from qsync.message import NORMAL_PRIORITY
from qsync.state import TaskState


class RerunRequest(NamedTuple):
    """A task to run now.

    All fields except `id` apply only to dead tasks; `failure` is the failure record that the task
    keeps.
    """

    id: str
    fairness_key: str = ""
    lock: str = ""
    failure: bytes = b""
    priority: int = NORMAL_PRIORITY


RunOutcome = tuple[Literal["ok", "duplicate", "changed"], str]


def run(
    keys: QueueKeys,
    id: str,
    state: str,
    *,
    fairness_key: str = "",
    lock: str = "",
    failure: bytes = b"",
    priority: int = NORMAL_PRIORITY,
    now_us: int | None = None,
) -> Call[RunOutcome]:
    """Move a scheduled, retry or dead task to `pending`, if it is still in that state."""
    row = RerunRequest(id, fairness_key, lock, failure, priority)
    call = run_many(keys, [row], state, now_us=now_us)
    return Call(call.script, call.keys, call.args, lambda reply: call.decode(reply)[0])


def run_many(
    keys: QueueKeys, tasks: Sequence[RerunRequest], state: str, *, now_us: int | None = None
) -> Call[list[RunOutcome]]:
    """Move tasks of one state to `pending`, in this order; see `run`."""
    args: list[Argument] = [now_argument(now_us), "", state]
    for task in bounded(tasks):
        member = fairness_member(task.priority, task.fairness_key)
        args += (task.id, member, task.lock, task.failure)
    return queue_call("run", keys, args, pairs_of)


def delete(
    keys: QueueKeys, ids: Sequence[str], state: str, *, now_us: int | None = None
) -> Call[int]:
    """Delete the tasks that are still in `state` (not `active`); return how many were deleted."""
    return queue_call("delete", keys, (now_argument(now_us), "", state, *bounded(ids)), int)


class PurgeStep(NamedTuple):
    """The number of tasks that one call of a purge deleted, and the number left in the state.

    `last` is the score and id of the last task to delete; pass it to the next call. None means
    done.
    """

    deleted: int
    left: int
    last: tuple[str, str] | None


def purge(
    keys: QueueKeys,
    state: str,
    *,
    last: tuple[str, str] | None = None,
    count: int = MAINTENANCE_BATCH,
    now_us: int | None = None,
) -> Call[PurgeStep]:
    """Delete the first tasks of a state, up to the last task that was there when the purge began.

    Active tasks are deleted only if their lease has expired.
    """
    score, id = last or ("", "")
    args = (
        now_argument(now_us), "", state, min(count, MAX_TASKS_PER_CALL),
        score, id.encode(errors="surrogateescape"),
    )  # fmt: skip

    def decode(fields: dict[str, Any]) -> PurgeStep:
        end = (text_of(fields["score"]), fields["id"].decode(errors="surrogateescape"))
        return PurgeStep(fields["deleted"], fields["left"], end if fields["more"] else None)

    return queue_query("purge", keys, args, decode)


def delete_queue(keys: QueueKeys, *, force: bool = False) -> Call[int]:
    """Delete a queue if it has no tasks and, unless `force` is true, no stored schedules; return
    how many tasks and stored schedules it holds."""
    return queue_call("delete_queue", keys, (int(force),), int)


def repair(
    keys: QueueKeys,
    damage: str,
    rows: Sequence[tuple[str, str]],
    *,
    record: bytes,
    lease_us: int,
    now_us: int | None = None,
) -> Call[list[Literal["ok", "changed"]]]:
    """Repair damage that an audit found and that still exists; `rows` are (id, lock) pairs.

    `record` is the failure record for tasks that become dead. A task that has an owner but no state
    becomes active, with a lease of `lease_us`.
    """
    args: list[Argument] = [now_argument(now_us), damage, record, lease_us]
    for row in bounded(rows):
        args += [text.encode(errors="surrogateescape") for text in row]
    return queue_call("repair", keys, args, texts_of)


def pause(keys: QueueKeys, note: bytes, *, now_us: int | None = None) -> Call[bool]:
    """Pause a queue; the note states who paused it and why. Return False if it was paused
    already."""
    return _pause(keys, _note(note), now_us)


def resume(keys: QueueKeys) -> Call[bool]:
    """Resume a queue; return False when it was not paused."""
    return _pause(keys, b"", None)


def _pause(keys: QueueKeys, note: bytes, now_us: int | None) -> Call[bool]:
    return queue_call("pause", keys, (now_argument(now_us), "", note), bool)


def _note(note: bytes) -> bytes:
    if not note:
        raise ValueError("note: must not be empty, since an empty note means resume")
    return note


class Rescheduled(NamedTuple):
    """The outcome of a reschedule."""

    state: TaskState | None
    """State of the task; None if it is not in the queue."""
    due_us: int | None
    """New due time of the task, in us; None if tasks in its state have no due time, so that nothing
    changed."""
    deadline_us: int | None = None
    """Deadline of the task, in us, if nothing changed because the due time is not before the
    deadline."""


def reschedule(
    keys: QueueKeys,
    id: str,
    due: str,
    *,
    call_id: tuple[str, int] = NO_CALL_ID,
    dry_run: bool = False,
    now_us: int | None = None,
) -> Call[Rescheduled]:
    """Change when a scheduled or retried task is due: `+<us>` from now, or `<us>` Unix time.

    With a `call_id`, a repeated call returns the same reply. With `dry_run`, nothing changes.
    """
    args = (now_argument(now_us), "", id, due, *call_id, int(dry_run))

    def decode(reply: dict[str, Any]) -> Rescheduled:
        state, due_us, deadline_us = (reply[name].decode() for name in ("state", "due", "deadline"))
        return Rescheduled(
            TaskState(state) if state else None,
            int(due_us) if due_us else None,
            int(deadline_us) if deadline_us else None,
        )

    return queue_query("reschedule", keys, args, decode)


class EditOutcome(NamedTuple):
    """The outcome of an edit.

    ok         the task has the new message
    duplicate  nothing changed: another task, `holder`, has the lock of the dead task
    changed    nothing changed: the task is in another state, or has another message
    """

    outcome: Literal["ok", "duplicate", "changed"]
    holder: str = ""


def edit(
    keys: QueueKeys,
    id: str,
    state: str,
    *,
    seen: bytes,
    message: bytes,
    due: str = "",
    rerun: RerunRequest | None = None,
    now_us: int | None = None,
) -> Call[EditOutcome]:
    """Replace the message `seen` of a scheduled, retry or dead task.

    With `rerun`, the task becomes pending now. Otherwise, `due` (`+<us>`) changes its due time.
    """
    digest = hashlib.sha1(seen, usedforsecurity=False).hexdigest()
    again = rerun or RerunRequest(id)
    args = (
        now_argument(now_us), "", id, state, digest, message, due, "" if rerun is None else "1",
        fairness_member(again.priority, again.fairness_key), again.lock, again.failure,
    )  # fmt: skip

    def decode(reply: dict[str, Any]) -> EditOutcome:
        outcome, holder = reply["outcome"].decode(), reply["holder"].decode()
        return EditOutcome(cast("Literal['ok', 'duplicate', 'changed']", outcome), holder)

    return queue_query("edit", keys, args, decode)
