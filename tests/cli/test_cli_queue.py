"""`qsync stats`, `queue`, `servers`, `schedule` and `top` work on a live system, and the command
reference is up to date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Task
from qsync.cli.queue import served_by
from tests.support.cli import KINDS, Live, living, qsync
from tests.support.stores import wait_until
from tools import cli_reference


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def queue_of(live: Live) -> dict[str, Any]:
    [found] = live.ok("queue", "list", "--json").json
    return dict(found)


def test_a_queue_is_paused_emptied_and_resumed(live: Live) -> None:
    live.enqueue(*[Task("note", delay=3600)] * 3, *[Task("note")] * 2)
    assert sum(queue_of(live)["states"].values()) == 5
    live.ok("queue", "pause", "default", "--why", "the provider is down")
    listed = live.ok("queue", "list").out
    assert "paused" in listed
    assert "the provider is down" in listed
    live.ok("queue", "pause", "default")  # keeps the reason
    assert queue_of(live)["paused"]["why"] == "the provider is down"
    # Without a terminal there is no confirmation, so nothing is deleted.
    live.refused("queue", "purge", "default", "--state", "pending", code=2)
    assert sum(queue_of(live)["states"].values()) == 5
    live.ok("queue", "purge", "default", "--state", "pending", "--yes")
    states = queue_of(live)["states"]
    assert (states["pending"], states["scheduled"]) == (0, 3)
    live.ok("queue", "resume", "default")
    assert queue_of(live)["paused"] is None
    assert "default" in live.ok("stats").out
    assert live.ok("stats", "--json").json
    found = live.ok("events", "--queue", "default", "--json").json
    assert [(e["action"], e["number"], e["detail"]) for e in found] == [
        ("queue.resume", 1, ""),
        ("queue.purge", 2, "pending"),
        ("queue.pause", 1, ""),
        ("queue.pause", 1, "the provider is down"),
    ]
    assert all("@" in event["by"] for event in found)
    assert live.ok("events", "--action", "queue.purge", "-o", "csv").out.count("\n") == 2
    assert "the provider is down" in live.ok("events", "--action", "queue").out
    assert "No recorded actions" in live.ok("events", "--task", "none", "--since", "1h").out
    assert "did you mean 'queue.purge'" in live.refused("events", "--action", "queue.purg", code=2)


def test_problems_of_every_kind_are_shown(live: Live) -> None:
    """Queues without a server do not hide the dead tasks of another queue."""
    live.serve()
    [id] = live.enqueue(Task("bill", b"9", retry=0))
    live.reaches(id, "dead")
    for number in range(7):
        live.do(live.client.enqueue(Task("note"), queue=f"-archive{number}"))
    out = live.ok("stats").out
    assert "qsync worker MODULE:APP --queues=-archive0=1\n" in out
    assert "And 2 more problems like these." in out
    assert "to acknowledge them: qsync errors acknowledge default\n" in out
    problems = live.ok("stats", "--json").json["problems"]
    assert len(problems) == 8
    [dead] = [problem for problem in problems if problem["kind"] == "dead tasks"]
    assert (dead["queue"], dead["text"][:11]) == ("default", "1 task died")
    [only] = live.ok("stats", "default", "--json").json["problems"]
    assert only["kind"] == "dead tasks"


def test_servers_are_listed_and_stopped(live: Live) -> None:
    server = live.serve()
    [id] = live.enqueue(Task("hold", timeout=60))
    wait_until(lambda: live.began == [id])
    [found] = live.ok("servers", "--json").json
    assert found["id"] == server.id
    assert server.id in live.ok("servers").out
    assert "default" in live.ok("top", "--once").out
    live.ok("servers", "quiet", server.id)
    wait_until(lambda: live.ok("servers", "--json").json[0]["quiet"])
    live.refused("servers", "stop", "nobody")
    live.ok("task", "cancel", id)
    live.reaches(id, None)


def test_wrong_arguments_are_reported_in_one_line(live: Live) -> None:
    live.enqueue(Task("note"))
    assert "default" in live.refused("queue", "pause", "defualt")
    refused = qsync("stats", "--url", "redis://127.0.0.1:1")
    assert refused.code == 3
    assert refused.err.count("\n") == 1
    assert qsync("stats").code == 2


def test_cli_reference_matches_the_commands() -> None:
    page = cli_reference.PAGE.read_text()
    assert page == cli_reference.generated(page)


def test_message_about_servers_of_a_queue_matches_their_number() -> None:
    assert served_by(1) == "1 running server takes tasks from it"
    assert served_by(2) == "2 running servers take tasks from it"


def test_bounds_are_set_shown_and_reset(live: Live) -> None:
    live.enqueue(Task("note", delay=3600), Task("note", delay=3600))
    done = live.ok(
        "queue", "set", "default", "--max-tasks", "2", "--max-bytes", "1GiB", "--by", "ann"
    )
    assert done.out.strip() == ("default: 2 waiting tasks and 1,073,741,824 bytes, then raise")
    shown = live.ok("queue", "show", "default").out
    assert "default is full: 2 of 2 waiting tasks (max_tasks)" in shown
    assert "set by ann" in shown
    assert "set by the program: no bounds" in shown
    assert "default is full" in live.ok("queue", "list").out
    live.ok("queue", "set", "default", "--max-bytes", "none", "--when-full", "drop_oldest")
    [found] = live.ok("queue", "list", "--json").json
    assert found["bounds"]["operator"]["bounds"] == {
        "max_tasks": 2, "max_bytes": None, "when_full": "drop_oldest",
    }  # fmt: skip
    target = live.ok("queue", "set", "default", "--latency-target", "30s").out
    assert target == "default: latency target 30 s\n"
    assert live.ok("queue", "show", "default", "--json").json["latency_target"] == 30
    zero = live.refused("queue", "set", "default", "--latency-target", "0", code=2)
    assert "'0' is no time; write a duration such as 30s, or none" in zero
    none = live.ok("queue", "set", "default", "--latency-target", "none").out
    assert none == "default: no latency target\n"
    assert "use --max-tasks" in live.refused("queue", "set", "default", code=2)
    for text in ("many", "0", "-1"):
        wrong = live.run("queue", "set", "default", "--max-tasks", text)
        assert wrong.code == 2
        assert f"'{text}' is not a number of tasks from 1, nor 'none'" in wrong.err
    live.refused("queue", "set", "nowhere", "--max-tasks", "2", code=1)
    assert live.ok("queue", "reset", "default").out.strip() == "default: no bounds"
    live.refused("queue", "reset", "default", code=1)


def test_weights_of_fairness_keys_are_set_listed_and_reset(live: Live) -> None:
    live.enqueue(Task("note", delay=3600))
    assert "have the weight 1" in live.ok("fairness", "list").out
    assert live.ok("fairness", "set", "acme", "--weight", "3").out.strip() == (
        "acme: weight 3 in queue default"
    )
    assert "acme" in live.ok("fairness", "list").out
    assert live.ok("fairness", "list", "--json").json["weights"] == {"acme": 3.0}
    assert "0.001 to 1000" in live.refused("fairness", "set", "a", "--weight", "0", code=2)
    live.refused("fairness", "set", "acme", "--weight", "3", "--queue", "nowhere", code=1)
    live.ok("fairness", "reset", "acme")
    live.refused("fairness", "reset", "acme", code=1)


def test_runs_of_a_schedule_are_listed_and_backfilled(live: Live) -> None:
    live.ok("schedule", "put", "nightly", "note", "--cron", "0 3 * * *", "--tz", "Asia/Tokyo")
    assert "No runs are recorded" in live.ok("schedule", "history", "nightly").out
    words = ["schedule", "backfill", "nightly", "--from", "2026-01-01T00:00+09:00"]
    words += ["--to", "2026-01-08T00:00+09:00"]
    assert live.ok(*words, "--dry-run").out == "7 tasks would be enqueued\n"
    assert "enqueues tasks" in live.refused(*words, code=2)
    assert live.ok(*words, "--yes", "--json").json == {
        "ticks": 7, "enqueued": 7, "skipped": 0, "refused": None,
    }  # fmt: skip
    again = live.ok(*words, "--yes").out
    assert again == "0 tasks enqueued; 7 ticks skipped, already run\n"
    assert queue_of(live)["states"]["pending"] == 7
    runs = live.ok("schedule", "history", "nightly", "--json").json
    assert [(run["made"], run["outcome"]) for run in runs] == [("backfill", "pending")] * 7
    shown = live.ok("schedule", "show", "nightly").out
    assert "03:00:00 JST" in shown
    assert shown.count("backfill") == 5, "the last runs"
    assert "--from and --to" in live.refused("schedule", "backfill", "nightly", code=2)
