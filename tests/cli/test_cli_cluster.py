"""The commands that are processes of their own, on a cluster: worker, dashboard, doctor."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.support.cli import qsync
from tests.support.dashboard import SAME
from tests.support.stores import Cluster, wait_until
from tests.web.test_web_command import running
from tests.worker.test_health import Probed

QUEUES = ("default", "mail", "lower")
"""They lie on more than one node."""


def test_worker_on_a_cluster_is_shown_scaled_and_changed(
    tmp_path: Path, cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process dies and its task runs again, as the operator's commands show."""
    shop = {"QSYNC_URL": cluster.url, "QSYNC_PREFIX": prefix}
    options = ("--processes", "2", "--health-port", "0", "--queues", ",".join(QUEUES))
    monkeypatch.setenv("QSYNC_PREFIX", prefix)
    with Probed(tmp_path, cluster.url, *options) as worker:
        worker.wait_for("ready", 200)
        assert worker.probe("startup") == worker.probe("live") == (200, [])
        assert len(qsync("servers", "--json", env=shop).json) == 2
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
    assert told.code == 1, "nothing is kept on disk by these nodes"
    assert {one["node"] for one in told.json} == {
        "", *(node.url.removeprefix("redis://") for node in cluster.nodes)
    }  # fmt: skip
    lines = qsync("acl", "server", "--cluster").out
    assert re.search(r"\+cluster\|slots|\+cluster\b", lines)
