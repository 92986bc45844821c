"""The operations that read limits: one pure function per script."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from qsync.broker.call import Call
from qsync.broker.script import load
from qsync.keys import QueueKeys
from qsync.limit import LimitRule, limit_name, parse_rule

TASKS_READ: Final = 500
"""Number of active, pending and waiting tasks of which a view reads the limits."""


class StoredRule(NamedTuple):
    """A rule in the store; `by` and `at_us` are of an operator's rule."""

    rule: LimitRule
    by: str = ""
    at_us: int = 0


class LimitState(NamedTuple):
    """The state of a limit; times are in microseconds.

    `tat_us` is when the starts so far have used up their rate.
    """

    in_use: int = 0
    ready: int = 0
    tat_us: int = 0
    closed_until_us: int = 0


class StoredLimit(NamedTuple):
    """A limit, its state and the number of tasks that wait for it."""

    limit: str
    state: LimitState
    waiting: int


class LimitsPart(NamedTuple):
    """A part of the limits of a queue; `rules` are all rules, in the first part only."""

    now_us: int
    cursor: str
    rules: dict[str, StoredRule]
    """Rules by their field: `<name>` of a program, `!<name or limit>` of an operator."""
    limits: list[StoredLimit]


class LimitView(NamedTuple):
    """A limit: its rules and its state.

    `holders` are the ids of active and pending tasks that hold it, as far as they were read. `rank`
    is the number of tasks that wait before the one asked for; None: not known.
    """

    now_us: int
    stored: StoredLimit
    program: StoredRule | None
    general: StoredRule | None
    """Rule of an operator for the name."""
    own: StoredRule | None
    """Rule of an operator for the limit itself."""
    rank: int | None
    holders: list[str]


def limits(
    keys: QueueKeys, *, cursor: str = "0", count: int = 100, now_us: int | None = None
) -> Call[LimitsPart]:
    """Read a part of the limits of a queue."""
    script = load("limits")
    args = ("" if now_us is None else now_us, cursor, count)

    def decode(reply: Any) -> LimitsPart:
        now, after, rules, found = reply
        return LimitsPart(
            int(now),
            _text(after),
            {
                _text(name): rule
                for name, data in zip(rules[::2], rules[1::2], strict=True)
                if (rule := _rule(data)) is not None
            },
            [
                StoredLimit(_text(limit), _state(state), int(waiting))
                for limit, state, waiting in zip(*[iter(found)] * 3, strict=True)
            ],
        )

    return Call(script, keys.names(script.keys), args, decode)


def limit(
    keys: QueueKeys, name: str, *, id: str = "", now_us: int | None = None
) -> Call[LimitView]:
    """Read a limit. `id`: a task whose place among those that wait is asked for."""
    script = load("limit")
    args = ("" if now_us is None else now_us, name, limit_name(name), id, TASKS_READ)

    def decode(reply: Any) -> LimitView:
        row = script.reply(reply)
        return LimitView(
            row["now"],
            StoredLimit(name, _state(row["state"]), row["waiting"]),
            _rule(row["program"]),
            _rule(row["general"]),
            _rule(row["own"]) if name != limit_name(name) else None,
            None if row["rank"] < 0 else row["rank"],
            [_text(holder) for holder in row["holders"]],
        )

    return Call(script, keys.names(script.keys), args, decode)


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _rule(data: bytes) -> StoredRule | None:
    """Return a stored rule; None if there is none, or it cannot be read."""
    rule, rest = parse_rule(_text(data))
    if rule is None:
        return None
    at, _, by = rest.partition(" ")
    return StoredRule(rule, by, int(at) if at.isdecimal() else 0)


def _state(data: bytes) -> LimitState:
    numbers = [float(text) for text in data.split()]
    return LimitState(*map(int, numbers[:4]))
