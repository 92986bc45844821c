"""Searches over all queues and states in parts, and bulk changes to the tasks found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from qsync.broker import views
from qsync.errors import InvalidTask
from qsync.inspector.base import cursor_at, no_cursor, readable
from qsync.inspector.bulk import CANCELLABLE, DELETABLE, RETRIED, _BulkMixin
from qsync.inspector.search_query import SearchQuery
from qsync.inspector.task_rows import fits
from qsync.inspector.tasks import FIND_PAGES, MAX_SCANS, TASKS_PER_SCAN
from qsync.inspector.values import Step, TaskRow
from qsync.phrase import phrase
from qsync.state import TaskState

ORDER: Final = (
    TaskState.DEAD, TaskState.RETRY, TaskState.LIMITED, TaskState.ACTIVE, TaskState.PENDING,
    TaskState.SCHEDULED, TaskState.COMPLETED, TaskState.CANCELLED,
)  # fmt: skip
"""Order in which a search reads the states.

Limited tasks come before active and pending tasks, because each of those that a bulk change removes
lets a limited task become pending.
"""

ENDED: Final = (TaskState.COMPLETED, TaskState.CANCELLED)

TARGETS: Final = 50
"""Maximum number of queues and states that one call reads."""

_LOWEST: Final = ("-9e18", "")
"""Position before the first task in a state."""

Verb = Literal["retry", "cancel", "delete"]

CHANGED: Final[dict[Verb, tuple[TaskState, ...]]] = {
    "retry": RETRIED, "cancel": CANCELLABLE, "delete": DELETABLE,
}  # fmt: skip
"""For each verb, the states whose tasks it can change."""


class SearchPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the tasks that a search finds.

    Only the last page has the cursor None; any page may have few tasks or none.

    tasks    matching tasks, state by state and queue by queue
    total    number of tasks in the queues and states of the search, whether they match or not
    scanned  number of tasks read for this page
    unread   number of tasks whose payload was too large to be searched for arguments
    later    queues left out because a later version of qsync wrote their data
    """

    tasks: list[TaskRow]
    cursor: str | None
    total: int
    scanned: int
    unread: int
    later: list[str] = []


class SearchStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a bulk change to the tasks that a search finds: the tasks' state, and the result.

    The cursor of `step` continues with the next part, queue or state.
    """

    state: TaskState | None
    step: Step


class _Target(NamedTuple):
    """A queue's tasks in one state; `size` is the number of tasks in the set that stores them.

    The store keeps completed and cancelled tasks in one set.
    """

    state: TaskState
    queue: str
    number: int
    size: int


class _SearchMixin(_BulkMixin):
    """Operations that search the tasks of all queues and states."""

    async def search(
        self,
        query: SearchQuery,
        *,
        limit: int = 50,
        cursor: str | None = None,
        newest_first: bool | None = None,
    ) -> SearchPage:
        """Return a page of the tasks that a search finds, starting at the cursor of an earlier
        page.

        Reads about 1000 tasks, from the first 5,000 queues. `parse_search` parses the query. Raises
        InvalidTask if the cursor is invalid.
        """
        _, targets, later = await self._targets(query, query.states)
        total, remaining = sum(target.size for target in targets), _resume(targets, cursor)
        rows: list[TaskRow] = []
        scanned = unread = 0
        for index, (target, inner) in enumerate(remaining):
            page = await self.tasks(
                target.queue, target.state, limit=limit - len(rows), cursor=inner or None,
                filter=query.filter, newest_first=newest_first,
            )  # fmt: skip
            rows, scanned = [*rows, *page.tasks], scanned + page.scanned
            unread += page.unread
            following = remaining[index + 1 : index + 2]
            if page.cursor is not None:
                end = _cursor(target, page.cursor)
            elif following:
                end = _cursor(following[0][0], "")
            else:
                end = None
            if (
                page.cursor
                or len(rows) >= limit
                or scanned >= TASKS_PER_SCAN * MAX_SCANS
                or index == TARGETS
            ):
                break
        else:
            end = None
        return SearchPage(
            tasks=rows, cursor=end, total=total, scanned=scanned, unread=unread, later=later
        )

    async def search_total(self, query: SearchQuery, verb: Verb) -> dict[TaskState, int] | None:
        """Return, by state, the number of tasks that a change to all tasks found would affect.

        Returns None if the search has a filter; in that case, count them with `search_step`.
        """
        if query.filter is not None:
            return None
        _, targets, _ = await self._targets(query, _changed(query, verb))
        return {
            state: sum(target.number for target in targets if target.state is state)
            for state in dict.fromkeys(target.state for target in targets if target.number)
        }

    async def search_step(
        self, query: SearchQuery, verb: Verb, *, cursor: str | None = None, dry_run: bool = False
    ) -> SearchStep:
        """Change up to 250 of the tasks that a search finds; with `dry_run` only count them.

        Tasks that entered their state after the first step are skipped, as in `run_dead`.
        """
        now_us, targets, _ = await self._targets(query, _changed(query, verb))
        remaining = _resume(targets, cursor)
        if not remaining:
            return SearchStep(state=None, step=Step(scanned=0, done=0, cursor=None))
        target, inner = remaining[0]
        until_us, _, place = inner.partition(".")
        is_number = until_us.isascii() and until_us.isdigit() and len(until_us) < 20
        until = int(until_us) if is_number else now_us
        change = {
            "retry": self.retry_matching, "cancel": self.cancel_matching,
            "delete": self.delete_matching,
        }[verb] if not dry_run else self.count_matching  # fmt: skip
        step = await change(
            target.queue, target.state, query.filter,
            cursor=place or cursor_at(_LOWEST, until_us=until),
        )  # fmt: skip
        end = None
        if step.cursor is not None:
            end = _cursor(target, f"{until}.{step.cursor}")
        elif len(remaining) > 1:
            end = _cursor(remaining[1][0], f"{until}.")
        return SearchStep(state=target.state, step=msgspec.structs.replace(step, cursor=end))

    async def _targets(
        self, query: SearchQuery, states: Sequence[TaskState]
    ) -> tuple[int, list[_Target], list[str]]:
        """Return the store's time, the queues and states to search in order, and the queues whose
        data a later version of qsync wrote."""
        names = await self._names(query.queues)
        calls = [views.overview(self._keys(name)) for name in names]
        (now_us, _), *replies = await self._replies([views.servers(self._globals), *calls])
        snapshots, later = readable(names, replies)
        targets: list[_Target] = []
        for state in ORDER:
            if states and state not in states:
                continue
            for name, snapshot in snapshots.items():
                ended_count = sum(snapshot.states[ended] for ended in ENDED)
                count = snapshot.states[state]
                if count:
                    targets.append(
                        _Target(state, name, count, ended_count if state in ENDED else count)
                    )
        return now_us, targets, later

    async def _names(self, patterns: Sequence[str]) -> list[str]:
        if patterns and not any(mark in pattern for pattern in patterns for mark in "*?"):
            return sorted(patterns)
        names: set[str] = set()
        pages = 0
        async for page in self.queue_pages():
            names |= {
                name for name in page if not patterns or any(fits(text, name) for text in patterns)
            }
            pages += 1
            if pages == FIND_PAGES:
                break
        return sorted(names)


def _changed(query: SearchQuery, verb: Verb) -> tuple[TaskState, ...]:
    """Return the states of a search whose tasks the verb can change."""
    states = tuple(state for state in CHANGED[verb] if not query.states or state in query.states)
    if not states:
        problem = phrase(
            "The verb %(verb)s applies to the states %(states)s, but the search selects only "
            "%(given)s.",
            verb=verb, states=", ".join(CHANGED[verb]), given=", ".join(query.states),
        )  # fmt: skip
        raise InvalidTask(problem)
    return states


def _cursor(target: _Target, inner: str) -> str:
    return f"{target.state}/{target.queue}/{inner}"


def _resume(targets: list[_Target], cursor: str | None) -> list[tuple[_Target, str]]:
    """Return the remaining targets, each with the cursor within it; the cursor is empty at the
    start of a target."""
    if cursor is None:
        return [(target, "") for target in targets]
    state, _, place_text = cursor.partition("/")
    queue, slash, inner = place_text.partition("/")
    if not slash or state not in ORDER:
        raise InvalidTask(no_cursor(cursor))
    place = ORDER.index(TaskState(state)), queue
    remaining: list[tuple[_Target, str]] = []
    for target in targets:
        here = ORDER.index(target.state), target.queue
        if here >= place:
            until = inner.partition(".")[0] if "." in inner else ""
            remaining.append((target, inner if here == place else f"{until}." if until else ""))
    return remaining
