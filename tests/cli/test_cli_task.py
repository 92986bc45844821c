"""`qsync task` and `qsync dead` work on a live system, on one node and on a cluster."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from qsync import Task
from qsync.message import ERROR_LIMIT
from tests.support.cli import KINDS, Live, living
from tests.support.inspector_driver import bed
from tests.support.stores import wait_until


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def bill(customer: str, **options: object) -> Task:
    return Task("bill", customer.encode(), **{"retry": 0, "retention": 600, **options})  # type: ignore[arg-type]


def test_dead_task_is_found_shown_and_retried_with_three_commands(live: Live) -> None:
    """A dead task is found by its error message, shown with its traceback of 200 lines, and run
    again."""
    live.serve()
    ids = live.enqueue(*(bill(str(customer)) for customer in (4710, 4711, 4712)))
    for id in ids:
        live.reaches(id, "dead")

    listed = live.ok("dead", "list", "--error", "NO SUCH customer: 4711")
    lines = listed.out.splitlines()
    assert lines[0].split() == ["ID", "QUEUE", "TYPE", "DIED", "ATTEMPTS", "ERROR"]
    assert len(lines) == 2
    id, _, type, *_ = lines[1].split()
    assert (id, type) == (ids[1], "bill")

    shown = live.ok("task", "show", id).out
    whole = live.do(live.inspector.task(id))
    assert whole is not None
    assert whole.error is not None
    assert ERROR_LIMIT - 8 <= len(whole.error.encode()) <= ERROR_LIMIT
    error = shown[shown.index("\nerror (only the first and last parts are kept") :].splitlines()[2:]
    assert error[0] == "  ValueError: no such customer: 4711\\x1b[2J\\u202e"
    assert len(error) == len(whole.error.rstrip("\n").split("\n")), "it is printed whole"
    assert error[-2].endswith("in charge_the_other_way")
    assert error[-1].strip() == "raise ValueError(text)"
    assert "attempts   1 / 1\n" in shown

    live.broken = False
    assert live.ok("task", "run", id).out == f"{id}: pending now\n"
    live.reaches(id, "completed")
    shown = live.ok("task", "show", id).out
    assert 'result (value)\n  "billed 4711"\n' in shown
    assert re.search(r"^attempts +1 / 1$", shown, re.MULTILINE)
    listed = live.ok("task", "list", "--state", "completed").out.splitlines()
    assert "1 / 1" in listed[1]
    assert [live.state(other) for other in (ids[0], ids[2])] == ["dead", "dead"]


def test_many_dead_tasks_are_retried_in_batches(live: Live) -> None:
    live.serve()
    ids = live.enqueue(
        *(bill(str(customer)) for customer in range(20)),
        bill("other", queue="default", id="other", headers={"a": "b"}),
    )
    wait_until(lambda: live.ok("dead", "list", "--json").json["total"] == len(ids))
    filters = ["--error", "customer: 1", "--type", "b*", "--newer-than", "1h"]
    assert live.ok("dead", "run", *filters, "--dry-run").out == (
        "11 of 21 dead tasks would be re-queued\n"
    )
    found = live.ok("dead", "run", *filters, "--dry-run", "--json").json
    assert found == {"scanned": 21, "found": 11, "dry_run": True}
    live.broken = False
    done = live.ok("dead", "run", *filters)
    assert done.out == "11 of 21 dead tasks re-queued\n"
    for id in ids:
        wanted = "completed" if id in (ids[1], *ids[10:20]) else "dead"
        live.reaches(id, wanted)
    assert live.ok("dead", "run", "--older-than", "1h", "--json").json["done"] == 0
    deleted = live.ok("dead", "delete", "--id", "other", "--yes", "--json").json
    assert deleted == {"scanned": 10, "done": 1, "duplicate": 0, "too_late": 0}
    assert live.ok("dead", "delete", "--all", "--dry-run").out == (
        "9 of 9 dead tasks would be deleted\n"
    )
    assert live.ok("dead", "delete", "--all", "--yes").out == "9 of 9 dead tasks deleted\n"
    assert live.ok("dead", "list").out == "No tasks match (searched 0).\n"


def test_all_waiting_tasks_are_run_at_once(live: Live) -> None:
    live.serve()
    ids = live.enqueue(*(bill(str(n), retry=1, retry_delay=600) for n in range(12)))
    [later] = live.enqueue(Task("note", delay=600, retention=600))
    for id in ids:
        live.reaches(id, "retry")
    dry = live.ok("task", "retry", "--state", "retry", "--error", "customer: 1", "--dry-run").out
    assert dry == "3 of 12 retry tasks would be pending now\n"
    live.broken = False
    done = live.ok("task", "retry", "--state", "retry", "--error", "customer: 1", "--json").json
    assert done == {"scanned": 12, "done": 3, "duplicate": 0, "too_late": 0}
    for n, id in enumerate(ids):
        live.reaches(id, "completed" if n in (1, 10, 11) else "retry")
    assert live.ok("task", "retry", "--state", "retry", "--all").out == (
        "9 of 9 retry tasks pending now\n"
    )
    for id in ids:
        live.reaches(id, "completed")
    assert live.state(later) == "scheduled"
    assert live.ok("task", "retry", "--state", "scheduled", "--all").out == (
        "1 of 1 scheduled tasks pending now\n"
    )
    live.reaches(later, "completed")
    said = live.refused("task", "retry", "--state", "active", "--all", code=2)
    assert "use dead, scheduled or retry" in said


def test_dead_task_stays_dead_while_another_task_holds_its_lock(live: Live) -> None:
    server = live.serve()
    [dead] = live.enqueue(bill("1", unique=True))
    live.reaches(dead, "dead")
    live.do(live.inspector.quiet(server.id))
    wait_until(lambda: server.condition().stopping or not _takes(live, server.id))
    [holder] = live.enqueue(bill("1", unique=True))
    assert holder != dead
    assert f"task {dead} stays dead: {holder} holds its unique lock" in (
        live.refused("task", "run", dead)
    )
    ran = live.ok("dead", "run", "--all")
    assert ran.out.splitlines() == [
        "0 of 1 dead tasks re-queued",
        "1 task stays dead: other tasks hold the unique locks",
    ]
    assert live.run("task", "run", dead, "--json").json == [{
        "id": dead, "queue": "default", "outcome": "duplicate", "state": "dead", "holder": holder,
    }]  # fmt: skip


def _takes(live: Live, id: str) -> bool:
    found = live.do(live.inspector.server(id))
    return found is not None and not found.quiet


def test_list_continues_at_cursor(live: Live) -> None:
    ids = live.enqueue(
        *(Task("note", id=f"a{n:02}") for n in range(30)),
        *(Task("note", id=f"b{n:02}", queue="other", delay=60) for n in range(30)),
    )
    seen: list[str] = []
    cursor: list[str] = []
    while True:
        found = live.ok("task", "list", "--limit", "7", "--json", *cursor).json
        assert found["total"] == 60
        seen += [row["id"] for row in found["tasks"]]
        if found["cursor"] is None:
            break
        cursor = ["--cursor", found["cursor"]]
    assert seen == ids
    only = live.ok("task", "list", "-q", "other", "-s", "scheduled", "-n", "2").out.splitlines()
    assert only[0].split() == ["ID", "TYPE", "DUE", "ATTEMPTS", "NOTE"]
    assert [line.split()[0] for line in only[1:3]] == ["b00", "b01"]
    assert "of 30. More: add --limit 20" in only[-2]
    by_id = live.ok("task", "list", "--id", "b1", "--json", "--newest-first").json["tasks"]
    assert [row["id"] for row in by_id] == [f"b1{n}" for n in reversed(range(10))]
    assert live.ok("task", "list", "--state", "dead").out == "No tasks match (searched 0).\n"


def test_a_running_task_is_shown_and_cancelled(live: Live) -> None:
    server = live.serve()
    [id] = live.enqueue(Task("hold", id="h", retention=60))
    wait_until(lambda: live.began == ["h"])
    wait_until(lambda: "30%" in live.ok("task", "list", "-s", "active").out)
    assert "Running for " in live.ok("task", "explain", id).out
    assert f"server         {server.id}" in live.ok("task", "show", id).out
    assert ", in hold\n" in live.ok("task", "show", id, "--stack").out
    assert "no task none" in live.refused("task", "show", "none", "--stack").lower()
    assert "it is running: cancel it first" in live.refused("task", "delete", id, "--yes")
    cancelled = live.ok("task", "cancel", id).out
    assert cancelled == f"h: request sent to server {server.id}\n"
    live.reaches(id, "cancelled")
    assert "cancelled" in live.ok("task", "show", id).out
    assert live.ok("task", "delete", id, "--yes").out == "h: deleted\n"
    assert live.state(id) is None


def test_new_task_has_the_priority_and_duplicate_options(live: Live) -> None:
    key = ["--unique-key", "doc", "--on-duplicate"]
    live.ok("task", "enqueue", "note", "--id", "n")
    live.ok("task", "enqueue", "note", "--id", "a", "--priority", "8", *key, "replace")
    assert live.ok("task", "enqueue", "note", *key, "skip").out == "a in queue default\n"
    assert "the unique lock is held by task 'a'" in live.refused(
        "task", "enqueue", "note", *key[:2]
    )
    listed = live.ok("task", "list", "--state", "pending").out.splitlines()
    assert [line.split()[0] for line in listed[1:3]] == ["a", "n"]
    assert "priority 8" in listed[1]
    debounced = ["--unique-key", "doc", "--debounce", "5m", "--debounce-max", "1h"]
    assert live.ok("task", "enqueue", "note", *debounced).out == "a in queue default\n"
    shown = live.ok("task", "show", "a").out
    assert "5 min after the last call, at most 1 h" in shown
    for wrong, error in (
        (["--priority", "0"], "priority: 0 is not a whole number from 1 to 9"),
        (["--debounce", "5s"], "debounce: 5.0 needs a unique_key"),
        ([*key, "drop"], "on_duplicate: 'drop' is not one of"),
    ):
        assert error in live.refused("task", "enqueue", "note", *wrong, code=2)


def test_a_waiting_task_is_rescheduled(live: Live) -> None:
    live.enqueue(Task("note", id="a", delay=60), Task("note", id="p"))
    assert live.ok("task", "reschedule", "a", "--at", "2100-01-01T00:00+00:00").out.startswith(
        "a: due 2100-01-01 "
    )
    moved = live.ok("task", "reschedule", "a", "--delay", "15m", "--json").json
    assert (moved[0]["outcome"], moved[0]["state"]) == ("done", "scheduled")
    assert "the task is pending; only scheduled" in live.refused(
        "task", "reschedule", "p", "--delay", "1s"
    )
    live.enqueue(Task("note", id="d", delay=60, deadline=datetime(2090, 1, 1, tzinfo=UTC)))
    for dry in ([], ["--dry-run"]):
        assert "not before its deadline, 2090-01-01" in live.refused(
            "task", "reschedule", "d", "--at", "2100-01-01T00:00", *dry
        )
    for wrong in ([], ["--delay", "1s", "--at", "2100-01-01T00:00"]):
        assert "either --delay or --at" in live.refused("task", "reschedule", "a", *wrong, code=2)
    wrong = live.run("task", "reschedule", "a", "--at", "soon")
    assert wrong.code == 2
    assert "'soon' is not a time" in wrong.err


def test_a_payload_is_edited_and_a_task_copied(live: Live) -> None:
    [id] = live.enqueue(Task("t", {"n": 1, "gone": 2}, delay=60))
    edit = ["task", "edit", id, "--json", '{"n": 2, "more": 3}']
    assert live.ok(*edit, "--dry-run").out == f"- gone\n+ more\n~ n\n{id}: would be edited\n"
    assert live.ok("task", "show", id, "--raw").out.count("gone") == 1
    assert live.ok(*edit, "--delay", "30s").out == f"{id}: edited\n"
    assert live.ok(*edit, "--retry").out == f"{id}: edited and pending now\n"
    assert f"too late: task {id} is pending" in live.refused(*edit)
    copied = live.ok("task", "edit", id, "--copy", "--into", "other").out
    copy = copied.split()[3]
    assert copied == f"{id}: copied to {copy} in queue other\n"
    assert live.ok("task", "show", copy, "--json").json["headers"] == {
        "qsync-copy-of": f"default/{id}"
    }
    for words, said in (
        ([id], "pass the new payload with --json, or use --copy"),
        ([id, "--json", "{}", "--retry", "--copy"], "cannot be used together"),
        ([id, "--json", "{}", "--into", "x"], "--into needs --copy"),
        ([id, "--json", "{'n': 1}"], "not JSON"),
    ):
        assert said in live.refused("task", "edit", *words, code=2)


def test_waiting_tasks_are_listed(live: Live) -> None:
    live.enqueue(Task("note", id="a"), Task("note", id="b"), Task("note", id="c", delay=600))
    told = live.ok("task", "explain", "b").out
    assert told.startswith("Waiting: 2nd of 2. No running server takes tasks from queue default.")
    explained = live.ok("task", "explain", "c", "--json").json
    assert (explained["reason"], explained["also"]) == ("scheduled", ["no_server"])
    assert live.ok("task", "run", "c").out == "c: pending now\n"
    assert "too late: task c is pending" in live.refused("task", "run", "c")
    assert live.ok("task", "cancel", "a", "b").out == "a: cancelled\nb: cancelled\n"
    both = live.run("task", "delete", "c", "nothere", "--yes", "--json")
    assert both.code == 1, "not all of them are deleted"
    assert both.json == [
        {"id": "c", "queue": "default", "outcome": "done"},
        {"id": "nothere", "queue": None, "outcome": "not_found"},
    ]
    assert "there is no task nothere in any queue" in both.err


def test_id_in_two_queues_needs_the_queue(live: Live) -> None:
    live.enqueue(Task("note", id="x"), Task("note", id="x", queue="other"))
    for words in (["show", "x"], ["explain", "x"]):
        assert "choose one with --queue" in live.refused("task", *words, code=2)
    assert (
        "queues default, other have a task with this id: choose one with --queue"
        in live.refused("task", "run", "x")
    )
    assert live.ok("task", "cancel", "x", "--queue", "other").out == "x: cancelled\n"
    assert live.ok("task", "show", "x", "--json").json["row"]["queue"] == "default"


def test_id_that_begins_with_a_dash_is_accepted_after_two_dashes(live: Live) -> None:
    """Newly generated ids never begin with a dash, but ids from older versions or chosen by users
    may."""
    dashed, other = "-hAbCdEfGhIjKlMnOpQrSt", "--json-2345678901234567"
    live.enqueue(Task("note", b"x", id=dashed), Task("note", b"x", id=other))
    assert live.ok("task", "show", "--json", "--", dashed).json["row"]["id"] == dashed
    listed = live.ok("task", "list", f"--id={dashed}", "--json").json["tasks"]
    assert [row["id"] for row in listed] == [dashed]
    assert live.ok("task", "cancel", "--queue", "default", "--", dashed, other).out == (
        f"{dashed}: cancelled\n{other}: cancelled\n"
    )


def test_payload_is_shown(live: Live) -> None:
    live.enqueue(
        Task("note", {"to": "ann", "n": [1, 2]}, id="value"),
        Task("note", bytes(range(256)), id="bytes"),
        Task("note", ("line\n" * 500).encode(), id="long"),
    )
    shown = live.ok("task", "show", "value").out
    assert "\npayload (value, " in shown
    assert ' B)\n  {\n    "to": "ann",\n    "n": [\n' in shown
    assert "000000  00 01 02" in live.ok("task", "show", "bytes").out
    found = live.ok("task", "show", "bytes", "--json").json
    assert base64.b64decode(found["payload"]) == bytes(range(256))
    long = live.ok("task", "show", "long").out
    assert long.count("  line\n") == 100
    assert "... cut here: --raw prints all of it" in long
    assert live.ok("task", "show", "long", "--raw").out == "line\n" * 500
    assert "--raw and --json cannot be used together" in live.refused(
        "task", "show", "a", "--raw", "--json", code=2
    )


def test_more_dead_tasks_than_one_batch_are_changed(live: Live) -> None:

    async def die() -> None:
        async with bed(live.url, live.prefix) as made:
            await made.dead(*(Task("note", id=f"t{n}") for n in range(1100)), queue="other")

    live.do(die())
    assert live.ok("dead", "run", "--all", "--json").json == {
        "scanned": 1100, "done": 1100, "duplicate": 0, "too_late": 0,
    }  # fmt: skip
    assert live.ok("queue", "purge", "other", "--state", "pending", "--yes").out == (
        "1,100 pending tasks of queue other deleted\n"
    )
