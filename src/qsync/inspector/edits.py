"""Changes to the payload of a task, and copies of tasks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.broker import operator_ops, registry_ops, views
from qsync.broker.event_ops import recorded
from qsync.broker.stored_task import StoredTask, state_of
from qsync.errors import InvalidTask, QueueFull
from qsync.inspector.base import enqueue_once
from qsync.inspector.edit_values import check_shape, encoded_payload, payload_version, with_edit
from qsync.inspector.tasks import RUNNABLE, TIMED, _TasksMixin, rerun_of
from qsync.inspector.values import Change, refused
from qsync.limit import limit_name
from qsync.message import Message, StoredOptions, decode_message, edited_options
from qsync.new_task import NewTask, encode_message, new_id, new_nonce
from qsync.phrase import phrase
from qsync.state import TaskState
from qsync.times import Duration, due_text, too_late

COPY_HEADER: Final = "qsync-copy-of"
"""Header of a copy: queue and id of the task that was copied, with a slash between them."""


class _EditsMixin(_TasksMixin):
    """Operations that edit or copy tasks."""

    async def edit_task(
        self,
        id: str,
        payload: Any,
        *,
        queue: str = "default",
        state: str | None = None,
        retry: bool = False,
        delay: Duration | None = None,
        version: str | None = None,
        by: str = "",
        dry_run: bool = False,
    ) -> Change:
        """Replace the payload of a scheduled, retried or dead task atomically.

        With `retry` the task becomes pending or limited now; with `delay`, a scheduled or retried
        task becomes due after that time. The task keeps its id, options, limits and unique lock;
        TaskDetail.edits has its old payload. Returns `too_late` if the task is in another state or
        has changed. Raises InvalidTask if the payload is invalid or `version` is outdated.
        """
        due = "" if delay is None else due_text(delay=delay, process_at=None)
        data, is_value = encoded_payload(payload)
        shown = await self._expect(id, queue, state)
        if isinstance(shown, Change):
            return shown
        if shown.state not in RUNNABLE:
            return Change(outcome="too_late", state=state_of(shown))
        _check_due(due, shown.state, retry=retry)
        message = _message_of(shown)
        _check_version(message, version)
        check_shape(message, payload)
        self._check_payload(message.type, payload)
        now_us, _ = await self._broker.run(views.servers(self._globals, count=1))
        options, actor = edited_options(shown.message or b""), by or self._actor.by
        edited = with_edit(message, options, data, is_value=is_value, at_us=now_us, by=actor)
        new = codec.encode(edited)
        if new == codec.encode(message):  # the payload is unchanged
            new = shown.message or b""
        late = _beyond_deadline(due, now_us, options.deadline_us, shown.state)
        if late is not None or dry_run:
            return late or Change(outcome="done", state=shown.state)
        call = operator_ops.edit(
            self._keys(queue), id, shown.state, seen=shown.message or b"", message=new, due=due,
            rerun=rerun_of(id, shown) if retry else None,
        )  # fmt: skip
        event = self._actor.event("task.edit", detail="and run now" if retry else "", by=by)
        done = await self._broker.run(recorded(call, event))
        if done.outcome == "duplicate":
            return Change(outcome="duplicate", state=shown.state, holder=done.holder)
        if done.outcome == "ok":
            state = await self._pending_or_limited(id, queue) if retry else shown.state
            return Change(outcome="done", state=state)
        return await self._edited_by(id, queue, new)

    async def _edited_by(self, id: str, queue: str, message: bytes) -> Change:
        """Return the outcome for a changed task; an earlier attempt of this call may have changed
        it."""
        shown = await self._show(id, queue)
        if shown is not None and shown.message == message:
            return Change(outcome="done", state=state_of(shown))
        return await self._where(id, queue)

    async def copy_task(
        self,
        id: str,
        payload: Any = msgspec.UNSET,
        *,
        queue: str = "default",
        into: str | None = None,
        delay: Duration | None = None,
        process_at: datetime | None = None,
        dry_run: bool = False,
    ) -> Change:
        """Enqueue a copy of a task in any state, with another payload if one is passed.

        The `id` and `queue` of the outcome identify the copy. The copy has the options of the task,
        a fresh set of attempts and the header `qsync-copy-of`, but neither a deadline nor a unique
        lock. `into` is the queue for the copy; by default, the queue of the task. Raises
        InvalidTask if the app declares a limit of the task for another queue.
        """
        shown = await self._show(id, queue)
        if shown is None:
            return Change(outcome="not_found")
        message, target = _message_of(shown), into or queue
        data, is_value = message.payload, message.is_value
        if payload is not msgspec.UNSET:
            check_shape(message, payload)
            self._check_payload(message.type, payload)
            data, is_value = encoded_payload(payload)
        keys = self._keys(target)
        due = ""
        if delay is not None or process_at is not None:
            due = due_text(delay=delay, process_at=process_at)
        self._check_limits(message, queue, target)
        task = _copied(message, f"{queue}/{id}", target, data, is_value, due)
        state = TaskState.SCHEDULED if due not in ("", "+0") else TaskState.PENDING
        if dry_run:
            return Change(outcome="done", state=state, queue=target)
        await self._broker.run(registry_ops.register(self._globals, [target]))
        try:
            [reply] = await self._broker.run(enqueue_once(keys, [task]))
        except QueueFull as error:
            return refused(str(error))
        if reply.outcome != "created":
            return Change(
                outcome="refused", why=f"queue {target} refused the copy: {reply.outcome}"
            )
        await self._record("task.copy", f"{queue}/{id}", queue=target, ids=[task.id])
        return Change(outcome="done", state=state, id=task.id, queue=target)

    def _check_limits(self, message: Message, queue: str, into: str) -> None:
        """Raise InvalidTask if a copy in another queue would have a limit that the app declares for
        this one."""
        limits = (message.options or StoredOptions()).limits or ()
        if self._declared is not None and into != queue:
            names = dict.fromkeys(map(limit_name, limits))
            self._declared.check_queue(message.type, into, names, origin=queue)


def _check_due(due: str, state: TaskState, *, retry: bool) -> None:
    if due and (retry or state not in TIMED):
        raise InvalidTask(phrase("A dead task, or a task to run now, cannot have a delay."))


def _beyond_deadline(
    due: str, now_us: int, deadline_us: int | None, state: TaskState
) -> Change | None:
    """Return the refusal if the due time, `+<us>`, is not before the deadline; otherwise None."""
    due_us = now_us + int(due[1:] or 0)
    if not due or deadline_us is None or due_us < deadline_us:
        return None
    return refused(too_late(due_us, deadline_us), state=state)


def _message_of(shown: StoredTask) -> Message:
    try:
        return decode_message(shown.message or b"")
    except codec.CodecError as error:
        text = phrase("The message of this task cannot be read: %(error)s.", error=str(error))
        raise InvalidTask(text) from None


def _check_version(message: Message, version: str | None) -> None:
    if version not in (None, payload_version(message.payload, is_value=message.is_value)):
        raise InvalidTask(
            phrase(
                "The payload has changed since you opened it, so nothing was saved. Open the task "
                "again, and edit its current payload."
            )
        )


def _copied(
    message: Message, origin: str, queue: str, payload: bytes, is_value: bool, due: str
) -> NewTask:
    """Return a new task with the options of a stored task."""
    options = message.options or StoredOptions()
    delay_us = int(due[1:]) if due.startswith("+") and due != "+0" else None
    at_us = int(due) if due and not due.startswith("+") else None
    stored_options = StoredOptions(
        retry_delay=options.retry_delay, timeout_us=options.timeout_us,
        retention_us=options.retention_us, fairness_key=options.fairness_key,
        headers={**(options.headers or {}), COPY_HEADER: origin}, limits=options.limits,
        priority=options.priority, delay_us=delay_us, process_at_us=at_us,
    )  # fmt: skip
    return encode_message(
        message.type, payload, stored_options, id=new_id(), nonce=new_nonce(), queue=queue,
        is_value=is_value, retry=message.retry,
    )  # fmt: skip
