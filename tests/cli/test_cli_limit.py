"""`qsync limit` lists, shows, sets and resets the limits of a live queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import Task
from tests.support.cli import KINDS, Live, living
from tests.support.stores import wait_until


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def test_limit_is_set_shown_and_reset(live: Live) -> None:
    live.enqueue(Task("note", delay=3600))
    assert live.ok("limit", "list").out.strip() == "Queue default has no limits."
    live.ok("limit", "set", "customer:42", "--concurrency", "1", "--by", "ann")
    first, *others = live.enqueue(*[Task("hold", limits=["customer:42"], timeout=60)] * 3)
    live.serve()
    wait_until(lambda: live.began == [first])
    listed = live.ok("limit", "list").out
    assert "customer:42" in listed
    assert "1 of 1" in listed
    assert "1 at a time (set by ann)" in listed
    [found] = live.ok("limit", "list", "--json").json["limits"]
    assert (found["in_use"], found["waiting"], found["source"]) == (1, 2, "operator")
    shown = live.ok("limit", "show", "customer:42").out
    assert "1 at a time for customer:42, by ann" in shown
    assert f"held by         {first}" in shown
    assert "LIMITED" in live.ok("queue", "list").out
    assert "LIMITED" in live.ok("top", "--once").out
    assert others[1] in live.ok("task", "list", "--state", "limited").out
    assert (
        "Limited by customer:42: 1 of 1 slot in use by" in live.ok("task", "explain", others[1]).out
    )
    live.ok("limit", "set", "customer:42", "--concurrency", "3")
    wait_until(lambda: sorted(live.began) == sorted([first, *others]))
    assert live.ok("limit", "reset", "customer:42").out.strip() == "customer:42: unlimited"
    for id in (first, *others):
        live.ok("task", "cancel", id)


def test_retry_of_a_task_that_must_wait_for_its_limit_says_so(live: Live) -> None:
    live.enqueue(Task("note", limits=["customer:42"]))
    live.ok("limit", "set", "customer:42", "--concurrency", "1")
    ids = live.enqueue(*[Task("note", {}, limits=["customer:42"], delay=3600)] * 3)
    assert live.ok("task", "retry", ids[0]).out == f"{ids[0]}: limited now\n"
    [told] = live.ok("task", "retry", ids[1], "--json").json
    assert (told["outcome"], told["state"]) == ("done", "limited")
    edit = ("task", "edit", ids[2], "--json", '{"a": 1}', "--retry")
    assert live.ok(*edit).out == f"{ids[2]}: edited and limited now\n"


def test_rule_that_the_program_no_longer_has_is_removed(live: Live) -> None:
    live.enqueue(Task("note", delay=3600))
    live.app.limit("old", concurrency=3)
    live.serve()
    assert "3 at a time" in live.ok("limit", "show", "old").out
    assert "no operator has set a rule for old" in live.refused("limit", "reset", "old")
    dry = live.ok("limit", "reset", "old", "--program", "--dry-run").out
    assert dry == "old: would be unlimited; now: 3 at a time\n"
    why = live.refused("limit", "reset", "old:1", "--program", code=2)
    assert "the program's rule applies to the whole name; use 'old'" in why
    live.ok("limit", "set", "old", "--concurrency", "1")
    assert live.ok("limit", "reset", "old", "--program").out == "old: unlimited\n"
    assert live.ok("limit", "list").out == "Queue default has no limits.\n"
    for words in (["--program"], ["--program", "--dry-run"]):
        assert "there is no rule for old" in live.refused("limit", "reset", "old", *words)


def test_changes_are_reported_as_json(live: Live) -> None:
    live.enqueue(Task("note", delay=3600))
    told = {"limit": "stripe", "queue": "default", "outcome": "done"}
    done = live.ok("limit", "set", "stripe", "--rate", "3", "--per", "1d", "--json").json
    assert done == {**told, "rule": "3 per 1 d, 1 at once"}
    assert live.ok("limit", "reset", "stripe", "--json").json == {**told, "rule": "unlimited"}


def test_closed_limit_is_opened(live: Live) -> None:
    live.serve()
    [id] = live.enqueue(Task("close", limits=["stripe"], retention=60))
    wait_until(lambda: "closed" in live.ok("limit", "list").out)
    assert "Limited by stripe: closed until" in live.ok("task", "explain", id).out
    assert live.ok("limit", "open", "stripe").out.strip() == "stripe: open"
    wait_until(lambda: "Completed" in live.ok("task", "explain", id).out)
    assert "stripe of queue default is not closed" in live.refused("limit", "open", "stripe")
    assert "limit.open" in live.ok("events").out


def test_waiting_tasks_are_cancelled_together(live: Live) -> None:
    live.enqueue(Task("note", delay=3600))
    live.ok("limit", "set", "customer:42", "--concurrency", "1")
    first, *others = live.enqueue(*[Task("note", limits=["customer:42"])] * 4)
    dry = live.ok("task", "cancel", "--query", "state:limited", "--all", "--dry-run").out
    assert dry == "3 of 3 limited tasks would be cancelled\n"
    assert live.ok("task", "cancel", others[0], "--dry-run").out == (
        f"{others[0]}: would be cancelled\n"
    )
    done = live.ok("task", "cancel", "--state", "limited", "--all", "--yes").out
    assert done == "3 of 3 limited tasks cancelled\n"
    assert [live.state(id) for id in (first, *others)] == ["pending", None, None, None]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["set", "customer"], 2, "pass --rate and --per, or --concurrency, or all three"),
        (["set", "customer", "--concurrency", "0"], 2, "concurrency: 0 is not a whole number"),
        (["set", "customer", "--rate", "5"], 2, "rate: 5 needs --per"),
        (["set", "a b", "--concurrency", "1"], 2, "LIMIT: the name in 'a b' must be"),
        (["show", "customer:"], 2, "LIMIT: 'customer:' has no value after its colon"),
        (["reset", "customer"], 1, "no operator has set a rule for customer in queue default"),
        (["set", "customer", "--concurrency", "1", "--queue", "mial"], 1, "no queue mial"),
        (["show", "customer", "--queue", "mial"], 1, "no queue mial; choose from: default"),
        (["show", "customer", "--queue", "mial", "--json"], 1, "no queue mial"),
        (["reset", "customer", "--queue", "mial"], 1, "no queue mial; choose from: default"),
        (["reset", "customer", "--queue", "mial", "--dry-run"], 1, "no queue mial"),
        (["open", "customer", "--queue", "mial"], 1, "no queue mial"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(
    live: Live, arguments: list[str], code: int, message: str
) -> None:
    live.enqueue(Task("note", delay=3600))
    assert message in live.refused("limit", *arguments, code=code)
