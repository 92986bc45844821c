"""Operators can list limits, see why a task waits for a limit, and change rules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from qsync import InvalidTask, Task
from qsync.broker import limit_ops, op_values, ops
from qsync.broker.limit_ops import LimitsPage, LimitState
from qsync.diagnostics.doctor import limit_findings
from qsync.diagnostics.limit_check import (
    QueueLimits,
    examine_limits,
    problems_of,
    read_limits,
)
from qsync.inspector import Filter, LimitInfo, SearchQuery
from qsync.inspector.search import Verb
from qsync.keys import GlobalKeys
from qsync.limit import LimitRule
from tests.support.inspector_driver import POLICY, Bed, S, bed
from tests.support.server import run
from tests.support.stores import Store

TWO = LimitRule(concurrency=2)
SLOW = LimitRule(rate=1, per_us=60 * S, burst=1)


async def limited(made: Bed, *ids: str, limits: list[str]) -> None:
    """Enqueue tasks that name these limits."""
    await made.enqueue(*[Task("t", id=id, limits=limits) for id in ids])


async def lease(made: Bed, wanted: int = 500) -> list[op_values.LeaseRef]:
    """Lease tasks, including tasks with limits."""
    made._number += 1
    call = ops.fetch(
        made.keys(), server="s", number=made._number, wanted=wanted, policy=POLICY, free=wanted
    )
    found = await made.broker.run(call)
    return [op_values.LeaseRef(id, f"s/{made._number}") for id in found.ids]


async def declare(made: Bed, **rules: LimitRule) -> None:
    await made.broker.run(limit_ops.put_limit_rules(made.keys(), rules))


async def by_limit(made: Bed) -> dict[str, LimitInfo]:
    return {info.limit: info for info in (await made.inspector.limits()).limits}


def test_limits_are_listed_with_rule_slots_and_tasks_that_wait(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            assert (await made.inspector.limits()).limits == []
            await declare(made, customer=TWO, stripe=SLOW)
            await limited(made, "a", "b", "c", "d", limits=["customer:42"])
            await limited(made, "e", limits=["customer:7", "other"])
            held = await lease(made)
            assert {one.id for one in held} == {"a", "b", "e"}
            limits = await by_limit(made)
            assert set(limits) == {"customer", "stripe", "customer:42", "customer:7", "other"}
            shown = limits["customer:42"]
            assert (shown.in_use, shown.ready, shown.waiting) == (2, 0, 2)
            assert (shown.rule, shown.source, shown.operator) == (TWO, "program", None)
            assert (limits["other"].rule, limits["other"].source) == (None, None)
            assert limits["other"].in_use == 1
            assert limits["stripe"].rule == SLOW
            alone = await made.inspector.limit("customer:42")
            assert sorted(alone.holders) == ["a", "b"]
            assert alone.full

    run(main())


def test_operator_sets_a_rule_above_that_of_the_program_until_it_is_reset(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            inspector = made.inspector
            await declare(made, customer=TWO)
            await limited(made, "a", "b", "c", "d", limits=["customer:42"])
            assert len(await lease(made)) == 2
            wide = LimitRule(concurrency=10)
            assert (await inspector.set_limit("customer:42", wide, by="ann at pc")).ok
            shown = (await by_limit(made))["customer:42"]
            assert (shown.rule, shown.source, shown.program) == (wide, "operator", TWO)
            assert shown.operator is not None
            assert (shown.operator.by, shown.operator.limit) == ("ann at pc", "customer:42")
            assert shown.operator.at is not None
            assert (await inspector.limit("customer:7")).rule == TWO
            assert {one.id for one in await lease(made)} == {"c", "d"}
            narrow = LimitRule(concurrency=1)
            assert (await inspector.set_limit("customer", narrow, by="bob")).ok
            assert (await inspector.limit("customer:42")).rule == wide
            other = await inspector.limit("customer:7")
            assert (other.rule, other.program) == (narrow, TWO)
            assert other.operator is not None
            assert other.operator.limit == "customer"
            assert (await inspector.reset_limit("customer:42")).ok
            assert (await inspector.limit("customer:42")).rule == narrow
            assert (await inspector.reset_limit("customer")).ok
            assert (await inspector.limit("customer:42")).rule == TWO
            assert (await inspector.reset_limit("customer")).outcome == "not_found"

    run(main())


def test_invalid_operator_rules_are_named(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            change = await made.inspector.set_limit("customer", TWO, queue="nowhere")
            assert change.outcome == "not_found"
            wrong: Any = None
            for wrong in ("a b", "customer:", "x" * 300):
                with pytest.raises(InvalidTask, match="limit: "):
                    await made.inspector.limit(wrong)
            with pytest.raises(InvalidTask, match="cursor: 'x' is not a cursor"):
                await made.inspector.limits(cursor="x")
            await limited(made, "a", limits=["customer"])
            for fields, message in [
                ({"concurrency": 0}, "rule: concurrency: 0 is not a whole number from 1"),
                ({"concurrency": -5}, "rule: concurrency: -5 is not"),
                ({"concurrency": "abc"}, "rule: concurrency: 'abc' is not"),
                ({"rate": 1}, "rule: rate: 1 needs per="),
                ({"per_us": S}, "rule: per: 1.0 needs rate="),
                ({"rate": 1, "per_us": "x"}, "rule: per_us: 'x' is not a whole number of micro"),
                ({"rate": 1, "per_us": 10**400}, "rule: per_us: 1000"),
                ({"rate": 1, "per_us": 0}, "rule: per: 0.0 is not between 0.001 and"),
                ({"rate": 1, "per_us": S, "burst": 0}, "rule: burst: 0 is not a whole number"),
            ]:
                wrong = LimitRule(**fields)
                with pytest.raises(InvalidTask, match=message):
                    await made.inspector.set_limit("customer", wrong)
            assert (await made.inspector.limit("customer")).operator is None
            assert (await made.inspector.set_limit("customer", LimitRule(rate=7, per_us=S))).ok
            rule = LimitRule(rate=7, per_us=S, burst=1)
            assert (await made.inspector.limit("customer")).rule == rule
            assert (await made.inspector.set_limit("customer", LimitRule())).ok
            assert str((await made.inspector.limit("customer")).rule) == "unlimited"

    run(main())


def test_explanation_names_the_limit_its_holders_and_the_position(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await declare(made, customer=TWO)
            await limited(made, "a", "b", "c", "d", "e", limits=["other", "customer:42"])
            await lease(made)
            why = await made.inspector.explain("e")
            assert (why.state, why.reason, why.also) == ("limited", "limited", ["no_server"])
            assert why.sentence.startswith(
                "Limited by customer:42: 2 of 2 slots in use by a, b; 3rd to start."
            )
            assert (why.limit, sorted(why.limit_holders), why.rank) == (
                "customer:42",
                ["a", "b"],
                2,
            )
            first = await made.inspector.explain("c")
            assert "; next to start." in first.sentence
            detail = await made.inspector.task("e")
            assert detail is not None
            assert detail.limits == ["other", "customer:42"]

    run(main())


def test_explanation_says_when_a_rate_opens_and_until_when_a_limit_is_closed(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await declare(made, stripe=SLOW)
            await limited(made, "a", "b", limits=["stripe"])
            [held] = await lease(made)
            why = await made.inspector.explain("b")
            assert why.sentence.startswith("Limited by stripe: opens at 2")
            assert "(1 per 1 min, 1 at once); next to start." in why.sentence
            back = op_values.HandedBack(
                *held, None, started=True, limit="stripe", closed_us=3600 * S
            )
            await made.broker.run(ops.hand_back(made.keys(), [back]))
            for id in ("a", "b"):
                why = await made.inspector.explain(id)
                assert why.sentence.startswith("Limited by stripe: closed until 2"), why.sentence
                assert why.at is not None
            shown = (await by_limit(made))["stripe"]
            assert shown.closed_until is not None
            assert shown.closed_until == (await made.inspector.explain("a")).at
            assert why.at == shown.closed_until + timedelta(minutes=1)
            assert shown.waiting == 2
            assert (await made.inspector.open_limit("stripe", queue="none")).outcome == "not_found"
            assert (await made.inspector.open_limit("stripe")).ok
            shown = (await by_limit(made))["stripe"]
            assert (shown.closed_until, shown.waiting) == (None, 2)
            assert (await made.inspector.open_limit("stripe")).outcome == "too_late"
            why = await made.inspector.explain("a")
            assert why.sentence.startswith("Limited by stripe: opens at 2"), why.sentence

    run(main())


def test_explanation_names_pending_tasks_that_hold_the_slots(store: Store, prefix: str) -> None:
    """A task takes its slots when it becomes pending, so that a later task waits for it."""

    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await declare(made, one=LimitRule(concurrency=1), two=TWO)
            await made.enqueue(
                *[Task("t", priority=7) for _ in range(5600)],
                Task("t", id="low", limits=["one"], priority=1),
                Task("t", id="high", limits=["one"], priority=9),
            )
            why = await made.inspector.explain("high")
            assert why.sentence.startswith(
                "Limited by one: 1 of 1 slot taken by a pending task (low); next to start."
            )
            assert why.limit_holders == ["low"]
            info = await made.inspector.limit("one")
            assert (info.holders, info.ready_ids, info.in_use, info.full) == (
                ["low"], ["low"], 0, True,
            )  # fmt: skip
            await made.enqueue(Task("t", id="a", limits=["two"], priority=9))
            assert [one.id for one in await lease(made, 1)] == ["a"]
            await limited(made, "b", "c", "d", limits=["two"])
            why = await made.inspector.explain("d")
            assert why.sentence.startswith(
                "Limited by two: 2 of 2 slots taken, by running tasks (a) and pending tasks (b); "
                "2nd to start."
            )
            info = await made.inspector.limit("two")
            assert (info.holders, info.ready_ids) == (["a", "b"], ["b"])
            await made.inspector.set_limit("two", LimitRule(concurrency=1))
            assert "2 of 1 slots taken" in (await made.inspector.explain("d")).sentence

    run(main())


def test_explanation_of_a_task_with_several_limits_names_the_others(
    store: Store, prefix: str
) -> None:
    """A task that is first in line for one limit may still wait for another one."""

    async def main() -> None:
        async with bed(store.url, prefix) as made:
            one = LimitRule(concurrency=1)
            await declare(made, A=one, B=one, slow=SLOW)
            await limited(made, "a", limits=["A"])
            await limited(made, "b", limits=["B"])
            await limited(made, "ab", "ab2", limits=["A", "B", "free"])
            await lease(made)
            full = "Limited by A: 1 of 1 slot in use by a"
            needs = "and also needs B (1 of 1 slot in use by b)."
            for id, place in (("ab", "first"), ("ab2", "2nd")):
                why = await made.inspector.explain(id)
                assert why.sentence.startswith(f"{full}; {place} in line for it, {needs}")
            await limited(made, "as", limits=["A", "slow"])
            why = await made.inspector.explain("as")
            assert why.sentence.startswith(f"{full}; 3rd in line for it, and also needs slow.")

    run(main())


def test_explanation_gives_later_waiters_of_a_rate_later_times(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            minute = timedelta(minutes=1)
            both = LimitRule(rate=1, per_us=60 * S, burst=1, concurrency=2)
            await declare(made, slow=SLOW, both=both, fast=LimitRule(rate=1, per_us=S, burst=3))
            await limited(made, "a", "b", "c", "d", limits=["slow"])
            await limited(made, "e", "f", "g", limits=["both"])
            await limited(made, "h", "i", limits=["both", "slow"])
            await lease(made)
            times = {id: (await made.inspector.explain(id)).at for id in "bcdfg"}
            assert times["b"] is not None
            assert times["c"] == times["b"] + minute
            assert times["d"] == times["b"] + 2 * minute
            assert times["f"] is not None
            assert times["g"] is None, "it also waits for a slot"
            assert (await made.inspector.explain("h")).at is None, "it also needs another limit"
            await limited(made, *"stuvw", limits=["fast"])
            held, *_ = await lease(made)
            back = op_values.HandedBack(*held, None, started=True, limit="fast", closed_us=3600 * S)
            await made.broker.run(ops.hand_back(made.keys(), [back]))
            ats = [(await made.inspector.explain(id)).at for id in "stuvw"]
            closed = (await made.inspector.limit("fast")).closed_until
            assert closed is not None
            waiting = [at - closed for at in ats if at is not None]
            assert sorted(waiting) == waiting
            assert waiting[0] == timedelta()

    run(main())


def test_limited_tasks_are_listed_found_cancelled_and_purged(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            inspector = made.inspector
            await declare(made, customer=LimitRule(concurrency=1))
            await limited(made, "a", "b", "c", "d", limits=["customer:42"])
            info = await inspector.queue("default")
            assert info is not None
            assert (info.states["limited"], info.states["pending"]) == (3, 1)
            page = await inspector.tasks("default", "limited")
            assert [row.id for row in page.tasks] == ["b", "c", "d"]
            [found] = await inspector.find("c")
            assert found.state == "limited"
            assert (await inspector.run("c")).outcome == "too_late"
            assert (await inspector.cancel("c")).ok
            assert (await inspector.delete("d", state="limited")).ok
            step = await inspector.purge("default", "limited")
            assert step.done == 1
            assert (await inspector.limit("customer:42")).waiting == 0

    run(main())


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_bulk_change_of_a_search_reaches_tasks_that_wait_for_a_limit(
    store: Store, prefix: str, verb: Verb
) -> None:
    """Each pending task that is changed would let the next one become pending."""

    async def main() -> None:
        async with bed(store.url, prefix) as made:
            inspector, cursor, found = made.inspector, None, dict[str, int]()
            await declare(made, customer=LimitRule(concurrency=1))
            await limited(made, "a", "b", "c", "d", limits=["customer:42"])
            assert (await inspector.cancel_matching("default", "limited", Filter(id="d"))).done == 1
            while True:
                part = await inspector.search_step(SearchQuery(), verb, cursor=cursor)
                if part.state is not None:
                    found[part.state] = part.step.done
                cursor = part.step.cursor
                if cursor is None:
                    break
            assert found == {"limited": 2, "pending": 1}
            assert (await inspector.limit("customer:42")).taken == 0

    run(main())


def test_doctor_names_limits_without_a_rule_and_long_waits(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            keys = GlobalKeys(prefix)
            await made.enqueue(Task("t"))
            assert await examine_limits(made.broker, keys) is None
            await limited(made, "a", "b", limits=["customer:42"])
            await lease(made)
            [text] = await examine_limits(made.broker, keys) or []
            assert text.startswith("customer:42 of default has no rule, so anything may start")
            await declare(made, customer=LimitRule(concurrency=1))
            assert await examine_limits(made.broker, keys) == []
            [found] = limit_findings([])
            assert (found.name, found.level) == ("limits", "ok")
            await limited(made, "c", limits=["customer:42"])
            [queue] = await read_limits(made.broker, keys)
            assert problems_of([queue]) == []
            [text] = problems_of([queue._replace(waited_s=7200.0)])
            assert "has waited too long in default (2 h" in text
            [found] = limit_findings([text])
            assert found.level == "warning"

    run(main())


def test_doctor_names_a_limit_that_nothing_will_open() -> None:
    state = LimitState("x", 0, 0, 3, None, None)
    page = LimitsPage(0, {"x": TWO}, {}, [state], "0")
    [text] = problems_of([QueueLimits("default", page, 0.0)])
    assert (
        text == "tasks wait for x of default, and nothing will start "
        "them: run `qsync doctor --audit`"
    )
