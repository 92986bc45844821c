"""Sentences about a task that is not running yet. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from qsync.inspector.explanation import Facts, Reason, able_servers
from qsync.inspector.limits import LimitInfo
from qsync.inspector.values import Pause
from qsync.message import NORMAL_PRIORITY
from qsync.phrase import Ordinal, Phrase, joined, phrase, plural_phrase, within
from qsync.times import from_us

ERROR_SHOWN: Final = 120
"""Number of characters of an error that a sentence shows."""

HOLDERS_SHOWN: Final = 5
"""Number of tasks that a sentence names as holders of a limit."""

PAST_DEADLINE: Final = phrase(
    "Its deadline has passed: the task will be dead as soon as a server takes it."
)
DIED: Final = phrase(
    "Its server died: the task returns to the queue when a server next looks for tasks."
)
EXPIRED: Final = phrase(
    "Its lease has expired: the task returns to the queue when a server next looks for tasks."
)


def blockers_of(facts: Facts, paused: Pause | None) -> list[tuple[Reason, Phrase]]:
    """Return the reasons why no task of this type and queue can start, each with a sentence."""
    blockers: list[tuple[Reason, Phrase]] = []
    if paused is not None:
        sentence = phrase("The queue is %(paused)s.", paused=paused_phrase(paused))
        blockers.append(("paused", sentence))
    if facts.type_pause is not None:
        pause = paused_phrase(facts.type_pause)
        text = phrase("Type %(type)s is %(paused)s.", type=quoted_type(facts), paused=pause)
        blockers.append(("type_paused", text))
    takers = [server for server in facts.servers if server.takes(facts.queue)]
    if not takers:
        text = phrase("No running server takes tasks from queue %(queue)s.", queue=facts.queue)
        blockers.append(("no_server", text))
    elif all(server.quiet for server in takers):
        text = phrase("All servers of the queue were told to take no new tasks.")
        blockers.append(("all_quiet", text))
    elif not able_servers(facts):
        text = phrase(
            "No running server has a handler for %(type)s: deploy one, or delete the task.",
            type=quoted_type(facts),
        )
        blockers.append(("no_server_knows", text))
    return blockers


def paused_phrase(pause: Pause) -> Phrase:
    """Return `paused`, with the operator, the time and the reason."""
    text = phrase("paused")
    if pause.by and pause.at:
        text = phrase("paused by %(name)s since %(time)s", name=pause.by, time=pause.at)
    elif pause.by:
        text = phrase("paused by %(name)s", name=pause.by)
    elif pause.at:
        text = phrase("paused since %(time)s", time=pause.at)
    return within(text, pause.why) if pause.why else text


def quoted_type(facts: Facts) -> str | Phrase:
    """Return the type of the task in quotes."""
    if facts.task.message:
        return repr(facts.task.message.type)
    return phrase("its type, which is unknown")


def limited_sentence(info: LimitInfo, before: int, others: Sequence[LimitInfo]) -> Phrase:
    """Return the sentence about why a limit keeps a task from starting, and about the task's
    position; the task also needs the `others`."""
    position, needed = Ordinal(before + 1), joined(map(_needed, others), ", ")
    if others and before:
        order = phrase(
            "%(position)s in line for it, and also needs %(others)s",
            position=position, others=needed,
        )  # fmt: skip
    elif others:
        order = phrase("first in line for it, and also needs %(others)s", others=needed)
    elif before:
        order = phrase("%(position)s to start", position=position)
    else:
        order = phrase("next to start")
    return phrase(
        "Limited by %(limit)s: %(obstacle)s; %(order)s.",
        limit=info.limit, obstacle=_obstacle(info), order=order,
    )  # fmt: skip


def _needed(info: LimitInfo) -> Phrase | str:
    """Return the name of another limit of a waiting task, with what keeps it from starting."""
    if _is_shut(info):
        return phrase("%(limit)s (%(obstacle)s)", limit=info.limit, obstacle=_obstacle(info))
    return info.limit


def _is_shut(info: LimitInfo) -> bool:
    return info.full or info.closed_until is not None or info.opens_at is not None


def earliest_start(info: LimitInfo, facts: Facts) -> datetime | None:
    """Return the earliest time at which the limit lets the task start; None if it is unknown,
    because the task also waits for other tasks to end or for another limit."""
    first, before, rule = info.closed_until or info.opens_at, facts.waits_before, info.rule
    if first is None or any(map(_is_shut, facts.other_limits)):
        return None
    if rule is None or not before:
        return first
    if rule.concurrency is not None and info.taken + before >= rule.concurrency:
        return None
    if rule.rate is None or rule.per_us is None:
        return first
    together = rule.burst or 1 if info.closed_until else 1
    later = max(0, before + 1 - together)
    return first + timedelta(microseconds=later * rule.per_us / rule.rate)


def set_aside_sentence(before: int) -> Phrase:
    """Return the sentence about a task that is set aside, with the number of tasks that were set
    aside before it."""
    if not before:
        return phrase("Set aside.")
    return plural_phrase(
        "Set aside, behind %(num)s earlier task of its type that is set aside.",
        "Set aside, behind %(num)s earlier tasks of its type that are set aside.",
        before,
    )


def _obstacle(info: LimitInfo) -> Phrase:
    """Return why a limit lets no task start now."""
    if info.closed_until is not None:
        return phrase("closed until %(time)s", time=info.closed_until)
    maximum = info.rule.concurrency if info.rule else None
    if maximum is not None and info.taken >= maximum:
        return _taken(info, maximum)
    if info.opens_at is not None and info.rule is not None:
        return phrase("opens at %(time)s (%(rule)s)", time=info.opens_at, rule=info.rule.phrase)
    return phrase("open, but other tasks are ahead of it")


def _taken(info: LimitInfo, maximum: int) -> Phrase:
    """Return how many slots are taken, and by which tasks."""
    running = _named([id for id in info.holders if id not in info.ready_ids], info.in_use)
    pending, number = _named(info.ready_ids, info.ready), max(maximum, info.taken)
    if info.ready and info.in_use:
        return plural_phrase(
            "%(taken)s of %(most)s slot taken, by running tasks (%(ids)s) and pending tasks "
            "(%(pending)s)",
            "%(taken)s of %(most)s slots taken, by running tasks (%(ids)s) and pending tasks "
            "(%(pending)s)",
            number, taken=info.taken, most=maximum, ids=running, pending=pending,
        )  # fmt: skip
    if info.ready:
        return plural_phrase(
            "%(taken)s of %(most)s slot taken by a pending task (%(pending)s)",
            "%(taken)s of %(most)s slots taken by pending tasks (%(pending)s)",
            number, taken=info.taken, most=maximum, pending=pending,
        )  # fmt: skip
    if not info.holders:
        return plural_phrase(
            "%(taken)s of %(most)s slot in use", "%(taken)s of %(most)s slots in use",
            number, taken=info.taken, most=maximum,
        )  # fmt: skip
    return plural_phrase(
        "%(taken)s of %(most)s slot in use by %(ids)s",
        "%(taken)s of %(most)s slots in use by %(ids)s",
        number, taken=info.taken, most=maximum, ids=running,
    )  # fmt: skip


def _named(ids: Sequence[str], number: int) -> Phrase | str | int:
    """Return the first of these ids, with how many of the `number` tasks are left out."""
    shown = ", ".join(ids[:HOLDERS_SHOWN])
    others = number - len(ids[:HOLDERS_SHOWN])
    if not shown:
        return number
    if others <= 0:
        return shown
    return phrase("%(ids)s and %(more)s more", ids=shown, more=others)


def priority_sentences(facts: Facts) -> list[Phrase]:
    """Return the sentence about a task's priority; empty if it is normal and no task has a higher
    one."""
    priority, above = facts.task.options.priority or NORMAL_PRIORITY, facts.located.above
    if not above:
        if priority == NORMAL_PRIORITY:
            return []
        return [phrase("Its priority is %(number)s.", number=priority)]
    return [
        plural_phrase(
            "Its priority is %(priority)s: %(num)s task of a higher priority starts before it.",
            "Its priority is %(priority)s: %(num)s tasks of a higher priority start before it.",
            above, priority=priority,
        )
    ]  # fmt: skip


def later_call_sentences(facts: Facts) -> list[Phrase]:
    """Explain how later calls with the same unique key affect a waiting task.

    Return an empty list if such calls neither replace nor delay the task.
    """
    options, message = facts.task.options, facts.task.message
    if not options.replaces or message is None:
        return []
    if not options.debounce_us:
        return [phrase("A later call with its unique key replaces it while it waits.")]
    delay = timedelta(microseconds=options.debounce_us)
    if options.debounce_max_us is None:
        return [phrase("It runs %(length)s after the last call with its unique key.", length=delay)]
    return [
        phrase(
            "It runs %(length)s after the last call with its unique key, but no later than "
            "%(latest)s, which is %(longest)s after the first call.",
            length=delay, longest=timedelta(microseconds=options.debounce_max_us),
            latest=from_us(message.enqueued_at_us + options.debounce_max_us),
        )
    ]  # fmt: skip


def running_sentence(server: str | None, ran: timedelta | None, limit_us: int | None) -> Phrase:
    """Return the sentence about a running task: server, duration so far, and time limit."""
    where = server or phrase("an unknown server")
    text = phrase("Running on %(server)s", server=where)
    if ran is not None:
        text = phrase("Running for %(length)s on %(server)s", length=ran, server=where)
    if limit_us:
        limit = timedelta(microseconds=limit_us)
        return phrase("%(text)s (time limit %(length)s).", text=text, length=limit)
    return phrase("%(text)s.", text=text)


def lease_sentence(remaining: timedelta, is_alive: bool) -> Phrase:
    """Return the sentence about when the lease of a running task expires."""
    if is_alive:
        return phrase(
            "Its lease expires in %(length)s unless the server renews it.", length=remaining
        )
    return phrase(
        "The server stopped responding. The task is recovered when its lease expires, in "
        "%(length)s.",
        length=remaining,
    )


def ended_sentence(is_cancelled: bool, ended_at: datetime | None, kept_until: datetime) -> Phrase:
    """Return the sentence about when a task ended, and when it will be deleted."""
    if ended_at is None and is_cancelled:
        return phrase("Cancelled; will be deleted after %(time)s.", time=kept_until)
    if ended_at is None:
        return phrase("Completed; will be deleted after %(time)s.", time=kept_until)
    if is_cancelled:
        return phrase(
            "Cancelled at %(at)s; will be deleted after %(time)s.", at=ended_at, time=kept_until
        )
    return phrase(
        "Completed at %(at)s; will be deleted after %(time)s.", at=ended_at, time=kept_until
    )


def crashed_sentence(crashes: int) -> Phrase:
    """Return the sentence about why a task runs alone."""
    if crashes == 2:
        return phrase("It runs alone, because its server crashed twice while running it.")
    return plural_phrase(
        "It runs alone, because its server crashed %(num)s time while running it.",
        "It runs alone, because its server crashed %(num)s times while running it.",
        crashes,
    )


def due_phrase(facts: Facts, due_at: datetime) -> Phrase:
    """Return the time at which a task is due, with a note if it is due now."""
    left_us = facts.task.shown.score - facts.located.now_us
    if left_us <= 0:
        return phrase(
            "%(time)s (due now: the task starts when a server next looks for tasks)", time=due_at
        )
    return phrase("%(time)s (in %(length)s)", time=due_at, length=timedelta(microseconds=left_us))


def shortened(error: str) -> str:
    """Return the first line of an error, cut to ERROR_SHOWN characters."""
    line = error.partition("\n")[0]
    return line if len(line) <= ERROR_SHOWN else f"{line[: ERROR_SHOWN - 1].rstrip(' .')}…"
