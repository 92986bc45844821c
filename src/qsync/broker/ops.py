"""Everything that changes the store: one pure function for each script.

A function returns a Call; a Broker runs it. `now_us` is for tests: production leaves it None, and
the store's own clock decides. No call takes over LIMIT tasks or carries more than BATCH_BYTES.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from qsync import codec
from qsync.broker.call import Argument, Call, Durability, Wait
from qsync.broker.script import load
from qsync.keys import GlobalKeys, QueueKeys
from qsync.task import ENVELOPE_HEAD, NewTask

T = TypeVar("T")

MAX_TASKS_PER_CALL: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024

BATCH_SIZE: Final = 250
"""How many tasks go together: more are no cheaper each, and hold up the store for longer."""

MAINTENANCE_BATCH: Final = 100
"""How many are deleted, or run again, at a time: that is in no hurry, and others are."""

SCHEDULE_SILENCE_US: Final = 180_000_000
"""A schedule that no server published for so long may be gone."""

Outcome = Literal["ok", "done", "lost"]
"""Of a change that a lease allows: made; already made or handed back; another holds the lease."""


class Enqueued(msgspec.Struct, frozen=True, gc=False):
    """What became of a task: `id` is that of the task that holds its id or its lock.

    `repeated`: a task of this id was enqueued lately, and has left the queue.

    `confirmed`: what was waited for came in time; None: nothing was.
    """

    outcome: Literal["created", "exists", "duplicate", "repeated"]
    id: str
    confirmed: bool | None = None


class LeaseRef(NamedTuple):
    """A leased task: its id and the token of its lease."""

    id: str
    token: str


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A task run to its end. `retention_us` None: it leaves at once, and so does its result."""

    id: str
    token: str
    retention_us: int | None = None
    result: bytes = b""


class Retried(NamedTuple):
    """A task whose attempt failed and which is to be run again after a delay."""

    id: str
    token: str
    delay_us: int
    failure: bytes


class Killed(NamedTuple):
    """A task that is not to be run again. `failed`: an attempt failed, as against never begun."""

    id: str
    token: str
    failed: bool
    failure: bytes


class HandedBack(NamedTuple):
    """A task that the server will not run. `delay_us` None: to the head of pending."""

    id: str
    token: str
    delay_us: int | None = None
    failure: bytes = b""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What a fetch needs to know of the server's configuration; times in microseconds."""

    lease_us: int
    max_crashes: int
    dead_limit: int
    dead_age_us: int
    max_bytes: int = BATCH_BYTES


class FetchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch brought: the four lists go together by position."""

    now_us: int
    next_due_us: int | None
    """Time until something is due; None when nothing is known to come."""
    more: bool
    recovered: int
    died: int
    ids: list[str]
    messages: list[bytes]
    failures: list[bytes | None]
    crashes: list[int]
    own_lapsed: list[str]
    paused: bool
    generation: str
    """Of the data of the queue; it changes only when they were lost."""
    left: bool = False
    """More tasks wait that may be fetched."""
    spared: dict[str, int] = {}
    """By id, how many crashes did not count, for tasks with such ones."""
    since: dict[str, int] = {}
    """By id, the time since when a task is runnable that was handed back, recovered or re-run."""


def batches(
    items: Sequence[Any], size: Callable[[Any], int], most: int = BATCH_BYTES
) -> Iterator[Sequence[Any]]:
    """Cut items into runs of at most BATCH and `most` bytes, one item at least."""
    if 0 < len(items) <= BATCH_SIZE and sum(map(size, items)) <= most:
        yield items
        return
    start = total = 0
    for at, item in enumerate(items):
        amount = size(item)
        if at > start and (at - start >= BATCH_SIZE or total + amount > most):
            yield items[start:at]
            start, total = at, 0
        total += amount
    if start < len(items):
        yield items[start:]


def enqueue(
    keys: QueueKeys,
    tasks: Sequence[NewTask],
    *,
    sender: str = "",
    number: int = 0,
    wait: Wait | None = None,
    now_us: int | None = None,
) -> Call[list[Enqueued]]:
    """Store new tasks, all of them of this queue; one outcome a task, in order.

    With a sender, which numbers its calls and has one under way at a time, the call is answered as
    at first when it comes again, even if its tasks have ended and left meanwhile. A call that comes
    after a later one of its sender does nothing, and no outcomes come back.
    """
    script = load("enqueue")
    options = [_enqueue_options(task) for task in _batch(tasks)]
    args: list[Argument] = [_now(now_us), ENVELOPE_HEAD, sender, number]
    if any(options):
        args.append(3)
        for task, packed in zip(tasks, options, strict=True):
            args += (task.id, task.message, packed)
    else:
        args.append(2)
        for task in tasks:
            args += (task.id, task.message)

    def decode(reply: Any) -> list[Enqueued]:
        answer, confirmed = (reply, None) if wait is None else reply
        if answer == b"created":
            return [Enqueued("created", task.id, confirmed) for task in tasks]
        return _enqueued(answer, confirmed)

    return Call(script, keys.names(script.keys), tuple(args), decode, wait)


def wait(keys: QueueKeys, durability: Durability, *, timeout_ms: int) -> Wait:
    """What calls on a queue wait for after it, for so long at most."""
    script = load("mark")
    return Wait(durability, timeout_ms, Call(script, keys.names(script.keys), (), int))


def tick(
    keys: QueueKeys, schedule: str, tick_us: int, task: NewTask, *, now_us: int | None = None
) -> Call[bool]:
    """Enqueue the task of a tick; False when this tick or a later one was enqueued before."""
    script = load("tick")
    args = (
        _now(now_us), ENVELOPE_HEAD, schedule, tick_us,
        task.id, task.message, _enqueue_options(task),
    )  # fmt: skip
    return Call(script, keys.names(script.keys), args, lambda reply: reply[0] == b"created")


def begin_ticks(
    keys: QueueKeys,
    schedules: Sequence[str],
    *,
    digests: Sequence[str] = (),
    now_us: int | None = None,
) -> Call[tuple[int, list[int]]]:
    """The store's time, and the moment after which each schedule owes ticks.

    That is its last tick; for one never seen, now. With the digests of their expressions it is now
    as well for a schedule whose expression was changed, or that comes back.
    """
    script = load("begin_ticks")
    pairs = itertools.zip_longest(schedules, digests, fillvalue="")
    args = (_now(now_us), SCHEDULE_SILENCE_US, *itertools.chain.from_iterable(pairs))
    return Call(
        script,
        keys.names(script.keys),
        args,
        lambda reply: (int(reply[0]), [int(tick) for tick in reply[1:]]),
    )


def fetch(
    keys: QueueKeys,
    *,
    server: str,
    number: int,
    wanted: int,
    policy: FetchPolicy,
    again: bool = False,
    now_us: int | None = None,
) -> Call[FetchResult]:
    """Do the queue's upkeep and lease up to `wanted` tasks under the token `server/number`.

    `again`: the same number was sent before and got no answer.
    """
    script = load("fetch")
    args = (
        _now(now_us), server, number, min(wanted, MAX_TASKS_PER_CALL), policy.lease_us,
        policy.max_crashes, policy.dead_limit, policy.dead_age_us, policy.max_bytes, int(again),
    )  # fmt: skip
    return Call(script, keys.names(script.keys), args, _fetched)


def made_again(fetch: Call[FetchResult]) -> Call[FetchResult]:
    """The same fetch, for when it got no answer."""
    return Call(fetch.script, fetch.keys, (*fetch.args[:-1], 1), fetch.decode)


def complete(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """End tasks that succeeded; refused as a whole when there are results and no memory."""
    kept = [task for task in _batch(tasks) if task.retention_us is not None]
    script = load("complete", allow_oom=not any(task.result for task in kept))
    args: list[Argument] = [_now(now_us)]
    if not kept:
        args.append(2)
        for task in tasks:
            args += (task.id, task.token)
    else:
        args.append(4)
        for task in tasks:
            retention = "" if task.retention_us is None else task.retention_us
            args += (task.id, task.token, retention, task.result)

    def outcomes(reply: Any) -> list[Outcome]:
        return ["ok"] * len(tasks) if reply == b"ok" else _outcomes(reply)

    return Call(script, keys.names(script.keys), tuple(args), outcomes)


def complete_without_room(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """As `complete`, and never refused for want of memory: for results that are short."""
    call = complete(keys, tasks, now_us=now_us)
    return Call(load("complete", allow_oom=True), call.keys, call.args, call.decode)


def retry(
    keys: QueueKeys, tasks: Sequence[Retried], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Have failed tasks wait for their next attempt."""
    return _settle("retry", keys, tasks, now_us)


def kill(
    keys: QueueKeys, tasks: Sequence[Killed], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Make tasks dead."""
    rows = [(task.id, task.token, int(task.failed), task.failure) for task in tasks]
    return _settle("kill", keys, rows, now_us)


def hand_back(
    keys: QueueKeys, tasks: Sequence[HandedBack], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Give tasks back uncharged, those without a delay to the head of pending in this order."""
    rows = [
        (task.id, task.token, "" if task.delay_us is None else task.delay_us, task.failure)
        for task in tasks
    ]
    return _settle("hand_back", keys, rows, now_us)


def end_cancelled(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """End tasks whose handler was stopped because their cancel was asked for."""
    return _settle("cancelled", keys, tasks, now_us)


def renew(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, lease_us: int, now_us: int | None = None
) -> Call[list[Literal["ok", "cancelled", "done", "lost"]]]:
    """Extend leases to `lease_us` from now."""
    script = load("renew")
    args: list[Argument] = [_now(now_us), lease_us]
    for task in _batch(tasks):
        args += task
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def start(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, together: bool = False
) -> Call[list[Outcome]]:
    """Mark tasks that crashed before as running: a crash from now on counts for them.

    `together`: they run beside other suspects, and a crash does not count, up to three times.
    """
    script = load("start")
    args = [value for task in _batch(tasks) for value in task]
    if together:
        args.append("-")
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def progress(
    keys: QueueKeys, tasks: Sequence[tuple[str, str, float, float]]
) -> Call[list[Outcome]]:
    """Store how far tasks are: id, token, done, total."""
    script = load("progress")
    args: list[Argument] = []
    for id, token, done, total in _batch(tasks):
        args += (id, token, f"{done:.12g}/{total:.12g}")
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def abandon(keys: QueueKeys, server: str, *, cursor: str = "0") -> Call[tuple[str, int]]:
    """Let the leases of a dead server lapse at once; returns the next cursor and how many."""
    script = load("abandon")
    return Call(
        script,
        keys.names(script.keys),
        (server, cursor),
        lambda reply: (_text(reply[0]), int(reply[1])),
    )


class Listened(NamedTuple):
    """What there is to do in a queue, and whether a message may tell what comes later."""

    generation: str | None
    """Of its data; None before the first fetch."""
    waits: bool
    """Tasks wait that may be fetched."""
    due: bool
    """Upkeep is due."""
    woken: bool
    """Somebody wanted to wake a server."""
    unsent: bool
    """And sent no message to this one, which waited for it."""


def listen(
    keys: QueueKeys, *, server: str, lease_us: int, keep_us: int, now_us: int | None = None
) -> Call[Listened]:
    """Have messages wake a server that is subscribed to its channel, and look at the queue."""
    script = load("listen")
    args = ("" if now_us is None else now_us, lease_us, server, keep_us)
    return Call(
        script,
        keys.names(script.keys),
        args,
        lambda reply: Listened(_text(reply[0]) or None, *map(bool, reply[1:])),
    )


def cancel(
    keys: QueueKeys, id: str, *, retention_us: int | None, now_us: int | None = None
) -> Call[tuple[Literal["cancelled", "active", "finished", "missing"], str]]:
    """Cancel a task; `active` comes with the token of the lease under which it runs."""
    script = load("cancel")
    args = (_now(now_us), id, "" if retention_us is None else retention_us)
    return Call(script, keys.names(script.keys), args, _texts)


class RerunRequest(NamedTuple):
    """A task to be run now. The rest is for dead ones; `failure` is the record that it keeps."""

    id: str
    fairness_key: str = ""
    lock: str = ""
    failure: bytes = b""


RunOutcome = tuple[Literal["ok", "duplicate", "changed"], str]


def run(
    keys: QueueKeys,
    id: str,
    state: str,
    *,
    fairness_key: str = "",
    lock: str = "",
    failure: bytes = b"",
    now_us: int | None = None,
) -> Call[RunOutcome]:
    """Put a task that is scheduled, in retry or dead into pending, if it still is in that state."""
    call = run_many(keys, [RerunRequest(id, fairness_key, lock, failure)], state, now_us=now_us)
    return Call(call.script, call.keys, call.args, lambda reply: call.decode(reply)[0])


def run_many(
    keys: QueueKeys, tasks: Sequence[RerunRequest], state: str, *, now_us: int | None = None
) -> Call[list[RunOutcome]]:
    """As `run`, for tasks in one state; they go to pending in this order."""
    script = load("run")
    args: list[Argument] = [_now(now_us), state]
    for task in _batch(tasks):
        args += task
    return Call(script, keys.names(script.keys), tuple(args), _pairs)


def delete(
    keys: QueueKeys, ids: Sequence[str], state: str, *, now_us: int | None = None
) -> Call[int]:
    """Remove tasks that are in a state, which is not `active`; how many were."""
    script = load("delete")
    return Call(script, keys.names(script.keys), (_now(now_us), state, *_batch(ids)), int)


class PurgeStep(NamedTuple):
    """How many tasks went, and are left in the state; `last` is the end of the purge, which is
    passed to the next call, or None when it has come to that."""

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
    """Remove the first tasks of a state, up to the last that it held when this began.

    Of active ones only those go whose lease has lapsed.
    """
    script = load("purge")
    score, id = last or ("", "")
    args = (
        _now(now_us),
        state,
        min(count, MAX_TASKS_PER_CALL),
        score,
        id.encode(errors="surrogateescape"),
    )

    def decode(reply: Any) -> PurgeStep:
        deleted, left, more, score, id = reply
        end = (_text(score), id.decode(errors="surrogateescape"))
        return PurgeStep(deleted, left, end if more else None)

    return Call(script, keys.names(script.keys), args, decode)


def forget(keys: QueueKeys) -> Call[int]:
    """Remove a queue that holds nothing; how many tasks it holds, which is 0 when it is gone."""
    script = load("forget")
    return Call(script, keys.names(script.keys), (), int)


def repair(
    keys: QueueKeys,
    damage: str,
    rows: Sequence[tuple[str, str]],
    *,
    record: bytes,
    lease_us: int,
    now_us: int | None = None,
) -> Call[list[Literal["ok", "changed"]]]:
    """Mend a damage that an audit found, where it still is: rows of id and lock.

    `record` is the failure record of what is put among the dead; a task that a server holds, and
    that has no state, is leased to it for `lease_us`.
    """
    script = load("repair")
    args: list[Argument] = [_now(now_us), damage, record, lease_us]
    for row in _batch(rows):
        args += [text.encode(errors="surrogateescape") for text in row]
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def pause(keys: QueueKeys, note: bytes, *, now_us: int | None = None) -> Call[bool]:
    """Pause a queue; the note says by whom and why. False when it was paused before."""
    return _pause(keys, _note(note), now_us)


def resume(keys: QueueKeys) -> Call[bool]:
    """Resume a queue; False when it was not paused."""
    return _pause(keys, b"", None)


def publish(
    keys: QueueKeys, schedules: Sequence[tuple[str, bytes, bytes]], *, now_us: int | None = None
) -> Call[int]:
    """Say what schedules there are: name, record and task, the latter two opaque to the scripts."""
    script = load("publish")
    args: list[Argument] = [_now(now_us), SCHEDULE_SILENCE_US]
    for schedule in _batch(schedules):
        args += schedule
    return Call(script, keys.names(script.keys), tuple(args), int)


def pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, *, now_us: int | None = None
) -> Call[bool | None]:
    """Have the ticks of a schedule pass; False when it was so before, None: it is not there."""
    return _pause_schedule(keys, schedule, _note(note), now_us)


def resume_schedule(
    keys: QueueKeys, schedule: str, *, now_us: int | None = None
) -> Call[bool | None]:
    """Have a schedule go on; False when it was not paused, None: it is not there."""
    return _pause_schedule(keys, schedule, b"", now_us)


def forget_schedule(
    keys: QueueKeys, schedule: str, *, silence_us: int, now_us: int | None = None
) -> Call[bool | None]:
    """Remove a schedule that nobody published for so long; False: somebody did, None: not there."""
    script = load("forget_schedule")
    args = (_now(now_us), schedule, silence_us)
    return Call(script, keys.names(script.keys), args, _changed)


def register(keys: GlobalKeys, queues: Iterable[str]) -> Call[int]:
    """Add queues to the set of those in use; returns how many are new."""
    return Call(load("register"), (keys.queues,), tuple(queues), int)


def unregister(keys: GlobalKeys, queues: Iterable[str]) -> Call[int]:
    """Take queues out of the set of those in use; returns how many were in it."""
    return Call(load("unregister"), (keys.queues,), tuple(queues), int)


def announce(keys: GlobalKeys, server: str, *, ttl_us: int, now_us: int | None = None) -> Call[int]:
    """Say that a server lives, for so long (0: no more); returns how many do."""
    return Call(load("announce"), (keys.servers,), (_now(now_us), server, ttl_us), int)


def describe(
    keys: GlobalKeys, server: str, fields: dict[str, bytes | str | int], *, ttl_ms: int
) -> Call[int]:
    """Store what a server is and does, always the same fields, for so long (0: no more)."""
    pairs = [value for pair in fields.items() for value in pair]
    return Call(load("describe"), (keys.server(server),), (ttl_ms, *pairs), int)


def send(keys: GlobalKeys, server: str, order: bytes, *, ttl_ms: int) -> Call[int]:
    """Put an order into the inbox of a server."""
    return Call(load("send"), (keys.inbox(server),), (ttl_ms, order), int)


def _pause(keys: QueueKeys, note: bytes, now_us: int | None) -> Call[bool]:
    script = load("pause")
    return Call(script, keys.names(script.keys), (_now(now_us), note), bool)


def _pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, now_us: int | None
) -> Call[bool | None]:
    script = load("pause_schedule")
    return Call(script, keys.names(script.keys), (_now(now_us), schedule, note), _changed)


def _note(note: bytes) -> bytes:
    if not note:
        msg = "note: a pause without one would be a resume"
        raise ValueError(msg)
    return note


def _changed(reply: int) -> bool | None:
    return None if reply < 0 else bool(reply)


def _settle(
    name: str, keys: QueueKeys, rows: Sequence[tuple[Argument, ...]], now_us: int | None
) -> Call[list[Outcome]]:
    script = load(name)
    args: list[Argument] = [_now(now_us)]
    for row in _batch(rows):
        args += row
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def _batch(items: Sequence[T]) -> Sequence[T]:
    """The items, if they are not too many: Lua would give up on them half-way."""
    if len(items) > MAX_TASKS_PER_CALL:
        msg = f"{len(items)} tasks in one call are over the limit of {MAX_TASKS_PER_CALL}"
        raise ValueError(msg)
    return items


def _now(now_us: int | None) -> Argument:
    return "" if now_us is None else now_us


class _EnqueueOptions(msgspec.Struct, array_like=True):
    due: str
    fairness_key: str
    lock: str
    window_us: int
    remember_us: int


def _enqueue_options(task: NewTask) -> bytes:
    if not (task.due or task.fairness_key or task.lock or task.remember_us):
        return b""
    options = _EnqueueOptions(
        task.due, task.fairness_key, task.lock, task.window_us, task.remember_us
    )
    return codec.encode(options)


def _enqueued(reply: Any, confirmed: bool | None) -> list[Enqueued]:
    outcomes = _ENQUEUE_OUTCOMES
    return [
        Enqueued(outcomes[outcome], id.decode("utf-8", "backslashreplace"), confirmed)
        for outcome, id in zip(reply[::2], reply[1::2], strict=True)
    ]


_ENQUEUE_OUTCOMES: Final[dict[bytes, Literal["created", "exists", "duplicate", "repeated"]]] = {
    b"created": "created",
    b"exists": "exists",
    b"duplicate": "duplicate",
    b"repeated": "repeated",
}


def _fetched(reply: Any) -> FetchResult:
    now, next_due, more, recovered, died, *batch, own, paused, generation, left = reply
    ids, messages, failures, crashes, since = _only_tasks(*batch)
    return FetchResult(
        now_us=int(now),
        next_due_us=None if next_due == b"-1" else int(next_due),
        more=bool(more),
        recovered=recovered,
        died=died,
        ids=[id.decode() for id in ids],
        messages=messages,
        failures=failures,
        crashes=[crash_count(text) for text in crashes],
        own_lapsed=[_text(id) for id in own],
        paused=bool(paused),
        generation=_text(generation),
        left=bool(left),
        spared=_spared(ids, crashes) if any(crashes) else {},
        since=_since(ids, since) if any(since) else {},
    )


def _spared(ids: list[bytes], crashes: list[bytes | None]) -> dict[str, int]:
    """By id, the second number of crash counts that have one."""
    found = {}
    for id, text in zip(ids, crashes, strict=True):
        if text and (match := _SPARED.match(text)):
            found[id.decode()] = int(match[1])
    return found


def _since(ids: list[bytes], texts: list[bytes | None]) -> dict[str, int]:
    """By id, the time in `@<us>`; any other text is the progress of a task."""
    pairs = zip(ids, texts, strict=True)
    return {
        id.decode(): int(text[1:])
        for id, text in pairs
        if text and text[:1] == b"@" and text[1:].isdigit() and len(text) < 18
    }


def _only_tasks(ids: Any, *beside: Any) -> Iterator[list[Any]]:
    """The lists of a batch at full length, without what is there under no id that a task can have.

    Somebody wrote that into the store. It is left alone until its lease ends, and then it goes.
    """
    lists = [ids, *(one or [None] * len(ids) for one in beside)]
    together = b"".join(ids).decode(errors="replace")
    if not (together.isascii() and together.isprintable() and " " not in together and all(ids)):
        good = [at for at, id in enumerate(ids) if _PRINTABLE.fullmatch(id)]
        lists = [[one[at] for at in good] for one in lists]
    return iter(lists)


def crash_count(text: bytes | None) -> int:
    """The number in a crash count, whose last character may be a mark; 0 when there is none."""
    found = _NUMBER.match(text) if text else None
    return int(found[0]) if found else 0


_NUMBER: Final = re.compile(rb"\d{1,16}")
_SPARED: Final = re.compile(rb"\d+~(\d{1,6})")
_PRINTABLE: Final = re.compile(rb"[!-~]+")


def _text(value: bytes) -> str:
    """What the store holds as text; never an error, whoever wrote it."""
    return value.decode(errors="backslashreplace")


def _outcomes(reply: Any) -> list[Any]:
    return [_text(outcome) for outcome in reply]


def _pairs(reply: Any) -> Any:
    texts = _outcomes(reply)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _texts(reply: Any) -> Any:
    return tuple([_text(part) for part in reply])
