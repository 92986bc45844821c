"""Lists support several formats, --watch and --sort, and commands can change all matching tasks."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import StoreUnavailable, Task
from qsync.cli.listing import OutputOptions
from tests.support.cli import Live, living
from tests.support.incidents import REFUSED
from tests.support.inspector_driver import bed
from tests.support.stores import Store, wait_until
from tools.cli_reference import commands


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as live:
        yield live


def test_a_list_of_tasks_has_five_formats(live: Live) -> None:
    ids = live.enqueue(*[Task("note", id=f"{n}") for n in range(3)])
    document = live.ok("task", "list", "-o", "json").json
    assert document == live.ok("task", "list", "--json").json
    lines = live.ok("task", "list", "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == document["tasks"]
    rows = list(csv.DictReader(io.StringIO(live.ok("task", "list", "-o", "csv").out)))
    assert [row["id"] for row in rows] == ids
    assert {(row["type"], row["state"], row["attempts"]) for row in rows} == {
        ("note", "pending", "0")
    }
    wide = live.ok("task", "list", "-o", "wide").out.splitlines()
    assert wide[0].split() == live.ok("task", "list").out.splitlines()[0].split()
    assert len(wide) == 4
    assert "cannot be used together" in live.refused("task", "list", "--json", "-o", "csv", code=2)


def test_wrong_arguments_exit_with_one_line(live: Live) -> None:
    live.enqueue(Task("note"))
    for words, told in (
        (["nosuch"], "qsync: No such command 'nosuch'; see qsync --help"),
        (["resume", "x"], "qsync: No command 'resume'. Did you mean `qsync queue resume`"),
        (["task", "nosuch"], "qsync task: No such command 'nosuch'; see qsync task --help"),
        (["task", "list", "--stat", "dead"], "qsync task list: No such option: --stat"),
        (["task", "show"], "qsync task show: Missing argument 'ID'; see qsync task show --help"),
        (["task", "list", "-n", "0"], "qsync task list: Invalid value for '--limit' / '-n': 0 "),
        (["events", "-n", "x"], "'--limit' / '-n': 'x' is not a "),
        (
            ["task", "list", "--watch", "1e15"],
            "Invalid value for '--watch' / '-w': 1",
        ),
        (
            ["top", "--interval", "nan"],
            "Invalid value for '--interval' / '-i': nan is not",
        ),
        (["top", "--interval", "inf"], "qsync top: Invalid value for '--interval'"),
        (
            ["task", "list", "--queue"],
            "qsync task list: Option '--queue' requires an argument; see",
        ),
        (["stats", "--json=1"], "qsync stats: Option '--json' does not take a value; see qsync st"),
        (["acl"], "'ROLE'. Choose from: client, server, reader, admin; see qsync acl --help"),
        (["acl", "x"], "'ROLE': 'x' is not one of 'client', 'server', 'reader', 'admin'; see"),
        (["stats", "--sort", "x" * 5000], "qsync stats: Invalid value for '--sort'"),
        (["acl", "server", "--user", "x on nopass"], "qsync acl: --user: must be 1 to 128 of the"),
        (["dashboard", "--root-path", "ops"], "qsync dashboard: Invalid value for '--root-path'"),
        (["limit", "set", "x", "--rate", "5"], "rate: 5 needs --per, e.g. --per 1 for a second"),
        (["limit", "set", "x"], "limit x: pass --rate and --per, or --concurrency, or all three"),
    ):
        line = live.refused(*words, code=2)
        assert told in line, words
        assert not any(text in line for text in ("Input should", "Value error", r"\n")), line
        assert len(line) < 2100
    assert live.ok("events", "--since", "9" * 400).out.startswith("No recorded actions")
    assert live.run("task").err.startswith("Usage: qsync task "), "without a command: the help"


def test_help_names_arguments_without_types_of_python() -> None:
    for path, command in commands():
        usage, _, text = help_of(path, command).partition("\n")
        assert not re.search(r"[{<]", usage), usage
        arguments = text.partition("\nArguments:\n")[2].partition("\n\n")[0]
        assert "<" not in arguments, arguments
    assert "task retry [OPTIONS] [ID...]" in help_of(
        "qsync task retry", dict(commands())["qsync task retry"]
    )


def help_of(path: str, command: Any) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    text: str = command.get_help(context)
    return text


def test_watch_goes_on_while_the_store_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    away = StoreUnavailable("the store is not available")
    events: list[Exception | None] = [None, away, None]

    def show() -> None:
        if not events:
            raise KeyboardInterrupt
        if (event := events.pop(0)) is not None:
            raise event

    OutputOptions(watch=0.001).repeat(show)
    assert not events
    assert capsys.readouterr().err.endswith(": the store is not available; trying again\n")
    events[:] = [away]
    with pytest.raises(StoreUnavailable):  # retries begin only after a first answer
        OutputOptions(watch=0.001).repeat(show)


def test_page_of_lines_prints_the_next_cursor(live: Live) -> None:
    live.enqueue(*[Task("note")] * 3)
    for format in ("jsonl", "csv"):
        page = live.ok("task", "list", "-n", "2", "-o", format)
        cursor = page.err.removeprefix("More: --cursor ").strip()
        rest = live.ok("task", "list", "-n", "2", "-o", format, "--cursor", cursor)
        assert len(rest.out.splitlines()) == (2 if format == "csv" else 1)
        assert rest.err == ""


def test_csv_cells_contain_no_formula_and_no_control_character(live: Live) -> None:
    live.serve()
    [dead] = live.enqueue(Task("bill", b"7", retry=0))
    live.reaches(dead, "dead")
    live.enqueue(Task("=cmd()", delay=60))
    out = live.ok("task", "list", "-o", "csv").out
    rows = {row["state"]: row for row in csv.DictReader(io.StringIO(out))}
    assert rows["scheduled"]["type"] == "'=cmd()"
    assert rows["dead"]["error"].startswith("ValueError: no such customer: 7\\x1b[2J")
    assert "\x1b" not in out


def test_maps_become_csv_columns(live: Live) -> None:
    live.enqueue(Task("note"), Task("note", delay=60))
    [row] = csv.DictReader(io.StringIO(live.ok("queue", "list", "-o", "csv").out))
    assert (row["name"], row["states.pending"], row["states.scheduled"]) == ("default", "1", "1")
    [row] = csv.DictReader(io.StringIO(live.ok("stats", "-o", "csv").out))
    assert row["counters.enqueued"] == "2"


def test_empty_list_prints_no_line_in_machine_formats(live: Live) -> None:
    for words in (["task", "list"], ["queue", "list"], ["server", "list"], ["schedule", "list"]):
        for format in ("jsonl", "csv"):
            assert live.ok(*words, "-o", format).out == ""


def test_queues_are_sorted_by_a_column(live: Live) -> None:
    live.enqueue(*[Task("note", queue="b")] * 2, Task("note", queue="a", delay=60))
    live.enqueue(Task("note", queue="c"))

    def names(*words: str) -> list[str]:
        return [queue["name"] for queue in live.ok("queue", "list", "--json", *words).json]

    assert names() == ["a", "b", "c"]
    assert names("--sort", "pending") == ["b", "c", "a"]
    assert names("--sort", "scheduled") == ["a", "b", "c"]
    assert names("--sort", "TOTAL") == ["b", "a", "c"]
    unknown = live.run("queue", "list", "--sort", "size")
    assert unknown.code == 2
    assert "'size' is not one of name, total" in unknown.err


def test_watch_prints_again_until_ctrl_c(live: Live) -> None:
    live.enqueue(Task("note"))
    command = [sys.executable, "-m", "qsync", "queue", "list", "--watch", "0.1", "-o", "jsonl"]
    store = ["--url", live.url, "--prefix", live.prefix]
    with subprocess.Popen(
        [*command, *store], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        live.enqueue(Task("note"))
        for line in watching.stdout:
            if json.loads(line)["states"]["pending"] == 2:
                break
        os.kill(watching.pid, signal.SIGINT)
        _, complaint = watching.communicate(timeout=20)
    assert json.loads(first)["states"]["pending"] in (1, 2)
    assert (watching.returncode, complaint) == (0, "")


def test_tasks_of_a_state_are_changed_by_filter(live: Live) -> None:
    live.enqueue(*[Task("mail", delay=60)] * 3, *[Task("note", delay=60)] * 2, Task("note"))
    for words, said in (
        (["retry", "--dry-run"], "3 of 5 scheduled tasks would be pending now\n"),
        (["cancel", "--dry-run"], "3 of 5 scheduled tasks would be cancelled\n"),
        (["delete", "--dry-run"], "3 of 5 scheduled tasks would be deleted\n"),
        (["delete", "--yes"], "3 of 5 scheduled tasks deleted\n"),
        (["retry"], "0 of 2 scheduled tasks pending now\n"),
    ):
        assert live.ok("task", *words, "--state", "scheduled", "--type", "mail").out == said
    cancelled = live.ok("task", "cancel", "--state", "scheduled", "--all", "--yes")
    assert cancelled.out == "2 of 2 scheduled tasks cancelled\n"
    assert [row["state"] for row in live.ok("task", "list", "--json").json["tasks"]] == ["pending"]
    # Without a terminal there is no confirmation, so nothing is deleted.
    live.refused("task", "delete", "--state", "pending", "--all", code=2)
    assert live.ok("task", "delete", "--state", "pending", "--all", "--yes").out == (
        "1 of 1 pending tasks deleted\n"
    )


def test_tasks_are_selected_by_the_search_of_the_dashboard(live: Live) -> None:
    live.enqueue(
        *[Task("mail", {"customer": name}, delay=60) for name in ("acme", "acme", "zen")],
        Task("note"), Task("note", queue="other"),
    )  # fmt: skip

    def listed(*words: str) -> list[str]:
        rows = live.ok("task", "list", *words, "--json").json["tasks"]
        return sorted(f"{row['queue']}/{row['type']}/{row['state']}" for row in rows)

    assert listed("args.customer:acme age:<1h") == ["default/mail/scheduled"] * 2
    assert listed("--query", "state:pending") == ["default/note/pending", "other/note/pending"]
    assert listed("queue:other") == listed("note", "--queue", "other") == ["other/note/pending"]
    all_acme = ["--query", "args.customer:acme state:scheduled"]
    for words, said in (
        (["retry", "--dry-run"], "2 of 3 scheduled tasks would be pending now\n"),
        (["delete", "--yes"], "2 of 3 scheduled tasks deleted\n"),
    ):
        assert live.ok("task", *words, *all_acme).out == said
    for words, said in (
        (["list", "age:1h"], "Search term “age:1h”. Write age:>1h"),
        (["list", "type:a", "--type", "b"], "the query and --type cannot be used together"),
        (["list", "queue:a", "--queue", "b"], "--queue b and queue:a cannot be used together"),
        (["list", "queue:a*"], "the query may name only one queue, without wildcards"),
        (["list", "a", "--query", "b"], "either as an argument or with --query"),
        (["list", "state:dead", "--state", "retry"], "cannot be used together"),
        (["retry", "--query", "state:dead,retry x"], "pass one state"),
        (["retry", "--query", "state:dead"], "no filter is given"),
        (["retry", "x", "--query", "state:dead"], "cannot be used together"),
    ):
        assert said in live.refused("task", *words, code=2)
    assert "states other than dead" in live.refused(
        "dead", "list", "--query", "state:retry", code=2
    )


def test_a_dry_run_of_ids_changes_nothing(live: Live) -> None:
    [waits, due] = live.enqueue(Task("note", delay=60), Task("note"))
    assert live.ok("task", "retry", waits, "--dry-run").out == f"{waits}: would be pending now\n"
    assert live.ok("task", "delete", due, "--dry-run").out == f"{due}: would be deleted\n"
    assert f"too late: task {due} is pending" in live.refused("task", "retry", due, "--dry-run")
    assert live.refused("task", "cancel", "nobody", "--dry-run")
    assert (live.state(waits), live.state(due)) == ("scheduled", "pending")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry"], "pass ids, or --state with filters or --all"),
        (["retry", "--state", "active", "--all"], "use dead, scheduled or retry"),
        (["retry", "--state", "dead"], "no filter is given"),
        (["retry", "--state", "dead", "--all", "--type", "x"], "cannot be used together"),
        (["retry", "x", "--state", "dead"], "cannot be used together"),
        (["delete", "--state", "active", "--all"], "such tasks cannot be deleted"),
        (["cancel", "--state", "dead", "--all"], "such tasks cannot be cancelled"),
    ],
)
def test_bulk_change_without_a_selection_is_refused(
    live: Live, words: list[str], said: str
) -> None:
    assert said in live.refused("task", *words, code=2)


def test_nouns_have_plural_aliases_and_retry_has_its_old_name(live: Live) -> None:
    [id] = live.enqueue(Task("note", delay=60))
    assert live.ok("tasks", "list").out
    assert live.ok("queues", "list").out
    assert live.ok("servers").out == live.ok("server", "list").out
    assert live.ok("schedules", "list").out
    assert live.ok("task", "run", id).out == f"{id}: pending now\n"
    assert live.ok("dead", "run", "--all").out == "0 of 0 dead tasks re-queued\n"


def test_lists_of_errors_schedules_limits_and_keys_are_sorted(live: Live) -> None:
    async def fail() -> None:
        async with bed(live.url, live.prefix) as made:
            await made.dead(*[Task("mail")] * 2, error=REFUSED, queue="slow")
            await made.dead(Task("bill"), error=REFUSED, queue="slow")

    live.do(fail())
    for sort, types in (("tasks", "mail bill"), ("type", "bill mail"), ("LAST", "bill mail")):
        listed = live.ok("errors", "--sort", sort, "-o", "jsonl").out.splitlines()
        assert [json.loads(line)["type"] for line in listed] == types.split(), sort
    assert "'x' is not one of tasks" in live.refused("errors", "list", "--sort", "x", code=2)

    live.ok("schedule", "put", "a", "note", "--cron", "0 3 1 1 *", "--queue", "b")
    live.ok("schedule", "put", "b", "note", "--every", "1h", "--queue", "a")
    for sort, names in (("name", "ab"), ("queue", "ba"), ("next", "ba"), ("last", "ab")):
        listed = live.ok("schedule", "list", "--sort", sort, "--json").json
        assert "".join(info["name"] for info in listed) == names, sort

    live.enqueue(*[Task("note", fairness_key=key) for key in ["b", "b", "a"]])
    live.ok("fairness", "set", "c", "--weight", "2")
    for sort, keys in (("pending", "bac"), ("key", "abc"), ("weight", "cba")):
        listed = live.ok("fairness", "list", "--sort", sort, "-o", "csv").out.splitlines()
        assert listed[0] == "key,pending,weight"
        assert "".join(line[0] for line in listed[1:]) == keys, sort

    for name, slots in (("x", "1"), ("y", "5")):
        live.ok("limit", "set", name, "--concurrency", slots, "--queue", "default")
    held = live.enqueue(*[Task("hold", limits=["y"]) for _ in range(2)], Task("hold", limits=["x"]))
    live.serve()
    wait_until(lambda: set(held) <= set(live.began))
    for sort, names in (("name", "xy"), ("used", "yx"), ("waiting", "xy")):
        listed = live.ok("limit", "list", "--sort", sort, "--json").json["limits"]
        assert "".join(info["limit"] for info in listed) == names, sort
    for id in held:
        live.ok("task", "cancel", id)
    assert live.ok("event", "--json").json == live.ok("events", "--json").json


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_times_count_from_the_clock_of_the_store(
    live: Live, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """The clock of this machine is an hour off, but every "... ago" and "in ..." is correct."""
    [waits, running] = live.enqueue(Task("note", delay=600), Task("hold"))
    live.serve()
    wait_until(lambda: live.began == [running])
    live.ok("queue", "pause", "default")
    live.ok("schedule", "put", "s", "note", "--every", "1m", "--queue", "default")
    live.ok("schedule", "trigger", "s")
    exact = time.time
    monkeypatch.setattr(time, "time", lambda: exact() + ahead_s)
    for words in (
        "task list", f"task show {waits}", f"task show {running}", "queue list", "schedule list",
        "schedule show s", "stats", "server list --tasks", "errors",
    ):  # fmt: skip
        said = live.ok(*words.split()).out
        for number, unit in re.findall(r"\bin (\d+) (min|h|d)\b", said):
            assert unit == "min", (words, said)
            assert int(number) <= 10, (words, said)
        assert not re.search(r"\d (min|h|d)[ \w]* ago", said), (words, said)
    assert re.search("in (9|10) min", live.ok("task", "list").out)
    assert len(live.ok("events", "--since", "30s", "--json").json) == 3
    live.ok("task", "cancel", running)


def test_tasks_events_and_runs_are_sorted_by_a_column(live: Live) -> None:
    async def fail() -> None:
        async with bed(live.url, live.prefix) as made:
            await made.dead(Task("b", id="dead", priority=7), error=REFUSED, queue="mail")

    for task in (
        Task("c", id="old"), Task("a", id="later", delay=600, queue="mail"),
        Task("a", id="soon", delay=60), Task("z", b"x" * 900, id="big"),
    ):  # fmt: skip
        live.enqueue(task)
    live.do(fail())
    orders = {
        "age": "old later soon big dead", "due": "soon later", "ended": "dead",
        "type": "later soon dead old big",
        "queue": "big old soon dead later", "attempts": "dead", "priority": "dead", "size": "big",
    }  # fmt: skip
    for sort, ids in orders.items():
        rows = live.ok("task", "list", "--sort", sort, "--json").json["tasks"]
        assert len(rows) == 5
        found = [row["id"] for row in rows]
        assert found[: len(ids.split())] == ids.split(), sort
    page = live.ok("task", "list", "type:a", "--sort", "due", "-n", "1", "--json").json
    assert ([row["id"] for row in page["tasks"]], page["cursor"]) == (["soon"], None)
    assert live.ok("dead", "list", "--sort", "age", "-o", "jsonl").out.count("\n") == 1
    assert "cannot be used together" in live.refused(
        "task", "list", "--sort", "age", "--cursor", "x", code=2
    )
    assert "not one of age" in live.refused("task", "list", "--sort", "x", code=2)

    live.ok("queue", "pause", "mail", "--by", "zoe")
    live.ok("task", "retry", "later", "soon")
    events = {
        sort: [event["action"] for event in live.ok("events", "--sort", sort, "--json").json]
        for sort in ("time", "number", "by", "action")
    }
    assert events["time"][0] == events["number"][0] == "task.retry"
    assert events["by"][-1] == events["action"][0] == "queue.pause"
    live.ok("schedule", "put", "s", "note", "--every", "1h", "--queue", "mail")
    live.ok("schedule", "trigger", "s")
    for sort in ("tick", "duration", "outcome"):
        assert len(live.ok("schedule", "history", "s", "--sort", sort, "--json").json) == 1


def test_dry_runs_of_settings_change_nothing(live: Live) -> None:
    """For queues, types, limits, schedules and servers, each command prints what would change, or
    refuses."""
    [running] = live.enqueue(Task("hold"))
    server = live.serve().id
    wait_until(lambda: live.began == [running])
    live.ok("schedule", "put", "s", "note", "--every", "1h", "--queue", "default")
    live.ok("limit", "set", "x", "--concurrency", "3", "--by", "ann")
    live.ok("fairness", "set", "acme", "--weight", "2")

    def settings() -> list[Any]:
        """Return the output of commands, without the fields that change over time."""
        queue, schedules, *others = (live.ok(*words.split(), "--json").json for words in (
            "queue show default", "schedule list", "limit list", "fairness list", "events",
        ))  # fmt: skip
        del queue["bytes"]
        for row in schedules:
            del row["next_at"]
        return [queue, schedules, *others]

    before = settings()

    def says(words: str, *texts: str) -> None:
        said = live.ok(*words.split(), "--dry-run").out
        assert all(text in said for text in texts), (words, said)

    says("queue pause default", "default: would be paused")
    assert "not paused" in live.refused("queue", "resume", "default", "--dry-run")
    assert "no queue nope" in live.refused("queue", "pause", "nope", "--dry-run")
    says("type pause hold", "hold: would be paused in queue default")
    assert "not paused" in live.refused("type", "resume", "hold", "--dry-run")
    says("limit set x --concurrency 9", "x: would be", "9", "now:", "3")
    says("limit reset x", "x: would be unlimited; now:")
    assert "no operator" in live.refused("limit", "reset", "y", "--dry-run")
    assert "is not closed" in live.refused("limit", "open", "x", "--dry-run")
    says("fairness set acme --weight 5", "acme: would have weight 5")
    says("fairness reset acme", "acme: would have weight 1")
    assert "already has the weight 1" in live.refused("fairness", "reset", "b", "--dry-run")
    assert live.refused("fairness", "set", "b", "--weight", "-1", "--dry-run", code=2)
    says("queue set default --max-tasks 5 --latency-target 9s", "would have 5", "target 9 s")
    assert "no operator" in live.refused("queue", "reset", "default", "--dry-run")
    says("schedule put s note --every 2h", "would run next in", "would replace every 1 h")
    says("schedule pause s", "s: would be paused")
    assert "not paused" in live.refused("schedule", "resume", "s", "--dry-run")
    says("schedule trigger s", "its task would be enqueued")
    says("schedule delete s", "s: would be deleted")
    says(f"server quiet {server}", "would be drained")
    says(f"server stop {server}", "would be stopped")
    assert "there is no running server" in live.refused("server", "stop", "nope", "--dry-run")
    says("errors acknowledge default", "0 dead tasks of queue default would be acknowledged")
    assert settings() == before
    for words in ("queue pause default", "type pause hold", "schedule pause s"):
        live.ok(*words.split())
    says("queue resume default", "default: would be resumed")
    says("type resume hold", "hold: would be resumed in queue default; 0 tasks set aside")
    says("schedule resume s", "s: would be resumed")
    live.ok("task", "cancel", running)


def test_every_command_that_changes_something_has_a_dry_run() -> None:
    """The test leaves out commands that start a long-running program."""
    changing = {
        name: command for name, command in commands()
        if name.split()[-1] in {
            "pause", "resume", "open", "set", "reset", "put", "trigger", "delete", "purge", "quiet",
            "stop", "retry", "cancel", "edit", "enqueue", "reschedule", "acknowledge", "backfill",
        }
    }  # fmt: skip
    assert len(changing) > 25
    without = [
        name for name, command in changing.items() if "--dry-run" not in help_of(name, command)
    ]
    assert without == []


def test_dry_runs_change_nothing(live: Live) -> None:
    [id] = live.enqueue(Task("note", delay=3600, queue="mail"))
    before = live.ok("task", "show", id, "--json").json
    said = live.ok("task", "enqueue", "note", "--queue", "mail", "--dry-run").out
    assert said == "would enqueue a task of type note in queue mail\n"
    said = live.ok("task", "reschedule", id, "--delay", "5s", "--dry-run").out
    assert "would be due" in said
    said = live.refused("queue", "delete", "mail", "--dry-run")
    assert "mail would not be deleted: it holds 1 task; --force also deletes them" in said
    said = live.ok("queue", "delete", "mail", "--force", "--dry-run").out
    assert said == "mail: would be deleted, with 1 task\n"
    said = live.ok("queue", "delete", "mail", "--force", "--dry-run", "--json").json
    assert said == {"queue": "mail", "tasks": 1, "would_be_deleted": True, "why": ""}
    assert live.ok("task", "show", id, "--json").json == before
    assert live.ok("queue", "show", "mail", "--json").json["states"]["scheduled"] == 1
    live.ok("task", "retry", id)
    said = live.refused("task", "reschedule", id, "--delay", "5s", "--dry-run")
    assert "the task is pending; only scheduled and retried tasks can be rescheduled" in said
