"""`qsync server`, `schedule`, `stats` and `top` work with running servers, on one node and on a
cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Task
from tests.support.cli import KINDS, Live, living
from tests.support.stores import wait_until


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def running(live: Live, *ids: str) -> None:
    """Enqueue tasks that run until they are released; return when all of them are running."""
    live.enqueue(*(Task("hold", id=id, timeout=60) for id in ids))
    wait_until(lambda: sorted(live.began) == sorted(ids))


def test_servers_are_listed_with_their_running_tasks(live: Live) -> None:
    assert "qsync worker MODULE:APP" in live.ok("servers").out
    assert live.ok("servers", "list", "--json").json == []
    one = live.serve(concurrency=7)
    two = live.serve(queues={"other": 3, "more": 1})
    running(live, "a", "b")
    listed = live.ok("servers").out.splitlines()
    assert listed[0].split() == ["SERVER", "PID", "RUNNING", "UP", "QUEUES"]
    rows = {line.split()[0]: line for line in listed[1:]}
    assert set(rows) == {one.id, two.id}
    assert rows[one.id].endswith("  default")
    assert "/7 " in rows[one.id]
    assert rows[two.id].endswith("  other=3,more")
    assert live.ok("servers", "list").out.splitlines()[0].split() == listed[0].split()
    shown = live.ok("servers", "--tasks").out
    assert f"{one.id} holds 2 leases\n" in shown
    rows = shown[shown.index("LEASE EXPIRES") :].splitlines()[1:3]
    assert sorted(line.split()[0] for line in rows) == ["a", "b"]
    found = {server["id"]: server for server in live.ok("servers", "--json").json}
    assert sorted(task["id"] for task in found[one.id]["tasks"]) == ["a", "b"]
    assert found[two.id]["queues"] == {"more": 1, "other": 3}


def test_one_server_is_drained_and_another_stopped(live: Live) -> None:
    one, two = live.serve(), live.serve()
    assert live.ok("servers", "quiet", one.id).out == f"{one.id}: request sent\n"
    wait_until(lambda: "quiet: default" in live.ok("servers").out)
    told = live.ok("servers", "stop", two.id, "--json").json
    assert [(row["server"], row["outcome"]) for row in told] == [(two.id, "told")]
    wait_until(lambda: two.condition().stopping)
    assert not one.condition().stopping
    said = live.refused("servers", "stop", one.id[:-1] + "x")
    assert f"did you mean {one.id}?" in said
    both = live.run("servers", "quiet", one.id, "nobody", "--json")
    assert (both.code, [row["outcome"] for row in both.json]) == (1, ["told", "not_found"])
    assert "put the options after the command" in live.refused("servers", "--json", "list", code=2)


@pytest.fixture
def nightly(live: Live) -> Live:
    """Return a Live with a server that has published a schedule."""

    async def night() -> None:
        live.began.append("night")

    live.app.periodic(cron="0 3 * * *", tz="Europe/Moscow", name="night", queue="other")(night)
    live.serve(queues={"default": 1, "other": 1})
    wait_until(lambda: live.do(live.inspector.schedules()))
    return live


def test_a_schedule_is_triggered_paused_and_resumed(nightly: Live) -> None:
    live = nightly
    listed = live.ok("schedule", "list").out.splitlines()
    assert listed[0].split() == [
        "NAME", "QUEUE", "KIND", "SCHEDULE", "NEXT", "LAST", "TICK", "STATE",
    ]  # fmt: skip
    assert listed[1].startswith("night  other  program  0 3 * * * (Europe/Moscow)  in ")
    [found] = live.ok("schedule", "list", "--queue", "other", "--json").json
    assert (found["name"], found["cron"], found["paused"]) == ("night", "0 3 * * *", None)
    assert len(found["next_at"]) == 3
    assert live.ok("schedule", "list", "--queue", "default", "--json").json == []
    enqueued = live.ok("schedule", "trigger", "night").out
    assert enqueued.startswith("night: enqueued as ")
    wait_until(lambda: live.began == ["night"])
    assert live.ok("schedule", "pause", "night", "--why", "the books", "--by", "ann").out == (
        "night: paused\n"
    )
    live.ok("schedule", "pause", "night", "--by", "bob")  # keeps the reason
    shown = live.ok("schedule", "list").out
    assert "night: paused by ann" in shown
    assert ": the books\n" in shown
    assert live.ok("schedule", "resume", "night", "--json").json == [
        {"schedule": "night", "queue": "other", "outcome": "done"}
    ]
    assert "it is not paused" in live.refused("schedule", "resume", "night")


def test_impossible_actions_on_a_schedule_are_refused(nightly: Live) -> None:
    live = nightly
    assert "did you mean night?" in live.refused("schedule", "trigger", "nihgt")
    assert "there is no schedule night" in live.refused(
        "schedule", "pause", "night", "-q", "default"
    )
    assert "there is no queue nowhere" in live.refused("schedule", "list", "--queue", "nowhere")
    assert "add --yes" in live.refused("schedule", "delete", "night", code=2)
    assert "a server published this schedule" in live.refused(
        "schedule", "delete", "night", "--yes"
    )
    assert live.do(live.inspector.schedule("night", queue="other"))


def test_stats_show_the_figures_of_each_queue(live: Live) -> None:
    assert "There is no queue yet." in live.ok("stats").out
    live.serve(queues={"default": 1, "other": 1})
    done = live.enqueue(*(Task("note", id=f"n{n}", retention=60) for n in range(5)))
    live.enqueue(Task("bill", b"1", id="dead", queue="other", retry=0), Task("note", delay=600))
    for id in done:
        live.reaches(id, "completed")
    live.reaches("dead", "dead")
    shown = live.ok("stats").out.splitlines()
    assert shown[0].startswith(f"{live.prefix} at ")
    assert "1 running server" in shown[0]
    assert shown[2].split() == [
        "QUEUE", "PENDING", "ACTIVE", "SCHEDULED", "RETRY", "COMPLETED", "CANCELLED", "DEAD",
        "OLDEST",
    ]  # fmt: skip
    assert [line.split() for line in shown[3:6]] == [
        ["default", "0", "0", "1", "0", "5", "0", "0"],
        ["other", "0", "0", "0", "0", "0", "0", "1"],
        ["all", "0", "0", "1", "0", "5", "0", "1"],
    ]
    assert shown[6] == ""
    assert shown[7].startswith("other: 1 task died "), shown[7:10]
    told = live.ok("errors", "acknowledge", "other").out
    assert told == "1 dead task of queue other acknowledged\n"
    assert "died" not in live.ok("stats").out
    today = shown[shown.index("", 7) + 1 :]
    assert today[0].split()[:6] == ["TODAY", "ENQUEUED", "COMPLETED", "FAILED", "RETRIED", "DEAD"]
    assert today[1].split() == ["default", "6", "5", "0", "0", "0"]
    assert "ALL TIME" in live.ok("stats").out
    found = live.ok("stats", "other", "--days", "7", "--json").json
    assert [queue["name"] for queue in found["queues"]] == ["other"]
    assert [day["counters"]["dead"] for day in found["queues"][0]["days"]] == [1]
    assert len(found["servers"]) == 1
    assert "did you mean other?" in live.refused("stats", "othr")
    assert live.run("stats", "--days", "91").code == 2


def test_top_draws_a_frame(live: Live) -> None:
    shown = live.ok("top", "--once").out
    assert "no queues yet" in shown
    assert "no servers" in shown
    server = live.serve(queues={"default": 1, "other": 1})
    running(live, "a")
    over = threading.Event()

    def flow() -> None:
        while not over.wait(0.02):
            live.enqueue(*[Task("note", queue="other")] * 10)

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        wait_until(lambda: "note" in live.ok("task", "list").out or len(live.began) > 20)
        found = live.ok("top", "--once", "--json").json
        shown = live.ok("top").out
    finally:
        over.set()
        thread.join()
    assert found["rates"]["other"]["enqueued"] > 10
    assert found["rates"]["other"]["completed"] > 10
    assert found["rates"]["default"]["completed"] == 0
    assert [row["id"] for row in found["servers"]] == [server.id]
    mine: list[Any] = [one for one in found["running"] if one["task"]["id"] == "a"]
    assert [one["task"]["progress"] for one in mine] == [[3.0, 10.0]]
    assert mine[0]["seen"] > 0
    lines = shown.splitlines()
    assert lines[0].startswith(f"qsync top  {live.prefix} at ")
    assert lines[2].split()[:2] == ["QUEUE", "v"]
    assert lines[2].split()[-4:] == ["OLDEST", "IN/S", "OK/S", "FAIL/S"]
    assert [line.split()[0] for line in lines[3:5]] == ["default", "other"]
    for column, first in (("active", "default"), ("OLDEST", "default"), ("queue", "default")):
        sorted_lines = live.ok("top", "--sort", column).out.splitlines()
        assert f"{column.upper()} v" in sorted_lines[2], column
        assert sorted_lines[3].split()[0] == first, column
    assert "'size' is not one of queue, pending" in live.run("top", "--sort", "size").err
    assert any(line.startswith(server.id) for line in lines)
    [row] = [line for line in lines if line.startswith("a ")]
    assert row.split()[:3] == ["a", "default", "hold"]
    assert row.rstrip().endswith("30%")


def test_schedule_in_the_store_is_put_shown_changed_and_deleted(nightly: Live) -> None:
    live = nightly
    said = live.ok(
        "schedule", "put", "report-42", "note", "--json", '{"n": 42}', "--cron", "0 9 * * *",
        "--tz", "Asia/Tokyo", "--missed", "once",
    ).out  # fmt: skip
    assert said.startswith("report-42 in queue default: next ")
    listed = [line.split() for line in live.ok("schedule", "list").out.splitlines()]
    assert listed[0][:4] == ["NAME", "QUEUE", "KIND", "SCHEDULE"]
    assert [row[:3] for row in listed[1:3]] == [
        ["report-42", "default", "store"], ["night", "other", "program"],
    ]  # fmt: skip
    [found] = live.ok("schedule", "list", "--name", "report-", "--json").json
    assert (found["stored"], found["cron"], found["missed"]) == (True, "0 9 * * *", "once")
    shown = live.ok("schedule", "show", "report-42").out
    assert shown.startswith("Schedule report-42\nschedule   0 9 * * * (Asia/Tokyo), in the store\n")
    assert "Schedule night\nschedule   0 3 * * *" in live.ok("schedule", "show", "night").out
    assert live.ok("schedule", "pause", "report-42").out == "report-42: paused\n"
    live.ok("schedule", "put", "report-42", "note", "--every", "2h", "-q", "other")
    [found] = live.ok("schedule", "show", "report-42", "--json").json
    assert (found["queue"], found["every"]) == ("other", 7200.0)
    assert "enqueued as " in live.ok("schedule", "trigger", "report-42").out
    wait_until(lambda: len(live.began) == 1)
    assert live.ok("schedule", "delete", "report-42", "--yes").out == "report-42: deleted\n"
    assert "there is no schedule report-42" in live.refused("schedule", "show", "report-42")


def test_invalid_schedule_is_refused_with_a_reason(nightly: Live) -> None:
    live = nightly
    for options, text in (
        (["--cron", "61 * * * *"], "cron='61 * * * *'"),
        (["--cron", "* * * * *", "--tz", "Mars"], "tz='Mars': not in the time zone database"),
        ([], "pass either --cron or --every"),
        (["--cron", "* * * * *", "--every", "5s"], "pass either --cron or --every"),
        (["--every", "5s", "--tz", "Asia/Tokyo"], "--tz Asia/Tokyo: it needs --cron"),
        (["--every", "5s", "--missed", "never"], "missed='never'"),
        (["--every", "5s", "--json", "{"], "--json: not JSON"),
    ):
        assert text in live.refused("schedule", "put", "a", "note", *options, code=2)
    said = live.refused("schedule", "put", "night", "note", "--every", "5s", "-q", "other", code=2)
    assert "name='night': a program has a periodic task of this name for queue 'other'" in said
