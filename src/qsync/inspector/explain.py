"""Explains why a task is not running yet and when it will run, from facts of the store. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from qsync.broker.ops import crash_count
from qsync.broker.views import PendingPosition, lease_until, moment_of, state_of
from qsync.inspector.live_servers import Record
from qsync.inspector.task_rows import Looked, pause_of, server_of
from qsync.inspector.values import Explanation, Pause, Reason
from qsync.state import UNFINISHED, TaskState

RUN_ALONE: Final = 2
"""Number of crashes from which on a task runs alone in its process."""

ERROR_SHOWN: Final = 120


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that an explanation is made from."""

    id: str
    queue: str
    task: Looked
    located: PendingPosition
    servers: Sequence[Record]
    """The live servers."""
    rate: float | None


def explain(facts: Facts) -> Explanation:
    """Return the explanation for a task that is in the queue."""
    task, shown = facts.task, facts.task.shown
    blank = Explanation(
        id=facts.id,
        queue=facts.queue,
        state=state_of(shown),
        sentence="",
        reason="behind",
        rate=facts.rate,
        paused=pause_of(facts.located.pause_note, facts.located.paused_at_us),
        attempt=task.failure.attempts + 1,
        retry=task.message.retry if task.message else 0,
        crashes=crash_count(shown.crashes),
        error=task.error,
    )
    return _BY_STATE[shown.state](facts, blank)


def not_found(id: str, queue: str) -> Explanation:
    """Return the explanation for a task that is not in the queue."""
    sentence = (
        f"not in queue {queue}: it has ended and was not kept, was deleted, or was never "
        "enqueued there"
    )
    return Explanation(id=id, queue=queue, state=None, sentence=sentence, reason="not_found")


def duplicate_of(holder: Explanation) -> Explanation:
    """Return the explanation for a task that is not enqueued because another holds its lock."""
    return replace(
        holder,
        sentence=f"duplicate of {holder.id}, which is {holder.sentence}",
        reason="duplicate",
        also=[holder.reason, *holder.also],
        holder=holder.id,
    )


def _pending(facts: Facts, blank: Explanation) -> Explanation:
    rank = facts.located.rank or 0
    # An estimate: how the rate splits among the task's possible servers is unknown.
    wait = rank / facts.rate if facts.rate else None
    blockers = _blockers(facts, blank.paused)
    about = f" (about {duration(wait)} at the present rate)" if wait and not blockers else ""
    parts = [f"pending, {ordinal(rank + 1)} of {max(rank + 1, facts.located.pending)}{about}"]
    if blank.attempt > 1:
        parts.append(f"for attempt {blank.attempt} of {blank.retry + 1}")
    reasons = [reason for reason, _ in blockers] or ["behind" if rank else "next"]
    parts += [text for _, text in blockers]
    if not blockers and _all_stuck(facts):
        parts.append(
            "all slots of its servers hold tasks that wait for results of tasks on their own queues"
        )
    elif not blockers and _all_full(facts):
        parts.append("all servers are full")
    if _late(facts):
        reasons.append("deadline")
        parts.append("its deadline has passed: it will be dead as soon as a server takes it")
    return _told(blank, parts, reasons, rank=rank, wait=wait, servers=len(_able(facts)))


def _scheduled(facts: Facts, blank: Explanation) -> Explanation:
    failure, at = facts.task.failure, moment_of(facts.task.shown.score)
    when = _when(facts, at)
    reasons: list[Reason] = ["scheduled"]
    if failure.unknown_times:
        times = "once" if failure.unknown_times == 1 else f"{failure.unknown_times} times"
        parts = [
            f"handed back {times} by servers that do not know type {_type(facts)}; "
            f"tried again at {when}"
        ]
        reasons = ["handed_back"]
    else:
        parts = [f"scheduled for {when}"]
    return _waiting(facts, blank, parts, reasons, at)


def _retry(facts: Facts, blank: Explanation) -> Explanation:
    failure, at = facts.task.failure, moment_of(facts.task.shown.score)
    error = f", last error: {_brief(blank.error)}" if blank.error else ""
    parts = [f"retry {failure.attempts} of {blank.retry} at {_when(facts, at)}{error}"]
    return _waiting(facts, blank, parts, ["retry"], at)


def _waiting(
    facts: Facts, blank: Explanation, parts: list[str], reasons: list[Reason], at: datetime
) -> Explanation:
    """Explain a scheduled task or a retry, with what will block it when it is due."""
    for reason, text in _blockers(facts, blank.paused):
        reasons.append(reason)
        parts.append(text)
    return _told(blank, parts, reasons, at=at, servers=len(_able(facts)))


def _active(facts: Facts, blank: Explanation) -> Explanation:
    shown, located = facts.task.shown, facts.located
    server, until = server_of(shown), lease_until(shown)
    number = (shown.owner or "").rpartition("/")[2]
    same = number.isdigit() and int(number) == located.fetch_number and located.fetched_at_us
    since = moment_of(located.fetched_at_us) if same else None
    began = f" since {_time(since)}" if since else ""
    parts = [f"active on server {server or 'nobody knows'}{began}, lease until {_time(until)}"]
    reasons: list[Reason] = ["active"]
    if shown.score <= located.now_us:
        reasons = ["lapsed"]
        what = "its server died" if shown.score < 0 else "the lease has lapsed"
        parts.append(f"{what}: it is pending again as soon as a server looks")
    elif not any(one.id == server for one in facts.servers):
        parts.append("that server does not answer any more: the task is taken back then")
    if shown.cancel is not None:
        reasons.append("cancelled")
        parts.append("its cancel was asked for")
    return _told(blank, parts, reasons, server=server, since=since, lease_until=until)


def _completed(facts: Facts, blank: Explanation) -> Explanation:
    shown, kept_us = facts.task.shown, facts.task.options.retention_us
    until = moment_of(shown.score)
    ended = None if kept_us is None else moment_of(shown.score - kept_us)
    reason: Reason = "completed" if shown.cancel is None else "cancelled"
    at = f" at {_time(ended)}" if ended else ""
    return _told(blank, [f"{reason}{at}, kept until {_time(until)}"], [reason], at=ended)


def _dead(facts: Facts, blank: Explanation) -> Explanation:
    at, holder = moment_of(facts.task.shown.score), facts.located.holder
    why = f" because of: {_brief(blank.error)}" if blank.error else ""
    parts, reasons = [f"dead since {_time(at)}{why}"], list[Reason](["dead"])
    if holder is not None and holder != facts.id:
        reasons.append("duplicate")
        parts.append(f"it cannot run again while {holder} has its unique lock")
    else:
        holder = None
    attempts = facts.task.failure.attempts
    return _told(blank, parts, reasons, at=at, holder=holder, attempt=attempts or 1)


_BY_STATE = {
    TaskState.PENDING: _pending,
    TaskState.SCHEDULED: _scheduled,
    TaskState.RETRY: _retry,
    TaskState.ACTIVE: _active,
    TaskState.COMPLETED: _completed,
    TaskState.DEAD: _dead,
}


def _told(
    blank: Explanation, parts: list[str], reasons: Sequence[Reason], **fields: object
) -> Explanation:
    if blank.crashes >= RUN_ALONE and blank.state in UNFINISHED:
        times = "twice" if blank.crashes == RUN_ALONE else f"{blank.crashes} times"
        parts.append(f"runs alone since it crashed {times}")
    sentence, (first, *others) = "; ".join(parts), reasons
    return replace(blank, sentence=sentence, reason=first, also=others, **fields)


def _able(facts: Facts) -> list[Record]:
    """Return the live servers that can run the task."""
    type = facts.task.message.type if facts.task.message else None
    return [
        one
        for one in facts.servers
        if one.takes(facts.queue) and not one.quiet and (type is None or type in one.types)
    ]


def _blockers(facts: Facts, paused: Pause | None) -> list[tuple[Reason, str]]:
    """Return what blocks every task of this type and queue, as reason and text."""
    found: list[tuple[Reason, str]] = []
    if paused is not None:
        by = f" by {paused.by}" if paused.by else ""
        since = f" since {_time(paused.at)}" if paused.at else ""
        why = f" ({paused.why})" if paused.why else ""
        found.append(("paused", f"queue paused{by}{since}{why}"))
    takers = [one for one in facts.servers if one.takes(facts.queue)]
    if not takers:
        found.append(("no_server", f"no live server takes queue {facts.queue}"))
    elif all(one.quiet for one in takers):
        found.append(("all_quiet", "the servers of its queue were told to be quiet"))
    elif not _able(facts):
        found.append(("no_server_knows", f"no live server knows type {_type(facts)}"))
    return found


def _all_full(facts: Facts) -> bool:
    able = _able(facts)
    return bool(able) and all(one.full for one in able)


def _all_stuck(facts: Facts) -> bool:
    able = _able(facts)
    return bool(able) and all(one.stuck for one in able)


def _late(facts: Facts) -> bool:
    deadline_us = facts.task.options.deadline_us
    return deadline_us is not None and deadline_us <= facts.located.now_us


def _type(facts: Facts) -> str:
    return repr(facts.task.message.type) if facts.task.message else "of its message, which is lost"


def _when(facts: Facts, at: datetime) -> str:
    left = facts.task.shown.score - facts.located.now_us
    if left <= 0:
        return f"{_time(at)} (now due: as soon as a server looks)"
    return f"{_time(at)} (in {duration(left / 1_000_000)})"


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _brief(error: str | None) -> str:
    line = (error or "").partition("\n")[0]
    return line if len(line) <= ERROR_SHOWN else line[: ERROR_SHOWN - 3] + "..."


def ordinal(number: int) -> str:
    """Return the number as 1st, 2nd, 3rd, 4th; 11th, 112th."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    end = "th" if number % 100 in (11, 12, 13) else ends.get(number % 10, "th")
    return f"{number}{end}"


def duration(seconds: float) -> str:
    """Return a duration in its largest two units: `3 s`, `4 min 10 s`, `3 h`, `2 d 5 h`."""
    if seconds < 1:
        return f"{max(seconds, 0.01):.2g} s"
    left, parts = round(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])
