"""With `qsync errors`, an operator finds and resolves an outage with many dead tasks in three
commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import Task
from tests.support.cli import Live, living
from tests.support.stores import Store, wait_until


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as live:
        yield live


def test_outage_is_resolved_by_three_commands(live: Live) -> None:
    live.serve()
    ids = live.enqueue(*[Task("bill", f"{n}".encode(), retry=0) for n in range(30)])
    live.enqueue(Task("bill", b"later", retry=3, retry_delay=600))
    wait_until(lambda: live.ok("stats", "--json").json["queues"][0]["states"]["dead"] == 30)
    live.broken = False

    listed = live.ok("errors").out
    assert len(listed.splitlines()) == 2
    assert "in charge_the_other_way" in listed
    [found] = live.ok("errors", "list", "--json").json
    assert found["states"] == {"dead": 30, "retry": 1}
    shown = live.ok("errors", "show", found["id"][:5]).out
    assert "tasks   30 dead, 1 retry" in shown
    assert "ValueError: no such customer" in shown
    assert 'File "' in shown
    assert live.ok("errors", "retry", found["id"], "--dry-run").out == (
        "30 of 30 dead tasks would be pending now\n"
    )
    assert live.ok("errors", "retry", found["id"]).out == "30 of 30 dead tasks pending now\n"
    for id in ids:
        live.reaches(id, None)

    retried = live.ok("errors", "retry", found["id"], "--state", "retry").out
    assert retried == "1 of 1 retry tasks pending now\n"
    wait_until(lambda: live.ok("errors").out == "No task has failed.\n")


def test_delete_of_a_group_leaves_other_groups(live: Live) -> None:
    live.serve()
    live.enqueue(*[Task("bill", b"1", retry=0)] * 3, Task("unknown", retry=0))
    wait_until(lambda: live.ok("stats", "--json").json["queues"][0]["states"]["dead"] == 3)
    [found] = live.ok("errors", "list", "--type", "bill", "--state", "dead", "--json").json
    live.refused("errors", "delete", found["id"], code=2)  # there is no terminal to confirm at
    assert live.ok("errors", "delete", found["id"], "--yes").out == "3 of 3 dead tasks deleted\n"
    assert "no task has the error" in live.refused("errors", "show", found["id"])
    assert "put the options after the command" in (
        live.refused("errors", "-q", "default", "list", code=2)
    )
    unknown = live.run("errors", "list", "--state", "pending")
    assert (unknown.code, "is not one of dead, retry" in unknown.err) == (2, True)
