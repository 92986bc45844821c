"""Sentences about a task that is not running yet. Does no I/O."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from qsync.inspector.explanation import Facts, Reason, able_servers
from qsync.inspector.limits import LimitInfo
from qsync.inspector.values import Pause
from qsync.message import NORMAL_PRIORITY
from qsync.phrase import Ordinal, Phrase, phrase, plural_phrase, within
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


def limited_sentence(info: LimitInfo, before: int) -> Phrase:
    """Return the sentence about why a limit keeps a task from starting, and about the task's
    position."""
    order = phrase("next to start")
    if before:
        order = phrase("%(position)s to start", position=Ordinal(before + 1))
    return phrase(
        "Limited by %(limit)s: %(obstacle)s; %(order)s.",
        limit=info.limit, obstacle=_obstacle(info), order=order,
    )  # fmt: skip


def set_aside_sentence(before: int) -> Phrase:
    """Return the sentence about a task that is set aside, with the number of tasks ahead of it."""
    return plural_phrase(
        "Set aside, behind %(num)s earlier task of its type.",
        "Set aside, behind %(num)s earlier tasks of its type.",
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
    holders = ", ".join(info.holders[:HOLDERS_SHOWN])
    others = info.taken - len(info.holders[:HOLDERS_SHOWN])
    if not holders:
        return plural_phrase(
            "%(taken)s of %(num)s slot in use", "%(taken)s of %(num)s slots in use",
            maximum, taken=info.taken,
        )  # fmt: skip
    if others <= 0:
        return plural_phrase(
            "%(taken)s of %(num)s slot in use by %(ids)s",
            "%(taken)s of %(num)s slots in use by %(ids)s",
            maximum, taken=info.taken, ids=holders,
        )  # fmt: skip
    return plural_phrase(
        "%(taken)s of %(num)s slot in use by %(ids)s and %(more)s more",
        "%(taken)s of %(num)s slots in use by %(ids)s and %(more)s more",
        maximum, taken=info.taken, ids=holders, more=others,
    )  # fmt: skip


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
