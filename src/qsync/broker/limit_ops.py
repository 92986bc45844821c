"""The operations on limits: their rules, states, holders and waiters.

A rule applies to a name; an operator's rule may also apply to a single limit. If several rules
exist, an operator's rule for the limit takes precedence over an operator's rule for its name, and
both take precedence over the program's rule. Without a rule, a limit is unlimited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qsync.broker.call import Argument, Call, now_argument, queue_call, queue_query
from qsync.broker.stored_task import number, score_us
from qsync.keys import QueueKeys
from qsync.limit import LimitRule, limit_name

HOLDERS: Final = 100
"""Maximum number of holders whose ids `get_limit` returns."""


@dataclass(frozen=True, slots=True)
class StoredOperatorRule:
    """A rule for one limit or for a name, with the operator who set it and the time of the
    change."""

    limit: str
    rule: LimitRule
    by: str
    at_us: int


@dataclass(frozen=True, slots=True)
class LimitState:
    """How much of a limit is in use at a given moment."""

    limit: str
    in_use: int
    """Number of active tasks that hold the limit."""
    ready: int
    """Number of pending tasks that hold the limit."""
    waiting: int
    """Number of limited tasks that wait for the limit."""
    closed_until_us: int | None
    """Time until which no task starts; None if the limit is not closed."""
    opens_at_us: int | None
    """Time at which the first waiter can be tried; None if no task waits, or if the waiters need a
    free slot."""


@dataclass(frozen=True, slots=True)
class LimitsPage:
    """Rules and states of limits; only the first page has `rules` and `operator_rules`."""

    now_us: int
    rules: dict[str, LimitRule]
    """Rules of the program, by name."""
    operator_rules: dict[str, StoredOperatorRule]
    """Rules of operators, by name or limit."""
    states: list[LimitState]
    cursor: str
    """Cursor of the next page; "0" after the last page."""


@dataclass(frozen=True, slots=True)
class LimitDetail:
    """One limit."""

    now_us: int
    state: LimitState
    rule: LimitRule | None
    """The rule in effect; None means unlimited."""
    program: LimitRule | None
    operator: StoredOperatorRule | None
    """The operator's rule in effect; None if none is set."""
    holders: list[str]
    """Ids of active tasks that hold the limit, at most HOLDERS of them."""
    ready: list[str]
    """Ids of pending tasks that hold the limit, at most HOLDERS of them."""
    place: int | None
    """Number of waiters before the requested task; None means it does not wait for this limit."""


def put_limit_rules(
    keys: QueueKeys, rules: Mapping[str, LimitRule], *, now_us: int | None = None
) -> Call[int]:
    """Store the program's rules by name; return how many changed. Other rules stay."""
    return _put_rules(keys, {name: _packed(rule) for name, rule in rules.items()}, "", now_us)


def set_limit(
    keys: QueueKeys, limit: str, rule: LimitRule | None, by: str, *, now_us: int | None = None
) -> Call[int]:
    """Store an operator's rule for a name or limit, or remove it (None); return 1 if it changed.

    A stricter rule does not stop running tasks; a looser rule lets waiters start.
    """
    packed = b"" if rule is None else _packed(rule)
    return _put_rules(keys, {limit: packed}, by or "operator", now_us)


def remove_program_rule(keys: QueueKeys, name: str, *, now_us: int | None = None) -> Call[int]:
    """Remove the program's rule of a name; return 1 if there was one."""
    return _put_rules(keys, {name: b""}, "", now_us)


def open_limit(keys: QueueKeys, limit: str, *, now_us: int | None = None) -> Call[int]:
    """Open a limit that a handler closed by raising RateLimited; return 1 if it was closed."""
    return queue_call("open_limit", keys, (now_argument(now_us), "", limit), int)


def _put_rules(
    keys: QueueKeys, fields: Mapping[str, bytes], by: str, now_us: int | None
) -> Call[int]:
    args: list[Argument] = [now_argument(now_us), "", by]
    for name, packed in fields.items():
        args += (name, packed)
    return queue_call("put_limit_rules", keys, args, int)


def list_limits(
    keys: QueueKeys, *, cursor: str = "0", count: int = 100, now_us: int | None = None
) -> Call[LimitsPage]:
    """Read the rules of a queue's limits, and a page of the states of limits in use."""

    def decode(fields: dict[str, Any]) -> LimitsPage:
        now, flat = int(fields["now"]), fields["rules"]
        own: dict[str, LimitRule] = {}
        operators: dict[str, StoredOperatorRule] = {}
        for raw, packed in zip(flat[::2], flat[1::2], strict=True):
            name = raw.decode(errors="backslashreplace")
            if name.startswith("!"):
                if (operator_rule := _operator_rule(name[1:], packed)) is not None:
                    operators[operator_rule.limit] = operator_rule
            elif not name.startswith("@") and (rule := _rule(packed)) is not None:
                own[name] = rule
        states = [_state(now, *row) for row in fields["states"]]
        return LimitsPage(now, own, operators, states, fields["cursor"].decode())

    args = (now_argument(now_us), cursor, count)
    return queue_query("list_limits", keys, args, decode)


def get_limit(
    keys: QueueKeys, limit: str, *, id: str = "", now_us: int | None = None
) -> Call[LimitDetail]:
    """Read one limit; if `id` belongs to a limited task, also read the task's place among the
    waiters."""

    def decode(fields: dict[str, Any]) -> LimitDetail:
        now, program = int(fields["now"]), _rule(fields["program"])
        operator = _operator_rule(limit, fields["operator"])
        operator = operator or _operator_rule(limit_name(limit), fields["by_name"])
        state = _state(now, limit.encode(), fields["state"], fields["waiting"], fields["opens_at"])
        return LimitDetail(
            now_us=now, state=state, rule=operator.rule if operator else program, program=program,
            operator=operator, holders=_ids(fields["holders"]), ready=_ids(fields["ready"]),
            place=None if fields["place"] < 0 else fields["place"],
        )  # fmt: skip

    args = (now_argument(now_us), limit, id, HOLDERS)
    return queue_query("get_limit", keys, args, decode)


@dataclass(frozen=True, slots=True)
class LimitDamage:
    """Damage that an audit of limits found in one part of the waiters."""

    miscounted: list[str]
    """Limits whose counts are wrong."""
    shut: list[str]
    """Limits that are open and have waiters, but have no time at which the waiters are tried."""
    unlisted: list[str]
    """Limited tasks that are not among the waiters of any limit."""
    strays: list[str]
    """Entries among the waiters that belong to no limited task."""
    more: bool
    """Whether there are more parts."""
    uncounted: bool
    """Whether the audit did not check counts, because too many tasks have limits."""
    unmarked: bool
    """Whether the queue has tasks with limits but is not marked with the layout for them."""


def audit_limits(keys: QueueKeys, *, first: int = 0) -> Call[LimitDamage]:
    """Look for damage to limits, and to waiters from this rank on."""

    def decode(fields: dict[str, Any]) -> LimitDamage:
        miscounted, shut, unlisted, strays = (
            [text.decode(errors="surrogateescape") for text in fields[name]]
            for name in ("miscounted", "shut", "unlisted", "strays")
        )
        flags = (bool(fields[name]) for name in ("more", "uncounted", "unmarked"))
        return LimitDamage(miscounted, shut, unlisted, strays, *flags)

    return queue_query("audit_limits", keys, (first, 500), decode)


def _ids(texts: list[bytes]) -> list[str]:
    return [text.decode(errors="replace") for text in texts]


def _packed(rule: LimitRule) -> bytes:
    """Return a rule as the scripts read it; include/limit_states.lua describes it."""
    numbers = (rule.concurrency, rule.rate, rule.per_us, rule.burst)
    return " ".join(str(number or 0) for number in numbers).encode()


def _rule(packed: bytes) -> LimitRule | None:
    """Return the rule in a record; None if the scripts cannot read it."""
    try:
        concurrency, rate, per_us, burst = map(int, packed.split(b" ", 4)[:4])
    except ValueError:
        return None
    return LimitRule(
        concurrency=concurrency or None, rate=rate or None, per_us=per_us or None,
        burst=burst or None,
    )  # fmt: skip


def _operator_rule(limit: str, packed: bytes) -> StoredOperatorRule | None:
    rule = _rule(packed)
    if rule is None:
        return None
    at_us, _, by = b" ".join(packed.split(b" ")[4:]).partition(b" ")
    return StoredOperatorRule(limit, rule, by.decode(errors="replace"), number(at_us))


def _state(now: int, limit: bytes, text: bytes, waiting: int, opens_at: bytes) -> LimitState:
    try:
        in_use, ready, _, closed = map(int, text.partition(b"\0")[0].split(b" ")[:4])
    except ValueError:
        in_use = ready = closed = 0
    return LimitState(
        limit=limit.decode(errors="backslashreplace"), in_use=in_use, ready=ready,
        waiting=waiting, closed_until_us=closed if closed > now else None,
        opens_at_us=score_us(opens_at) if opens_at else None,
    )  # fmt: skip
