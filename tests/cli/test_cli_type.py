"""`qsync type` pauses and resumes types of a live queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import Task
from qsync.cli.type import ESTIMATES
from tests.support.cli import KINDS, Live, living
from tests.support.stores import wait_until


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def test_type_is_paused_and_resumed_while_servers_run(live: Live) -> None:
    assert "default" in live.refused("type", "pause", "hold")
    [running] = live.enqueue(Task("hold", timeout=60))
    live.serve()
    wait_until(lambda: live.began == [running])
    paused = live.ok("type", "pause", "hold", "--reason", "provider is down", "--by", "ann")
    assert paused.out.strip() == "hold: paused in queue default"
    waiting = live.enqueue(*[Task("hold", timeout=60)] * 2)
    told = live.ok("stats").out
    assert "default: type hold is paused by ann " in told
    assert "provider is down; " in told
    assert "qsync type resume hold --queue default" in told
    told = live.ok("task", "explain", waiting[1]).out
    assert "Type 'hold' is paused by ann since " in told
    assert "UTC: provider is down." in told
    [other] = live.enqueue(Task("note"))
    wait_until(lambda: live.began == [running, other])
    wrong = live.refused("types", "resume", "hlod")
    assert "type hlod is not paused in queue default; paused: hold" in wrong
    resumed = live.ok("type", "resume", "hold").out.strip()
    assert resumed == "hold: resumed in queue default; 2 tasks waited"
    wait_until(lambda: sorted(live.began) == sorted([running, other, *waiting]))
    for id in (running, *waiting):
        live.ok("task", "cancel", id)


def test_pause_of_an_unknown_type_says_so_and_a_second_pause_keeps_the_reason(live: Live) -> None:
    live.enqueue(Task("note"))
    typo = live.run("type", "pause", "nota", "--why", "the provider is down", "--by", "ann")
    assert (typo.code, typo.out) == (0, "nota: paused in queue default\n")
    assert typo.err == (
        "note: queue default has had no task of type nota yet; did you mean note?\n"
    )
    assert live.run("type", "pause", "nota", "--by", "bob").err == ""
    [paused] = live.do(live.inspector.paused_types())
    assert (paused.pause.by, paused.pause.why) == ("ann", "the provider is down")
    live.ok("type", "pause", "nota", "--by", "bob", "--why", "still down")
    [paused] = live.do(live.inspector.paused_types())
    assert (paused.pause.by, paused.pause.why) == ("bob", "still down")


def test_types_are_listed_and_shown_with_their_figures(live: Live) -> None:
    assert live.ok("types", "-o", "json").json == []
    live.enqueue(*[Task("note")] * 3, Task("bill", b"nobody", retry=0))
    server = live.serve()
    wait_until(lambda: len(live.began) == 3)
    wait_until(lambda: live.do(live.inspector.queue("default")).states["dead"] == 1)
    live.do(server.stop())
    rows = {row["type"]: row for row in live.ok("types", "--json").json}
    assert rows["note"]["stats"]["completed"] == 3
    assert rows["bill"]["stats"]["failure_share"] == 1.0
    assert rows["bill"]["dead"] == 1
    live.ok("type", "pause", "bill", "--by", "ann", "--why", "broken")
    table = live.ok("type", "list", "--sort", "failed").out
    lines = table.splitlines()
    assert lines[0].split() == [
        "TYPE", "STARTED", "FAILED", "SHARE", "WAIT", "RUN", "PENDING", "DEAD",
    ]  # fmt: skip
    assert lines[1].split()[:4] == ["bill", "1", "1", "100.0%"]
    assert "bill is paused by ann" in table
    assert "broken; 0 tasks set aside" in table
    csv = live.ok("types", "-o", "csv", "--period", "24h").out
    assert "stats.completed" in csv.splitlines()[0]
    shown = live.ok("type", "show", "note", "--period", "7d").out
    assert shown.startswith("Type note of queue default, last 7d")
    assert shown.splitlines()[-1] == ESTIMATES
    assert shown.splitlines()[-2].split()[:2] == ["all", "3"]
    assert "No task of this type has started" in live.ok("type", "show", "nota").out
    stats = live.ok("type", "show", "note", "--json").json
    assert len(stats["points"]) == len(stats["before"]) == 60
    assert "'1y' is not one of 1h, 24h, 7d, 90d" in live.run("types", "--period", "1y").err
    assert "1h, 24h, 7d" in live.refused("types", "--period", "90d", code=2)


def test_counts_among_the_first_tasks_say_so(live: Live) -> None:
    live.enqueue(Task("note"))
    server = live.serve()
    wait_until(lambda: live.began)
    live.do(server.stop())
    live.enqueue(*[Task("bulk")] * 1001, Task("note"))
    rows = {row["type"]: row for row in live.ok("types", "--json").json}
    assert (rows["bulk"]["pending"], rows["bulk"]["pending_whole"]) == (1000, False)
    assert rows["bulk"]["dead_whole"]
    table = live.ok("types").out
    assert "1,000+" in table
    assert " 0+" not in table
    assert "PENDING: among the first 1,000 of 1,002 pending tasks." in table
