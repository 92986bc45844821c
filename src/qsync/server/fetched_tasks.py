"""Turns the result of a fetch into leased tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

import msgspec

from qsync import codec
from qsync.broker.op_values import FetchResult, HandedBack
from qsync.message import NO_FAILURE, Message, decode_failure, decode_message, decode_messages
from qsync.server import outcome
from qsync.server.capacity import Capacity
from qsync.server.queue_state import FetchInFlight, LeasedTask, QueueState
from qsync.server.runner import Runner

log: Final = logging.getLogger("qsync.server")

_options_of: Final = attrgetter("options")


def hold(
    queue: QueueState, token: str, fetched: FetchResult, sent: float, lease_s: float,
    runner: Runner, capacity: Capacity,
) -> list[LeasedTask]:  # fmt: skip
    """Add the tasks to those that the queue's state holds, and return them.

    Tasks whose message cannot be read are killed. `sent` is when the fetch was sent, by boot_s.
    """
    expires = sent + lease_s
    if not (fetched.spared or fetched.since or any(fetched.failures)):
        try:
            messages = decode_messages(fetched.messages)
        except codec.CodecError:
            pass  # the code below finds that message and holds the other tasks
        else:
            return _hold_new(queue, token, fetched, messages, sent, expires, capacity)
    tasks: list[LeasedTask] = []
    held, spared, since = queue.held, fetched.spared, fetched.since
    for id, data, record, crashes in zip(
        fetched.ids, fetched.messages, fetched.failures, fetched.crashes, strict=True
    ):
        try:
            message = decode_message(data)
        except codec.CodecError as error:
            log.error(
                "task %s of queue %s cannot be read: %s", id, queue.name, error,
                extra={"task_id": id, "queue": queue.name},
            )  # fmt: skip
            kill = outcome.undecodable(id, token, str(error), fetched.now_us)
            runner.settle_unread(queue, kill)
            continue
        failure = NO_FAILURE if record is None else decode_failure(record)
        leased = LeasedTask(
            queue, id, token, message, failure, crashes, sent, expires, fetched.now_us
        )
        if spared:
            leased.spared = spared.get(id, 0)
        if since:
            leased.since_us = since.get(id, 0)
        _note_options(capacity, [message])
        held[id] = leased
        tasks.append(leased)
    return tasks


def hand_back_unread(
    queue: QueueState, fetch: FetchInFlight, fetched: FetchResult, again: FetchResult | None,
    hold_tasks: Callable[[QueueState, str, FetchResult, float], Sequence[LeasedTask]],
    runner: Runner,
) -> None:  # fmt: skip
    """Hand back the tasks that only the repetition of a fetch leased: those in the reply `again`
    that are not in `fetched`.

    `hold_tasks` is `hold` with the settings of the server. Heartbeats renew the leases until the
    store has taken the tasks back.
    """
    if again is None:
        return
    read = set(fetched.ids)
    unread = [at for at, id in enumerate(again.ids) if id not in read]
    rest = msgspec.structs.replace(
        again,
        ids=[again.ids[at] for at in unread],
        messages=[again.messages[at] for at in unread],
        failures=[again.failures[at] for at in unread],
        crashes=[again.crashes[at] for at in unread],
    )
    for leased in hold_tasks(queue, fetch.token, rest, fetch.since):
        leased.leased_us = 0  # the time in a repeated reply is not that of the lease
        runner.settle(leased, HandedBack(leased.id, leased.token))


def _hold_new(
    queue: QueueState, token: str, fetched: FetchResult, messages: list[Message], sent: float,
    expires: float, capacity: Capacity,
) -> list[LeasedTask]:  # fmt: skip
    """Do the same as `hold` for tasks that never failed. Most fetches return only such tasks."""
    leased_us = fetched.now_us
    tasks = [
        LeasedTask(queue, id, token, message, NO_FAILURE, crashes, sent, expires, leased_us)
        for id, message, crashes in zip(fetched.ids, messages, fetched.crashes, strict=True)
    ]
    queue.held.update(zip(fetched.ids, tasks, strict=True))
    if any(map(_options_of, messages)):
        _note_options(capacity, messages)
    return tasks


def _note_options(capacity: Capacity, messages: Sequence[Message]) -> None:
    """Record whether tasks have a fairness key, and the types of those that have limits."""
    for message in messages:
        options = message.options
        if options is not None:
            capacity.fairness_seen = capacity.fairness_seen or options.fairness_key is not None
            if options.limits:
                capacity.note_limits(message.type)
