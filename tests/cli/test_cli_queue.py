"""`qsync stats`, `queue`, `servers`, `schedule` and `top` on a live system; and the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Task
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
    # Without a terminal nobody can confirm, so nothing is destroyed.
    live.refused("queue", "purge", "default", "--state", "pending", code=2)
    assert sum(queue_of(live)["states"].values()) == 5
    live.ok("queue", "purge", "default", "--state", "pending", "--yes")
    states = queue_of(live)["states"]
    assert (states["pending"], states["scheduled"]) == (0, 3)
    live.ok("queue", "resume", "default")
    assert queue_of(live)["paused"] is None
    assert "default" in live.ok("stats").out
    assert live.ok("stats", "--json").json


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


def test_mistakes_are_told_in_a_line(live: Live) -> None:
    live.enqueue(Task("note"))
    assert "default" in live.refused("queue", "pause", "defualt")
    refused = qsync("stats", "--url", "redis://127.0.0.1:1")
    assert refused.code == 3
    assert refused.err.count("\n") == 1
    assert qsync("stats").code == 2


def test_the_reference_is_what_the_commands_are() -> None:
    page = cli_reference.PAGE.read_text()
    assert page == cli_reference.generated(page)
