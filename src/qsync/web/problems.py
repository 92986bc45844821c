"""The problems that need attention, as sentences at the top of the overview."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import islice, zip_longest
from typing import Final, NamedTuple

from qsync.inspector import Filter, Fleet, KeyShares, Overview, PausedType, QueueInfo
from qsync.state import TaskState
from qsync.web.forecast import LARGE, SLOWER, STANDSTILL, Problem, problems_of
from qsync.web.pages import Site
from qsync.web.sampler import CHARTED_QUEUES
from qsync.web.translation import _, coarse, count

SHOWN_PER_KIND: Final = 5
"""Maximum number of problems of one kind that the overview shows, so that no kind hides another."""

FLOOD_SHARE: Final = 0.5
"""Share of a backlog above which a fairness key counts as its cause."""

SAMPLED_QUEUES: Final = 3
"""Maximum number of queues whose fairness keys are read: those with the most pending tasks."""


COUNTED_QUEUES: Final = 5
"""Maximum number of queues whose tasks without a handler are counted."""

COUNTED_TYPES: Final = 5
"""Maximum number of types per queue whose tasks without a handler are counted."""

COUNT_STEPS: Final = 4
"""Maximum number of steps, of 250 tasks each, to count the tasks of a type in a state."""

COUNTED_FOR_S: Final = 3.0
"""How long the counts of tasks without a handler are reused, in seconds."""


class Kind(NamedTuple):
    """The problems of one kind that the overview shows, and the number of the other ones."""

    shown: list[Problem]
    more: int


def by_kind(problems: Sequence[Problem]) -> list[Kind]:
    """Group problems by kind, in the order of the first problem of each kind.

    The result depends only on the arguments.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return [
        Kind(each[:SHOWN_PER_KIND], max(0, len(each) - SHOWN_PER_KIND)) for each in kinds.values()
    ]


async def all_problems(site: Site, overview: Overview, fleet: Fleet) -> list[Problem]:
    """Return the problems that need attention, the most urgent first."""
    queues = overview.queues
    of_queues = [
        problem
        for info in queues[:CHARTED_QUEUES]
        for problem in problems_of(
            info, site.sampler.series(info.name), await _errors_of(site, info)
        )
    ]
    # The other queues have no samples, but their dead tasks and their latency are known.
    of_queues += [problem for info in queues[CHARTED_QUEUES:] for problem in problems_of(info, ())]
    without_server = unserved(queues, fleet)
    stopped = {problem.queue for problem in without_server}
    problems = [
        *without_server,
        # If no server takes tasks from a queue, do not report its growing backlog as well.
        *[each for each in of_queues if each.rank < SLOWER or each.queue not in stopped],
        *floods(await key_shares_of(site, queues)),
        *stuck(fleet),
    ]
    return sorted(problems, key=lambda problem: problem.rank)


async def _errors_of(site: Site, info: QueueInfo) -> int | None:
    """Return the number of different errors of a queue's unacknowledged dead tasks, if known."""
    if info.died is None:
        return None
    return await site.error_scanner.errors_since(info.name, info.died.first_at)


async def key_shares_of(site: Site, queues: Sequence[QueueInfo]) -> dict[str, KeyShares]:
    """Read the fairness keys of the queues with the largest backlogs."""
    large = [info for info in queues if info.states[TaskState.PENDING] >= LARGE]
    largest = sorted(large, key=lambda info: -info.states[TaskState.PENDING])[:SAMPLED_QUEUES]
    shares = await asyncio.gather(*[site.inspector.key_shares(info.name) for info in largest])
    return {info.name: share for info, share in zip(largest, shares, strict=True)}


async def paused_types_of(site: Site, queues: Sequence[QueueInfo]) -> list[tuple[str, PausedType]]:
    """Return each paused type, with its queue, of the first SAMPLED_QUEUES queues that have limited
    tasks."""
    names = [info.name for info in queues if info.states[TaskState.LIMITED]][:SAMPLED_QUEUES]
    replies = await asyncio.gather(*[site.inspector.paused_types(name) for name in names])
    return [
        (name, paused_type)
        for name, types in zip(names, replies, strict=True)
        for paused_type in types
    ]


async def unhandled_of(
    site: Site, unknown: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[str, str]]]:
    """Return the types without a handler by queue, each with the number of its waiting tasks as
    text.

    The tasks are counted at most once per COUNTED_FOR_S, for all open pages.
    """
    counted = {
        queue: list(types[:COUNTED_TYPES])
        for queue, types in islice(unknown.items(), COUNTED_QUEUES)
    }
    numbers, now = site.waiting.numbers, time.monotonic()
    is_known = all({*types} <= {*numbers.get(queue, ())} for queue, types in counted.items())
    if not is_known or now - site.waiting.counted_at > COUNTED_FOR_S:
        numbers = site.waiting.numbers = await _count_waiting(site, counted)
        site.waiting.counted_at = now
    unhandled = {}
    for queue, types in counted.items():
        of_types = [numbers[queue][type] for type in types]
        texts = [count(number) + ("" if is_whole else "+") for number, is_whole in of_types]
        unhandled[queue] = [*zip_longest(unknown[queue], texts, fillvalue="")]
    return unhandled


async def _count_waiting(
    site: Site, unknown: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[int, bool]]]:
    """Count the waiting tasks by queue and type; return each number and whether it is complete."""
    numbers = {}
    for queue, types in unknown.items():
        counts = await asyncio.gather(*[_waiting_of(site, queue, type) for type in types])
        numbers[queue] = dict(zip(types, counts, strict=True))
    return numbers


async def _waiting_of(site: Site, queue: str, type: str) -> tuple[int, bool]:
    """Count the waiting tasks of a type, among about the first thousand tasks of each state."""
    number, is_whole = 0, True
    for state in (TaskState.SCHEDULED, TaskState.PENDING):
        cursor: str | None = None
        for _step in range(COUNT_STEPS):
            step = await site.inspector.count_matching(
                queue, state, Filter(type=type), cursor=cursor
            )
            number, cursor = number + step.done, step.cursor
            if cursor is None:
                break
        is_whole = is_whole and cursor is None
    return number, is_whole


def unserved(queues: Sequence[QueueInfo], fleet: Fleet) -> list[Problem]:
    """Return a problem for each queue that has a backlog and no server.

    The result depends only on the arguments and the language of the request.
    """
    if not fleet.servers:
        return []  # the overview reports the lack of servers once, for all queues
    text = _("no running server takes its tasks.")
    return [
        Problem(info.name, text, "/queue", {"queue": info.name}, rank=STANDSTILL, kind="unserved")
        for info in queues
        if info.states[TaskState.PENDING] and not info.paused and not fleet.of_queue(info.name)
    ]


def floods(shares: Mapping[str, KeyShares]) -> list[Problem]:
    """Return a problem for each queue whose backlog mostly belongs to one fairness key.

    The result depends only on the arguments and the language of the request.
    """
    problems = []
    for queue, share in shares.items():
        key = next(iter(share.keys), "")
        if share.pending >= LARGE and share.share(key) >= FLOOD_SHARE:
            text = _(
                "about %(part)s of %(all)s pending tasks have the fairness key %(key)s.",
                part=count(share.estimate(key)), all=count(share.pending), key=key,
            )  # fmt: skip
            problems.append(Problem(queue, text, "/queue", {"queue": queue}, "keys", kind="flood"))
    return problems


def stuck(fleet: Fleet) -> list[Problem]:
    """Return a problem for each task that has been running for very long; does no I/O."""
    return [
        Problem(
            run.queue,
            _(
                "task %(id)s has been running for %(length)s.",
                id=run.id, length=coarse(run.seconds),
            ),
            "/task",
            {"queue": run.queue, "id": run.id},
            kind="stuck",
        )
        for run in fleet.long_runs
    ]  # fmt: skip
