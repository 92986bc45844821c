"""Explains why a task is not running yet and when it will run."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from qsync.bounds import QueueBounds
from qsync.broker import bounds_ops, limit_ops, pending_view, type_ops, views
from qsync.broker.leased_batch import crash_count
from qsync.broker.stored_task import lease_until, moment_of, state_of
from qsync.errors import InvalidTask
from qsync.formatting import duration, ordinal, plural, utc_time
from qsync.inspector.blockers import Facts, able_servers, blockers_of, quoted_type
from qsync.inspector.limit_values import LimitInfo
from qsync.inspector.limits import info_of
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import decode_task, pause_of, server_of
from qsync.inspector.values import Explanation, Reason
from qsync.keys import check_id, holder_of_token
from qsync.message import NORMAL_PRIORITY
from qsync.new_task import new_nonce, new_task
from qsync.state import UNFINISHED, TaskState
from qsync.task import Task

RUN_ALONE: Final = 2
"""Number of crashes from which on a task runs alone in its process."""

ERROR_SHOWN: Final = 120
"""Number of characters of an error that a sentence shows."""

HOLDERS_SHOWN: Final = 5
"""Number of tasks that a sentence names as holders of a limit."""

MAX_MEASURE_S: Final = 5.0


def explain(facts: Facts) -> Explanation:
    """Return the explanation for a task that is in the queue. Pure."""
    task, shown = facts.task, facts.task.shown
    blank = Explanation(
        id=facts.id,
        queue=facts.queue,
        state=state_of(shown),
        sentence="",
        reason="behind",
        rate=facts.rate,
        paused=pause_of(facts.located.pause_note, facts.located.paused_at_us),
        type_paused=facts.type_pause,
        attempt=task.failure.attempts + 1,
        retry=task.message.retry if task.message else 0,
        crashes=crash_count(shown.crashes),
        error=task.error,
    )
    return _BY_STATE[shown.state](facts, blank)


def not_found(id: str, queue: str) -> Explanation:
    """Return the explanation for a task that is not in the queue."""
    sentence = (
        f"Not in queue {queue}: it has ended and was not kept, was deleted, or was never enqueued "
        "there."
    )
    return Explanation(id=id, queue=queue, state=None, sentence=sentence, reason="not_found")


def duplicate_of(holder: Explanation) -> Explanation:
    """Return the explanation for a task that is not enqueued because another holds its lock."""
    return replace(
        holder,
        sentence=f"Duplicate of task {holder.id}. {holder.sentence}",
        reason="duplicate",
        also=[holder.reason, *holder.also],
        holder=holder.id,
    )


def _pending(facts: Facts, blank: Explanation) -> Explanation:
    rank = facts.located.rank or 0
    # An estimate: how the rate splits among the task's possible servers is unknown.
    wait = rank / facts.rate if facts.rate else None
    blockers, able = blockers_of(facts, blank.paused), able_servers(facts)
    slots = sum(server.concurrency for server in able)
    is_stuck = bool(able) and all(server.stuck for server in able)
    is_full = not blockers and bool(able) and all(server.full for server in able) and not is_stuck
    busy = f"; all {slots:,} slots are busy" if is_full else ""
    position = f"{ordinal(rank + 1)} of {max(rank + 1, facts.located.pending):,}"
    sentences = [f"Waiting: {position}{busy}.", *_priority(facts)]
    if blank.attempt > 1:
        sentences.append(f"Next is attempt {blank.attempt} of {blank.retry + 1}.")
    reasons = [reason for reason, _ in blockers] or ["behind" if rank else "next"]
    sentences += [sentence for _, sentence in blockers]
    if not blockers and is_stuck:
        sentences.append(
            "All slots of its servers hold tasks that wait for results of tasks in the same queues."
        )
    if wait and not blockers:
        sentences.append(f"About {duration(wait)} to go.")
    if _is_past_deadline(facts):
        reasons.append("deadline")
        sentences.append("Its deadline has passed: it will be dead as soon as a server takes it.")
    return _explained(blank, sentences, reasons, rank=rank, wait=wait, servers=len(able))


def _limited(facts: Facts, blank: Explanation) -> Explanation:
    info = facts.waits_for
    cause = f"a pause of {quoted_type(facts)} that" if facts.waits_for_type else "a limit that"
    ended = "is over" if facts.waits_for_type else "has just opened"
    sentences = [f"Limited by {cause} {ended}: it starts when a server looks for tasks."]
    reasons: list[Reason] = ["limited"]
    if facts.waits_for_type and facts.type_pause:
        before = f"{plural(facts.waits_before, 'task')} of it before this one"
        sentences, reasons = [f"Set aside, with {before}."], []
    elif info is not None:
        order = _order(facts.waits_before)
        sentences = [f"Limited by {info.limit}: {_obstacle(info)}; {order}."]
    for reason, sentence in blockers_of(facts, blank.paused):
        reasons.append(reason)
        sentences.append(sentence)
    if _is_past_deadline(facts):
        reasons.append("deadline")
        sentences.append("Its deadline has passed: it will be dead as soon as a server takes it.")
    return _explained(
        blank, sentences, reasons, servers=len(able_servers(facts)),
        rank=facts.waits_before, at=info and (info.closed_until or info.opens_at),
        limit=info and info.limit, limit_holders=info.holders if info else [],
    )  # fmt: skip


def _order(before: int) -> str:
    return "next to start" if before == 0 else f"{ordinal(before + 1)} to start"


def _obstacle(info: LimitInfo) -> str:
    """Return why a limit lets no task start now."""
    if info.closed_until is not None:
        return f"closed until {utc_time(info.closed_until)}"
    most = info.rule.concurrency if info.rule else None
    if most is not None and info.taken >= most:
        holders = ", ".join(info.holders[:HOLDERS_SHOWN])
        others = info.taken - len(info.holders[:HOLDERS_SHOWN])
        more = f" and {others:,} more" if others > 0 and holders else ""
        by = f" by {holders}{more}" if holders else ""
        return f"{info.taken:,} of {most:,} {'slot' if most == 1 else 'slots'} in use{by}"
    if info.opens_at is not None:
        return f"opens at {utc_time(info.opens_at)} ({info.rule})"
    return "open, and other tasks wait before it"


def _scheduled(facts: Facts, blank: Explanation) -> Explanation:
    failure, due_at = facts.task.failure, moment_of(facts.task.shown.score)
    when = _when(facts, due_at)
    reasons: list[Reason] = ["scheduled"]
    sentence = f"Scheduled for {when}."
    if failure.unknown_times:
        times = "once" if failure.unknown_times == 1 else f"{failure.unknown_times} times"
        sentence = (
            f"Returned to the queue {times} by servers without a handler for {quoted_type(facts)}; "
            f"next try at {when}."
        )
        reasons = ["handed_back"]
    elif failure.snoozed_at_us:
        times = "" if failure.snoozes == 1 else f" for the {ordinal(failure.snoozes)} time"
        sentence = f"Snoozed by its handler{times} until {when}."
        reasons = ["snoozed"]
    elif facts.task.options.debounce_us:
        reasons = ["debounced"]
    return _waiting(facts, blank, [sentence, *_later_calls(facts)], reasons, due_at)


def _retry(facts: Facts, blank: Explanation) -> Explanation:
    due_at = moment_of(facts.task.shown.score)
    retry = f"Retry {facts.task.failure.attempts} of {blank.retry} at {_when(facts, due_at)}."
    return _waiting(facts, blank, [retry, *_later_calls(facts)], ["retry"], due_at)


def _priority(facts: Facts) -> list[str]:
    """Return what the priority of a pending task does, if it or a higher one is used."""
    priority, above = facts.task.options.priority or NORMAL_PRIORITY, facts.located.above
    if not above:
        return [f"Its priority is {priority}."] if priority != NORMAL_PRIORITY else []
    tasks = "1 task" if above == 1 else f"{above:,} tasks"
    return [f"Its priority is {priority}: {tasks} of a higher priority start before it."]


def _later_calls(facts: Facts) -> list[str]:
    """Return what later calls with the unique key of a waiting task do to it."""
    options, message = facts.task.options, facts.task.message
    if not options.replaces or message is None:
        return []
    if not options.debounce_us:
        return ["A later call with its unique key replaces it while it waits."]
    text = f"It runs {duration(options.debounce_us / 1e6)} after the last call with its unique key"
    if options.debounce_max_us is None:
        return [f"{text}."]
    latest = utc_time(moment_of(message.enqueued_at_us + options.debounce_max_us))
    longest = duration(options.debounce_max_us / 1e6)
    return [f"{text}, at the latest at {latest}, {longest} after the first call."]


def _waiting(
    facts: Facts,
    blank: Explanation,
    sentences: list[str],
    reasons: list[Reason],
    due_at: datetime,
) -> Explanation:
    """Explain a scheduled task or a retry, with what will block it when it is due."""
    for reason, sentence in blockers_of(facts, blank.paused):
        reasons.append(reason)
        sentences.append(sentence)
    return _explained(blank, sentences, reasons, at=due_at, servers=len(able_servers(facts)))


def _active(facts: Facts, blank: Explanation) -> Explanation:
    shown, located = facts.task.shown, facts.located
    server, until = server_of(shown), lease_until(shown)
    number = (shown.owner or "").rpartition("/")[2]
    is_known = number.isdigit() and int(number) == located.fetch_number and located.fetched_at_us
    since = moment_of(located.fetched_at_us) if is_known else None
    ran = f" for {duration((located.now_us - located.fetched_at_us) / 1_000_000)}" if since else ""
    limit_us = facts.task.options.timeout_us
    limit = f" (time limit {duration(limit_us / 1_000_000)})" if limit_us else ""
    sentences = [f"Running{ran} on {server or 'an unknown server'}{limit}."]
    reasons: list[Reason] = ["active"]
    left = duration(max(0.0, shown.score - located.now_us) / 1_000_000)
    if shown.score <= located.now_us:
        reasons = ["lapsed"]
        what = "Its server died" if shown.score < 0 else "Its lease has expired"
        sentences.append(f"{what}: it returns to the queue when a server next looks for tasks.")
    elif any(record.id == server for record in facts.servers):
        sentences.append(f"Its lease expires in {left} unless the server renews it.")
    else:
        sentences.append(
            f"The server stopped responding. The task is recovered when its lease expires, in "
            f"{left}."
        )
    if shown.cancel is not None:
        reasons.append("cancelled")
        sentences.append("Its cancellation was requested.")
    again = None
    if located.next_run_us is not None:
        again = moment_of(located.next_run_us)
        reasons.append("replaced")
        sentences.append(
            "A later call with its unique key waits: when this attempt has ended, the task runs "
            f"again with the payload of that call, not before {utc_time(again)}."
        )
    return _explained(
        blank, sentences, reasons, at=again, server=server, since=since, lease_until=until
    )


def _completed(facts: Facts, blank: Explanation) -> Explanation:
    shown, kept_us = facts.task.shown, facts.task.options.retention_us
    ended_at = None if kept_us is None else moment_of(shown.score - kept_us)
    reason: Reason = "completed" if shown.cancel is None else "cancelled"
    when = f" at {utc_time(ended_at)}" if ended_at else ""
    sentence = f"{reason.capitalize()}{when}, deleted after {utc_time(moment_of(shown.score))}."
    return _explained(blank, [sentence], [reason], at=ended_at)


def _dead(facts: Facts, blank: Explanation) -> Explanation:
    died_at, holder = moment_of(facts.task.shown.score), facts.located.holder
    sentences, reasons = [f"Dead since {utc_time(died_at)}."], list[Reason](["dead"])
    if holder is not None and holder != facts.id:
        reasons.append("duplicate")
        sentences.append(f"It cannot run again while task {holder} holds its unique lock.")
    else:
        holder = None
    attempts = facts.task.failure.attempts
    return _explained(blank, sentences, reasons, at=died_at, holder=holder, attempt=attempts or 1)


def with_bounds(explanation: Explanation, bounds: QueueBounds) -> Explanation:
    """Return the explanation with a sentence about a queue that is full or nearly full. Pure."""
    if not bounds.note:
        return explanation
    return replace(
        explanation,
        sentence=f"{explanation.sentence} The queue is {bounds.note}.",
        also=[*explanation.also, "full"],
    )


_BY_STATE = {
    TaskState.PENDING: _pending,
    TaskState.LIMITED: _limited,
    TaskState.SCHEDULED: _scheduled,
    TaskState.RETRY: _retry,
    TaskState.ACTIVE: _active,
    TaskState.COMPLETED: _completed,
    TaskState.DEAD: _dead,
}


def _explained(
    blank: Explanation, sentences: list[str], reasons: Sequence[Reason], **fields: object
) -> Explanation:
    if blank.crashes >= RUN_ALONE and blank.state in UNFINISHED:
        times = "twice" if blank.crashes == RUN_ALONE else f"{blank.crashes} times"
        sentences.append(f"It runs alone, because its server crashed {times} while running it.")
    if blank.error and blank.state in (TaskState.RETRY, TaskState.DEAD):
        sentences.append(f"Last error: {_shortened(blank.error)}")
    text, (first, *others) = " ".join(sentences), reasons
    return replace(blank, sentence=text, reason=first, also=others, **fields)


def _is_past_deadline(facts: Facts) -> bool:
    deadline_us = facts.task.options.deadline_us
    return deadline_us is not None and deadline_us <= facts.located.now_us


def _when(facts: Facts, due_at: datetime) -> str:
    left = facts.task.shown.score - facts.located.now_us
    if left <= 0:
        return f"{utc_time(due_at)} (due now: it starts when a server next looks for tasks)"
    return f"{utc_time(due_at)} (in {duration(left / 1_000_000)})"


def _shortened(error: str) -> str:
    line = error.partition("\n")[0]
    return line if len(line) <= ERROR_SHOWN else f"{line[: ERROR_SHOWN - 1].rstrip(' .')}…"


class _ExplainMixin(_LiveServersMixin):
    """Explains why a task is not running yet."""

    async def explain(
        self, task: str | Task, *, queue: str = "default", measure: float = 0.0
    ) -> Explanation:
        """Explain why a task is not running yet, and when it will run.

        `task` is an id, or a Task that was rejected as a duplicate; a Task's own queue is
        used. The estimate for a pending task needs two readings of its queue: without an earlier
        one, the call waits `measure` seconds (0 to 5) for the second.
        """
        if not 0 <= measure <= MAX_MEASURE_S:
            raise InvalidTask(
                f"measure: {measure!r:.80} is not a number of seconds from 0 to {MAX_MEASURE_S}"
            )
        if isinstance(task, Task):
            return await self._explain_duplicate(task, measure)
        return await self._explain(check_id(task), queue, measure)

    async def _explain(self, id: str, queue: str, measure: float) -> Explanation:
        keys = self._keys(queue)
        [shown] = await self._broker.run(views.get_tasks(keys, [id]))
        if shown is None:
            return not_found(id, queue)
        looked = await asyncio.to_thread(
            decode_task, id, shown
        )  # in a thread: the message may be large
        holder = holder_of_token(shown.owner or "")
        call = pending_view.pending_position(
            keys, id, lock=looked.options.lock or "", server=holder
        )
        located = await self._broker.run(call)
        rate = self._note_rate(queue, located.ended)
        if rate is None and located.rank and measure:
            await asyncio.sleep(measure)
            located = await self._broker.run(call)
            rate = self._note_rate(queue, located.ended)
        _, servers = await self._live()
        facts = Facts(id, queue, looked, located, servers, rate)
        if shown.state in UNFINISHED:
            facts = await self._with_pause(facts)
        if shown.state is TaskState.LIMITED:
            facts = await self._with_limit(facts)
        explanation = explain(facts)
        if explanation.state not in UNFINISHED:
            return explanation
        return with_bounds(explanation, await self._broker.run(bounds_ops.queue_bounds(keys)))

    async def _with_pause(self, facts: Facts) -> Facts:
        """Return the facts with the pause of the type of the task."""
        for paused in await self._broker.run(type_ops.paused_types(self._keys(facts.queue))):
            if facts.task.message and paused.type == facts.task.message.type:
                pause = pause_of(paused.note, paused.paused_at_us)
                return dataclasses.replace(facts, type_pause=pause)
        return facts

    async def _with_limit(self, facts: Facts) -> Facts:
        """Return the facts with the limit that a limited task waits for, or its type."""
        keys = self._keys(facts.queue)
        limits = list(facts.task.options.limits or ())
        if facts.task.message:
            limits.append(type_ops.type_limit(facts.task.message.type))
        details = await self._run_all(
            [limit_ops.get_limit(keys, limit, id=facts.id) for limit in limits]
        )
        for detail in details:
            if detail.place is not None and detail.state.limit[:1] == type_ops.TYPE_MARK:
                return dataclasses.replace(facts, waits_for_type=True, waits_before=detail.place)
            if detail.place is not None:
                info = info_of(facts.queue, detail)
                return dataclasses.replace(facts, waits_for=info, waits_before=detail.place)
        return facts  # it has just stopped waiting

    async def _explain_duplicate(self, task: Task, measure: float) -> Explanation:
        rejected = new_task(task, new_nonce())
        if task.id is not None:
            explanation = await self._explain(task.id, rejected.queue, measure)
            if explanation.state is not None:
                return duplicate_of(explanation)
        holder = None
        if rejected.lock:
            call = pending_view.pending_position(self._keys(rejected.queue), "", lock=rejected.lock)
            holder = (await self._broker.run(call)).holder
        if holder is None:
            return not_found(task.id or "", rejected.queue)
        return duplicate_of(await self._explain(holder, rejected.queue, measure))
