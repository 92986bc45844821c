"""The views `limits` and `limit`: rules, states, and who holds a limit or waits for it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from qsync.broker import limit_views
from qsync.broker.limit_views import LimitState, StoredLimit, StoredRule
from qsync.limit import LimitRule, parse_rule, rule_text
from tests.support.queue_driver import BINARIES, Rig

TWO = LimitRule(concurrency=2)
FAST = LimitRule(rate=100, per_us=1_000_000, burst=20)


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def wait(rig: Rig, limit: str, *ids: str) -> None:
    """Let tasks wait for a limit, in this order."""
    for tag, id in enumerate(ids):
        entry = limit.encode() + b"\0" + struct.pack(">q", tag) + id.encode()
        rig.client.zadd(rig.keys.key("waiters"), {entry: 0})


@pytest.mark.parametrize("rule", [TWO, FAST, LimitRule(rate=1, per_us=7, burst=1, concurrency=3)])
def test_rule_is_read_as_it_was_written(rule: LimitRule) -> None:
    assert parse_rule(rule_text(rule)) == (rule, "")
    assert parse_rule(f"{rule_text(rule)} 17 ann at pc") == (rule, "17 ann at pc")


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d", "1 2 3 -4", "1.5 0 0 0"])
def test_text_that_is_no_rule_is_none(text: str) -> None:
    assert parse_rule(text) == (None, "")


def test_queue_without_limits_has_none(rig: Rig) -> None:
    part = rig.run(limit_views.limits(rig.keys))
    assert (part.cursor, part.rules, part.limits) == ("0", {}, [])
    shown = rig.run(limit_views.limit(rig.keys, "customer:42"))
    assert shown.stored == StoredLimit("customer:42", LimitState(), 0)
    assert (shown.program, shown.general, shown.own) == (None, None, None)
    assert (shown.rank, shown.holders) == (None, [])


def test_rules_states_and_waiting_tasks_are_read(rig: Rig) -> None:
    rig.set("limits", "customer:42", "2 1 0 0")
    rig.set("limits", "stripe", f"0 0 {rig.now + 5} {rig.now + 9}")
    rig.set("limit_rules", "customer", rule_text(TWO))
    rig.set("limit_rules", "stripe", rule_text(FAST))
    rig.set("limit_rules", "!customer:42", f"3 0 0 0 {rig.now} ann at pc")
    rig.set("limit_rules", "!stripe", "nonsense")
    wait(rig, "customer:42", "a", "b", "c")
    wait(rig, "customer:4", "d")
    part = rig.run(limit_views.limits(rig.keys))
    assert sorted(part.limits) == [
        StoredLimit("customer:42", LimitState(2, 1), 3),
        StoredLimit("stripe", LimitState(0, 0, rig.now + 5, rig.now + 9), 0),
    ]
    assert part.rules == {
        "customer": StoredRule(TWO),
        "stripe": StoredRule(FAST),
        "!customer:42": StoredRule(LimitRule(concurrency=3), "ann at pc", rig.now),
    }
    shown = rig.run(limit_views.limit(rig.keys, "customer:42", id="c"))
    assert (shown.stored.waiting, shown.rank) == (3, 2)
    assert (shown.program, shown.general) == (StoredRule(TWO), None)
    assert shown.own == StoredRule(LimitRule(concurrency=3), "ann at pc", rig.now)
    assert rig.run(limit_views.limit(rig.keys, "customer:4", id="c")).rank is None
    assert rig.run(limit_views.limit(rig.keys, "stripe")).own is None


def test_holders_are_active_and_pending_tasks_of_the_limit(rig: Rig) -> None:
    rig.enqueue("a", "b", "c", "d")
    rig.lease(2)
    for id, limits in (("a", "x\0customer:4"), ("b", "customer:42"), ("c", "customer:4")):
        rig.set("holds", id, limits)
    assert rig.run(limit_views.limit(rig.keys, "customer:4")).holders == ["a", "c"]
    assert rig.run(limit_views.limit(rig.keys, "customer")).holders == []


def test_many_limits_are_read_in_parts(rig: Rig) -> None:
    names = {f"customer:{number}" for number in range(1000)}
    rig.client.hset(rig.keys.key("limits"), mapping=dict.fromkeys(names, "1 0 0 0"))
    seen, cursor, parts = set[str](), "0", 0
    while True:
        part = rig.run(limit_views.limits(rig.keys, cursor=cursor, count=100))
        seen |= {one.limit for one in part.limits}
        cursor, parts = part.cursor, parts + 1
        if cursor == "0":
            break
    assert seen == names
    assert parts > 3
