"""The commands that run as processes (worker, dashboard, doctor) work on a cluster."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.crc import key_slot

from qsync import Qsync, Task
from tests.support.cli import qsync
from tests.support.dashboard import SAME
from tests.support.stores import Cluster, wait_until
from tests.web.test_web_command import running
from tests.worker.test_health import Probed

QUEUES = ("default", "mail", "lower")
"""Queues that are spread over more than one node."""


def test_worker_on_a_cluster_is_shown_scaled_and_changed(
    tmp_path: Path, cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process dies and its task runs again; the operator's commands show both events."""
    shop = {"QSYNC_URL": cluster.url, "QSYNC_PREFIX": prefix}
    options = ("--processes", "2", "--health-port", "0", "--queues", ",".join(QUEUES))
    monkeypatch.setenv("QSYNC_PREFIX", prefix)
    with Probed(tmp_path, cluster.url, *options) as worker:
        worker.wait_for("ready", 200)
        assert worker.probe("startup") == worker.probe("live") == (200, [])
        wait_until(lambda: len(qsync("servers", "--json", env=shop).json) == 2, 20)
        worker.enqueue(*["quick"] * 20, *["wait"] * 4)
        held = 'qsync_tasks_running{queue="default",type="wait"}'
        wait_until(lambda: worker.metric(held) == 4, 20)
        advice = json.loads(worker.get("/scale?target=10")[1])
        assert (advice["running"], advice["backlog"], advice["workers"]) == (4, 0, 1)
        assert qsync("doctor", "--audit", env=shop).code == 0

        busy = {
            server["pid"]: server["running"] for server in qsync("servers", "--json", env=shop).json
        }
        os.kill(max(busy, key=lambda pid: busy[pid]), signal.SIGKILL)
        wait_until(lambda: worker.metric("qsync_worker_restarts_total") == 1, 20)
        wait_until(lambda: worker.metric(held) == 4, 20)

        [row, *_] = qsync("task", "list", "-s", "active", "--json", env=shop).json["tasks"]
        assert qsync("task", "cancel", row["id"], env=shop).code == 0
        wait_until(lambda: worker.metric(held) == 3, 20)
        (tmp_path / "go").touch()
        worker.wait_for("ready", 200)
        wait_until(lambda: worker.metric(held) == 0, 20)
        queues = {one["name"]: one for one in qsync("queue", "list", "--json", env=shop).json}
        assert set(queues) == set(QUEUES)
        assert queues["default"]["counters"]["completed"] == 23
        assert queues["default"]["counters"]["cancelled"] == 1


def test_dashboard_shows_a_cluster(tmp_path: Path, cluster: Cluster, prefix: str) -> None:
    environment = {"QSYNC_URL": cluster.url, "QSYNC_PREFIX": prefix}
    with running("--port", "0", "--allow-actions", folder=tmp_path, **environment) as it:
        for path in ("/", "/queues", "/tasks", "/dead", "/servers", "/schedules"):
            assert it.get(path).status_code == 200
        assert "qsync_store_up 1.0" in it.get("/metrics").text
        assert it.get("/health").json()["ok"] is True
        answer = httpx.post(
            f"{it.url}/queue/pause", data={"queue": "none"}, headers={**SAME, "Origin": it.url},
            follow_redirects=True,
        )  # fmt: skip
        assert "There is no queue none" in answer.text
        assert it.stop() == ""


def test_doctor_command_examines_a_cluster(cluster: Cluster) -> None:
    told = qsync("doctor", "--json", env={"QSYNC_URL": cluster.url})
    assert told.code == 1, "these nodes keep nothing on disk"
    assert {one["node"] for one in told.json} == {
        "", *(node.url.removeprefix("redis://") for node in cluster.nodes)
    }  # fmt: skip
    lines = qsync("acl", "server", "--cluster").out
    assert re.search(r"\+cluster\|slots|\+cluster\b", lines)


def test_edit_types_events_search_and_backfill_reach_every_node(
    cluster: Cluster, prefix: str
) -> None:
    env = {"QSYNC_URL": cluster.url, "QSYNC_PREFIX": prefix}
    app = Qsync(cluster.url, prefix=prefix)
    slots = {key_slot(f"{prefix}:q{n}".encode()) * 3 // 16384: f"q{n}" for n in range(50)}
    # Each queue is on another node.
    queues = first, second, third = [slots[part] for part in range(3)]
    with app.client() as client:
        for queue in queues:
            client.enqueue(Task("pay", {"invoice": 7}, queue=queue, id=f"pay-{queue}", delay=3600))
            client.enqueue(Task("note", queue=queue))
        client.schedules.put("nightly", Task("note", queue=third), cron="0 3 * * *")

    def run(*words: str) -> Any:
        told = qsync(*words, env=env)
        assert told.code == 0, told.out + told.err
        return told

    def ids(query: str) -> set[str]:
        return {row["id"] for row in run("task", "list", query, "--json").json["tasks"]}

    edited = ("task", "edit", f"pay-{second}", "--json", '{"invoice": 8}')
    run(*edited, "--dry-run")
    assert ids("args.invoice:8") == set()
    run(*edited)
    run(*edited[:-1], '{"invoice": 9}', "--copy", "--into", third)
    assert ids("args.invoice:8") == {f"pay-{second}"}
    [copy] = ids("args.invoice:9")
    assert ids("type:pay state:scheduled") == {f"pay-{queue}" for queue in queues}
    run("task", "edit", f"pay-{first}", "--json", '{"invoice": 8}', "--retry")
    assert ids("args.invoice:8 state:pending") == {f"pay-{first}"}
    assert ids(f"type:pay queue:{third}") == {f"pay-{third}", copy}

    for queue in queues:
        run(
            "type", "pause", "note", "--queue", queue, "--reason", f"down in {queue}", "--by", "ann"
        )
        [note] = [row for row in run("types", "--queue", queue, "--json").json
                  if row["type"] == "note"]  # fmt: skip
        assert note["paused"]["why"] == f"down in {queue}"
    run("type", "resume", "note", "--queue", second)

    past = ("schedule", "backfill", "nightly", "--from", "2026-01-01T00:00Z", "--to",
            "2026-01-04T00:00Z", "--json")  # fmt: skip
    assert run(*past, "--dry-run").json["enqueued"] == 3
    assert run(*past, "--yes").json["enqueued"] == 3
    assert run(*past, "--yes").json["skipped"] == 3
    history = run("schedule", "history", "nightly", "--json").json
    assert [row["made"] for row in history if row["made"] != "tick"] == ["backfill"] * 3

    actions = [row["action"] for row in run("events", "--json").json]
    assert sorted(actions) == sorted(
        ["task.edit", "task.edit", "task.copy", *["type.pause"] * 3, "type.resume",
         "schedule.backfill"]
    )  # fmt: skip
    assert run("doctor", "--audit").code == 0
    app.close()
