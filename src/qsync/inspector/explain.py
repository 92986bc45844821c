"""Explains why a task is not running yet and when it will run."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from qsync.bounds import QueueBounds
from qsync.broker import bounds_ops, limit_ops, type_ops, views
from qsync.broker.leased_batch import crash_count
from qsync.broker.stored_task import lease_until, state_of
from qsync.errors import InvalidTask
from qsync.inspector.explain_texts import (
    DIED,
    EXPIRED,
    PAST_DEADLINE,
    blockers_of,
    crashed_sentence,
    due_phrase,
    earliest_start,
    ended_sentence,
    later_call_sentences,
    lease_sentence,
    limited_sentence,
    priority_sentences,
    quoted_type,
    running_sentence,
    set_aside_sentence,
    shortened,
)
from qsync.inspector.explanation import (
    Explanation,
    Facts,
    Reason,
    able_servers,
)
from qsync.inspector.limits import info_of
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import decode_task, pause_of, server_of
from qsync.keys import check_id, holder_of_token
from qsync.new_task import new_nonce, new_task
from qsync.phrase import Ordinal, Phrase, joined, phrase, plural_phrase
from qsync.state import UNFINISHED, TaskState
from qsync.task import Task
from qsync.times import from_us
from qsync.value_text import shorten

RUN_ALONE: Final = 2
"""Minimum number of crashes after which a task runs alone in its process."""

MAX_MEASURE_S: Final = 5.0


def explain(facts: Facts) -> Explanation:
    """Return the explanation for a task that is in the queue. Does no I/O."""
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
    text = phrase(
        "Not in queue %(queue)s: it has ended and was not kept, was deleted, or was never enqueued "
        "there.",
        queue=queue,
    )
    return Explanation(
        id=id, queue=queue, state=None, sentence=str(text), phrase=text, reason="not_found"
    )


def duplicate_of(holder: Explanation) -> Explanation:
    """Return the explanation for a task that was not enqueued because another holds its lock."""
    reason = holder.phrase or holder.sentence
    text = joined([phrase("Duplicate of task %(id)s.", id=holder.id), reason])
    return replace(
        holder,
        sentence=str(text),
        phrase=text,
        reason="duplicate",
        also=[holder.reason, *holder.also],
        holder=holder.id,
    )


def _pending(facts: Facts, blank: Explanation) -> Explanation:
    rank = facts.located.rank or 0
    # This is an estimate, since it is unknown how the rate is split among the servers that can run
    # the task.
    wait = rank / facts.rate if facts.rate else None
    blockers, able = blockers_of(facts, blank.paused), able_servers(facts)
    slots = sum(server.concurrency for server in able)
    is_stuck = bool(able) and all(server.stuck for server in able)
    is_full = not blockers and bool(able) and all(server.full for server in able) and not is_stuck
    place = {"position": Ordinal(rank + 1), "all": max(rank + 1, facts.located.pending)}
    waits = phrase("Waiting: %(position)s of %(all)s.", **place)
    if is_full:
        waits = plural_phrase(
            "Waiting: %(position)s of %(all)s; all %(num)s slots are busy.",
            "Waiting: %(position)s of %(all)s; all %(num)s slots are busy.",
            slots, **place,
        )  # fmt: skip
    sentences = [waits, *priority_sentences(facts)]
    if blank.attempt > 1:
        sentences.append(
            phrase(
                "Next is attempt %(number)s of %(all)s.", number=blank.attempt, all=blank.retry + 1
            )
        )
    reasons = [reason for reason, _ in blockers] or ["behind" if rank else "next"]
    sentences += [sentence for _, sentence in blockers]
    if not blockers and is_stuck:
        sentences.append(
            phrase(
                "All slots of its servers hold tasks that wait for results of tasks in the same "
                "queues."
            )
        )
    if wait and not blockers:
        sentences.append(phrase("About %(length)s to go.", length=timedelta(seconds=wait)))
    if _is_past_deadline(facts):
        reasons.append("deadline")
        sentences.append(PAST_DEADLINE)
    return _explained(blank, sentences, reasons, rank=rank, wait=wait, servers=len(able))


def _limited(facts: Facts, blank: Explanation) -> Explanation:
    info = facts.waits_for
    sentences = [
        phrase("Its limit has just opened: the task starts when a server next looks for tasks.")
    ]
    if facts.waits_for_type:
        sentences = [
            phrase(
                "The pause of %(type)s is over: the task starts when a "
                "server next looks for tasks.",
                type=quoted_type(facts),
            )
        ]
    reasons: list[Reason] = ["limited"]
    if facts.waits_for_type and facts.type_pause:
        sentences, reasons = [set_aside_sentence(facts.waits_before)], []
    elif info is not None:
        sentences = [limited_sentence(info, facts.waits_before, facts.other_limits)]
    for reason, sentence in blockers_of(facts, blank.paused):
        reasons.append(reason)
        sentences.append(sentence)
    if _is_past_deadline(facts):
        reasons.append("deadline")
        sentences.append(PAST_DEADLINE)
    return _explained(
        blank, sentences, reasons, servers=len(able_servers(facts)),
        rank=facts.waits_before, at=info and earliest_start(info, facts),
        limit=info and info.limit, limit_holders=info.holders if info else [],
    )  # fmt: skip


def _scheduled(facts: Facts, blank: Explanation) -> Explanation:
    failure, due_at = facts.task.failure, from_us(facts.task.shown.score)
    when = due_phrase(facts, due_at)
    reasons: list[Reason] = ["scheduled"]
    sentence = phrase("Scheduled for %(when)s.", when=when)
    if failure.unknown_times:
        sentence = plural_phrase(
            "Returned to the queue once by servers without a handler for %(type)s; next try at "
            "%(when)s.",
            "Returned to the queue %(num)s times by servers without a handler for %(type)s; next "
            "try at %(when)s.",
            failure.unknown_times, type=quoted_type(facts), when=when,
        )  # fmt: skip
        reasons = ["handed_back"]
    elif failure.snoozed_at_us:
        sentence = phrase("Snoozed by its handler until %(when)s.", when=when)
        if failure.snoozes != 1:
            sentence = phrase(
                "Snoozed by its handler for the %(position)s time until %(when)s.",
                position=Ordinal(failure.snoozes), when=when,
            )  # fmt: skip
        reasons = ["snoozed"]
    elif facts.task.options.debounce_us:
        reasons = ["debounced"]
    return _waiting(facts, blank, [sentence, *later_call_sentences(facts)], reasons, due_at)


def _retry(facts: Facts, blank: Explanation) -> Explanation:
    due_at = from_us(facts.task.shown.score)
    retry = phrase(
        "Retry %(number)s of %(all)s at %(when)s.",
        number=facts.task.failure.attempts, all=blank.retry, when=due_phrase(facts, due_at),
    )  # fmt: skip
    return _waiting(facts, blank, [retry, *later_call_sentences(facts)], ["retry"], due_at)


def _waiting(
    facts: Facts,
    blank: Explanation,
    sentences: list[Phrase],
    reasons: list[Reason],
    due_at: datetime,
) -> Explanation:
    """Explain a scheduled task or a retry, including what will keep it from starting when it is
    due."""
    for reason, sentence in blockers_of(facts, blank.paused):
        reasons.append(reason)
        sentences.append(sentence)
    return _explained(blank, sentences, reasons, at=due_at, servers=len(able_servers(facts)))


def _active(facts: Facts, blank: Explanation) -> Explanation:
    shown, located = facts.task.shown, facts.located
    server, until = server_of(shown), lease_until(shown)
    since_us = _started_us(facts)
    since = from_us(since_us) if since_us else None
    ran = timedelta(microseconds=max(0, located.now_us - since_us)) if since_us else None
    sentences = [running_sentence(server, ran, facts.task.options.timeout_us)]
    reasons: list[Reason] = ["active"]
    lease_left = timedelta(microseconds=max(0.0, shown.score - located.now_us))
    if shown.score <= located.now_us:
        reasons = ["lapsed"]
        sentences.append(DIED if shown.score < 0 else EXPIRED)
    else:
        sentences.append(lease_sentence(lease_left, any(row.id == server for row in facts.servers)))
    if shown.cancel is not None:
        reasons.append("cancelled")
        sentences.append(phrase("Its cancellation was requested."))
    again = None if located.next_run_us is None else from_us(located.next_run_us)
    if again is not None:
        reasons.append("replaced")
        sentences.append(
            phrase(
                "A later call with its unique key waits: when this attempt has ended, "
                "but not before %(time)s, the task runs again with the payload of that call.",
                time=again,
            )
        )
    return _explained(
        blank, sentences, reasons, at=again, server=server, since=since, lease_until=until
    )


def _started_us(facts: Facts) -> int | None:
    """Return when a running task started, as its server reported, or else when it was fetched."""
    shown, located = facts.task.shown, facts.located
    server = server_of(shown)
    for record in facts.servers:
        if record.id == server and (us := record.started_us(facts.queue, facts.task.id)):
            return us
    number = (shown.owner or "").rpartition("/")[2]
    is_last = number == str(located.fetch_number)
    return located.fetched_at_us if is_last and located.fetched_at_us else None


def _completed(facts: Facts, blank: Explanation) -> Explanation:
    shown, kept_us = facts.task.shown, facts.task.options.retention_us
    ended_at = None if kept_us is None else from_us(shown.score - kept_us)
    reason: Reason = "completed" if shown.cancel is None else "cancelled"
    sentence = ended_sentence(shown.cancel is not None, ended_at, from_us(shown.score))
    return _explained(blank, [sentence], [reason], at=ended_at)


def _dead(facts: Facts, blank: Explanation) -> Explanation:
    died_at, holder = from_us(facts.task.shown.score), facts.located.holder
    sentences, reasons = [phrase("Dead since %(time)s.", time=died_at)], list[Reason](["dead"])
    if holder is not None and holder != facts.id:
        reasons.append("duplicate")
        sentences.append(
            phrase("It cannot run again while task %(id)s holds its unique lock.", id=holder)
        )
    else:
        holder = None
    attempts = facts.task.failure.attempts
    return _explained(blank, sentences, reasons, at=died_at, holder=holder, attempt=attempts or 1)


def with_bounds(explanation: Explanation, bounds: QueueBounds) -> Explanation:
    """Return the explanation, with another sentence if the queue is full or nearly full. Does no
    I/O."""
    if bounds.phrase is None:
        return explanation
    full = phrase("The queue is %(note)s.", note=bounds.phrase)
    text = joined([explanation.phrase or explanation.sentence, full])
    return replace(
        explanation,
        sentence=str(text),
        phrase=text,
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
    blank: Explanation, sentences: list[Phrase], reasons: Sequence[Reason], **fields: object
) -> Explanation:
    if blank.crashes >= RUN_ALONE and blank.state in UNFINISHED:
        sentences.append(crashed_sentence(blank.crashes))
    if blank.error and blank.state in (TaskState.RETRY, TaskState.DEAD):
        sentences.append(phrase("Last error: %(error)s", error=shortened(blank.error)))
    text, (first, *others) = joined(sentences), reasons
    return replace(blank, sentence=str(text), phrase=text, reason=first, also=others, **fields)


def _is_past_deadline(facts: Facts) -> bool:
    deadline_us = facts.task.options.deadline_us
    return deadline_us is not None and deadline_us <= facts.located.now_us


class _ExplainMixin(_LiveServersMixin):
    """Explains why a task is not running yet."""

    async def explain(
        self, task: str | Task, *, queue: str = "default", measure: float = 0.0
    ) -> Explanation:
        """Explain why a task is not running yet, and when it will run.

        `task` is an id, or a Task that was rejected as a duplicate; a Task is looked up in its own
        queue. The estimate for a pending task needs two readings of its queue. If there is no
        earlier reading, the call waits `measure` seconds (0 to 5) and reads again.
        """
        if type(measure) not in (int, float) or not 0 <= measure <= MAX_MEASURE_S:
            raise InvalidTask(
                f"measure: {shorten(measure)} is not a number of seconds from 0 to {MAX_MEASURE_S}"
            )
        if isinstance(task, Task):
            return await self._explain_duplicate(task, measure)
        return await self._explain(check_id(task), queue, measure)

    async def _explain(self, id: str, queue: str, measure: float) -> Explanation:
        keys = self._keys(queue)
        [shown] = await self._broker.run(views.get_tasks(keys, [id]))
        if shown is None:
            return not_found(id, queue)
        # Decode in a thread, since the message may be large.
        looked = await asyncio.to_thread(decode_task, id, shown)
        holder = holder_of_token(shown.owner or "")
        call = views.pending_position(keys, id, lock=looked.options.lock or "", server=holder)
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
        """Return the facts, completed with the pause of the task's type, if any."""
        for paused in await self._broker.run(type_ops.paused_types(self._keys(facts.queue))):
            if facts.task.message and paused.type == facts.task.message.type:
                pause = pause_of(paused.note, paused.paused_at_us)
                return dataclasses.replace(facts, type_pause=pause)
        return facts

    async def _with_limit(self, facts: Facts) -> Facts:
        """Return the facts, completed with what a limited task waits for: a limit, or its type."""
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
                infos = [info_of(facts.queue, other) for other in details if other is not detail]
                return dataclasses.replace(
                    facts, waits_for=info_of(facts.queue, detail), waits_before=detail.place,
                    other_limits=[info for info in infos if info.rule or info.closed_until],
                )  # fmt: skip
        return facts  # the task has just stopped waiting

    async def _explain_duplicate(self, task: Task, measure: float) -> Explanation:
        rejected = new_task(task, new_nonce())
        if task.id is not None:
            explanation = await self._explain(task.id, rejected.queue, measure)
            if explanation.state is not None:
                return duplicate_of(explanation)
        holder = None
        if rejected.lock:
            call = views.pending_position(self._keys(rejected.queue), "", lock=rejected.lock)
            holder = (await self._broker.run(call)).holder
        if holder is None:
            return not_found(task.id or "", rejected.queue)
        return duplicate_of(await self._explain(holder, rejected.queue, measure))
