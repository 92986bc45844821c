"""`qsync type`: pauses and resumes types of a live queue."""

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


def test_type_is_paused_and_resumed_while_servers_run(live: Live) -> None:
    assert "default" in live.refused("type", "pause", "hold")
    [running] = live.enqueue(Task("hold", timeout=60))
    live.serve()
    wait_until(lambda: live.began == [running])
    paused = live.ok("type", "pause", "hold", "--reason", "provider is down", "--by", "ann")
    assert paused.out.strip() == "hold: paused in queue default"
    waiting = live.enqueue(*[Task("hold", timeout=60)] * 2)
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
