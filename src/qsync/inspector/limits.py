"""Reads limits, and sets and removes the rules of operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec

from qsync.broker import limit_ops
from qsync.broker.event_ops import recorded
from qsync.broker.limit_ops import LimitDetail, LimitsPage, LimitState
from qsync.errors import InvalidTask
from qsync.inspector.base import Base, no_cursor
from qsync.inspector.values import Change
from qsync.limit import LimitRule, check_limit, check_rule, limit_name
from qsync.phrase import phrase
from qsync.times import from_us


class OperatorRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that an operator set, for a name or for one limit; `by` and `at` say who and when."""

    limit: str
    rule: LimitRule
    by: str
    at: datetime | None


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of a queue at one moment. If no task uses the limit, only the rule fields are set.

    rule          the rule in effect; None means the limit allows everything
    source        who set this rule
    program       the program's rule for the limit's name
    operator      an operator's rule for the limit, or else for the limit's name
    in_use        number of the limit's tasks that are running, or that a server has leased
    ready         number of tasks that the limit allows to start, but that still wait for a server
    waiting       number of tasks that wait for the limit; a task counts for only one of its limits
    opens_at      when the store tries to start the first waiting task; None if that task waits for
                  another to end, or if no task waits
    closed_until  when the limit opens again after a handler closed it with RateLimited
    holders       ids of tasks that are running, leased or ready, as far as they were read; only if
                  a single limit was read
    ready_ids     those of the holders that are ready
    """

    queue: str
    limit: str
    rule: LimitRule | None
    source: Literal["program", "operator"] | None
    program: LimitRule | None
    operator: OperatorRule | None
    in_use: int = 0
    ready: int = 0
    waiting: int = 0
    opens_at: datetime | None = None
    closed_until: datetime | None = None
    holders: list[str] = []
    ready_ids: list[str] = []

    @property
    def taken(self) -> int:
        """Number of slots that are in use, or assigned to a pending task."""
        return self.in_use + self.ready

    @property
    def full(self) -> bool:
        """Whether all slots are in use, or assigned to pending tasks."""
        maximum = self.rule.concurrency if self.rule else None
        return maximum is not None and self.taken >= maximum


class LimitPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a queue's limits; the cursor of the last page is None."""

    limits: list[LimitInfo]
    cursor: str | None


LIMITS_PER_PAGE: Final = 100
"""Approximate number of limits per page."""

BY_LENGTH: Final = 100
"""Maximum length of an operator's name, in characters; the rest is cut."""


class _LimitsMixin(Base):
    """Operations on limits."""

    async def limits(self, queue: str = "default", *, cursor: str | None = None) -> LimitPage:
        """Return a page of a queue's limits: those in use, and those that have a rule.

        A page has about 100 limits in use; it may have fewer even if another page follows. The
        first page also has all rules.
        """
        start = cursor or "0"
        if not (start.isascii() and start.isdecimal() and len(start) <= 20):
            raise InvalidTask(no_cursor(cursor))
        keys = self._keys(queue)
        page = await self._broker.run(
            limit_ops.list_limits(keys, cursor=start, count=LIMITS_PER_PAGE)
        )
        if start == "0":
            return _first_page(queue, page)
        rules = await self._broker.run(limit_ops.list_limits(keys, count=1))
        return _page(queue, page, page.states, rules)

    async def limits_of(
        self, queues: Sequence[str], *, count: int = LIMITS_PER_PAGE
    ) -> list[LimitPage]:
        """Return the first page of limits of each queue, in one round trip.

        Each page has about `count` limits in use, and all rules.
        """
        calls = [limit_ops.list_limits(self._keys(name), count=count) for name in queues]
        pages = await self._run_all(calls)
        return [_first_page(name, page) for name, page in zip(queues, pages, strict=True)]

    async def limit(self, limit: str, *, queue: str = "default") -> LimitInfo:
        """Return a limit of a queue, with tasks that hold it. A limit without tasks has zero
        counts."""
        call = limit_ops.get_limit(self._keys(queue), check_limit(limit, "limit"))
        return info_of(queue, await self._broker.run(call))

    async def set_limit(
        self, limit: str, rule: LimitRule, *, queue: str = "default", by: str = ""
    ) -> Change:
        """Set the rule of a limit, or of all limits with a name; the rule overrides the program's
        rule until `reset_limit`.

        Lowering a rule does not stop running tasks. Create the rule with `qsync.limit.limit_rule`;
        `LimitRule()` allows everything. Raises InvalidTask for an invalid rule.
        """
        keys = self._keys(queue)
        check_limit(limit, "limit")
        rule = check_rule(rule)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        by = (by or self._actor.by)[:BY_LENGTH]
        event = self._actor.event("limit.set", limit, str(rule), by=by)
        await self._broker.run(recorded(limit_ops.set_limit(keys, limit, rule, by), event))
        return Change(outcome="done")

    async def open_limit(self, limit: str, *, queue: str = "default") -> Change:
        """Open a limit that a handler closed by raising RateLimited; the limit's rule still
        applies.

        The outcome is `too_late` if the limit is not closed. If a handler raises RateLimited again,
        the limit closes again.
        """
        keys = self._keys(queue)
        check_limit(limit, "limit")
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        event = self._actor.event("limit.open", limit)
        opened = await self._broker.run(recorded(limit_ops.open_limit(keys, limit), event))
        return Change(outcome="done" if opened else "too_late")

    async def reset_limit(
        self, limit: str, *, queue: str = "default", program: bool = False
    ) -> Change:
        """Remove the rule that an operator has set; `not_found` if there is none.

        With `program`, also remove the program's rule, which otherwise stays after the program no
        longer declares the limit. Servers of a program that declares it publish the rule again when
        they start.
        """
        keys, name = self._keys(queue), check_limit(limit, "limit")
        calls = [limit_ops.set_limit(keys, name, None, "")]
        if program:
            calls.append(limit_ops.remove_program_rule(keys, _whole_name(name)))
        changed = 0
        for call in calls:
            event = self._actor.event("limit.reset", limit)
            changed += await self._broker.run(recorded(call, event))
        return Change(outcome="done" if changed else "not_found")


def _whole_name(limit: str) -> str:
    """Return the name of a limit; raise InvalidTask if the limit has a value."""
    if ":" in limit:
        raise InvalidTask(
            phrase(
                "limit: %(limit)s has a value, but the program's rule applies to the whole name; "
                "use %(name)s",
                limit=repr(limit), name=repr(limit_name(limit)),
            )
        )  # fmt: skip
    return limit


def _first_page(queue: str, page: LimitsPage) -> LimitPage:
    states = {state.limit: state for state in page.states}
    for limit in (*page.rules, *page.operator_rules):
        states.setdefault(limit, LimitState(limit, 0, 0, 0, None, None))
    return _page(queue, page, states.values(), page)


def _page(
    queue: str,
    page: LimitsPage,
    states: Iterable[LimitState],
    rules: LimitsPage,
) -> LimitPage:
    infos = [_info(queue, state, rules.rules, rules.operator_rules) for state in states]
    infos.sort(key=lambda info: (-info.waiting, -info.taken, info.limit))
    return LimitPage(limits=infos, cursor=None if page.cursor == "0" else page.cursor)


def info_of(queue: str, detail: LimitDetail) -> LimitInfo:
    """Convert a stored limit, with the tasks that hold it, into a LimitInfo. Does no I/O."""
    limit, program = detail.state.limit, detail.program
    rules = {} if program is None else {limit_name(limit): program}
    operators = {} if detail.operator is None else {detail.operator.limit: detail.operator}
    info = _info(queue, detail.state, rules, operators)
    holders = [*detail.holders, *detail.ready]
    return msgspec.structs.replace(info, holders=holders, ready_ids=detail.ready)


def _info(
    queue: str,
    state: LimitState,
    rules: Mapping[str, LimitRule],
    operators: Mapping[str, limit_ops.StoredOperatorRule],
) -> LimitInfo:
    limit, name = state.limit, limit_name(state.limit)
    program, operator = rules.get(name), None
    set_for = limit if limit in operators else name
    if (stored := operators.get(set_for)) is not None:
        set_at = from_us(stored.at_us) if stored.at_us else None
        operator = OperatorRule(limit=set_for, rule=stored.rule, by=stored.by, at=set_at)
    closed_us, opens_us = state.closed_until_us, state.opens_at_us
    return LimitInfo(
        queue=queue,
        limit=limit,
        rule=operator.rule if operator else program,
        source="operator" if operator else "program" if program else None,
        program=program,
        operator=operator,
        in_use=state.in_use,
        ready=state.ready,
        waiting=state.waiting,
        opens_at=None if opens_us is None else from_us(opens_us),
        closed_until=None if closed_us is None else from_us(closed_us),
    )
