"""Commands take the store and the prefix from an app, enqueue a task, or list prefixes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsync import Qsync, Task, TaskInfo
from qsync.keys import GlobalKeys
from tests.support.cli import Live, living, qsync
from tests.support.stores import Store, wait_until

SHOP = """
from qsync import Mux, Qsync

mux = Mux()
app = Qsync({url!r}, prefix={prefix!r}, mux=mux)


@app.task("send", queue="lower", retry=7)
async def send(invoice: int, *, copy: bool = False) -> None: ...


@mux.handle("raw")
async def raw(task) -> None: ...
"""


@pytest.fixture
def shop(
    valkey: Store, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Yield the `MODULE:APP` argument for an app in the working directory."""
    name = f"shop_{prefix.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SHOP.format(url=valkey.url, prefix=prefix))
    monkeypatch.chdir(tmp_path)
    yield f"{name}:app"
    sys.modules.pop(name, None)
    sys.path.remove(str(tmp_path))


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as made:
        yield made


COMMANDS = [
    ["stats"], ["queue", "list"], ["task", "list"], ["task", "show", "a"], ["dead", "list"],
    ["servers", "list"], ["schedule", "list"], ["top", "--once"], ["doctor"],
    ["task", "cancel", "a"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_store_and_prefix_from_the_app(
    live: Live, shop: str, words: list[str]
) -> None:
    live.enqueue(Task("send", id="a", delay=600))
    away = {"QSYNC_URL": "redis://127.0.0.1:1", "QSYNC_PREFIX": "other"}
    for env in ({}, away, {**away, "QSYNC_APP": shop}):
        given = [] if "QSYNC_APP" in env else ["--app", shop]
        ran = qsync(*words, *given, env=env)
        if words == ["task", "cancel", "a"] and env:
            assert ran.code == 1  # an earlier call has cancelled the task
            assert "no task a in any queue" in ran.err or "not there" in ran.err + ran.out
            continue
        if words == ["doctor"]:  # the doctor checks the app's store
            assert "Valkey" in ran.out
        else:
            assert ran.code == 0, ran.err


def test_options_override_the_app(live: Live, shop: str, valkey: Store) -> None:
    live.enqueue(Task("send", id="a", delay=600))
    assert qsync("task", "show", "a", "--app", shop, "--prefix", "other").code == 1
    ran = qsync("stats", "--app", shop, "--url", "redis://127.0.0.1:1")
    assert ran.code == 3
    assert qsync("task", "show", "a", "--app", shop, "--url", valkey.url).code == 0


@pytest.mark.parametrize(
    ("target", "part"),
    [("nope:app", "module 'nope' was not found"), ("json:dumps", "needs arguments"),
     ("json", "MODULE:APP")],
)  # fmt: skip
def test_app_that_cannot_be_loaded_is_reported_in_one_line(target: str, part: str) -> None:
    ran = qsync("stats", "--app", target)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert part in ran.err
    assert f"--app {target}" in ran.err


def test_acl_and_dashboard_use_the_app(shop: str, prefix: str) -> None:
    assert f"~{{{prefix}:*}}:*" in qsync("acl", "client", "--app", shop).out
    ran = qsync("dashboard", "--app", shop, "--host", "0.0.0.0")  # noqa: S104 - it is refused
    assert "QSYNC_DASHBOARD_TOKEN" in ran.err


def test_task_is_enqueued_from_json(live: Live) -> None:
    ran = live.ok("task", "enqueue", "send", "--json", '{"invoice": 7, "to": ["ann"]}', "--id", "a")
    assert ran.out == "a in queue default\n"
    shown = live.ok("task", "show", "a", "--json").json
    assert json.loads(shown["shown"]["text"]) == {"invoice": 7, "to": ["ann"]}
    refused = live.refused("task", "enqueue", "send", "--id", "a")
    assert "already has this id" in refused
    assert "`qsync task show a --queue default`" in refused
    live.ok("task", "enqueue", "send", "--id", "b", "--queue", "lower", "--delay", "10m")
    [row] = live.ok("task", "list", "--state", "scheduled", "--json").json["tasks"]
    assert (row["id"], row["queue"]) == ("b", "lower")
    live.ok("task", "enqueue", "send", "--id", "c", "--json", "[1, 2]")
    assert live.ok("task", "show", "c", "--raw").out.encode(errors="surrogateescape")


def test_enqueued_task_runs_as_if_its_function_had_enqueued_it(live: Live) -> None:
    got: list[object] = []

    async def send(task: TaskInfo, invoice: int, *, copy: bool = False) -> None:
        got.append((invoice, copy))

    live.app.task("send")(send)
    live.serve()
    live.ok("task", "enqueue", "send", "--json", '{"invoice": 7, "copy": true}')
    wait_until(lambda: got == [(7, True)])


def test_app_checks_arguments_and_applies_its_options(live: Live, shop: str) -> None:
    ran = live.ok("task", "enqueue", "send", "--json", "[7]", "--app", shop, "--id", "a")
    assert ran.out == "a in queue lower\n"
    [row] = live.ok("task", "list", "--json").json["tasks"]
    assert row["retry"] == 7
    live.ok("task", "enqueue", "raw", "--json", "1", "--app", shop)
    for words, part in (
        (["send", "--json", '{"invoce": 7}'], "invoice"),
        (["sned", "--json", "{}"], "did you mean send?"),
        (["send", "--json", "3"], "its arguments as an object or as a list"),
        (["send"], "invoice"),
    ):
        assert part in live.refused("task", "enqueue", *words, "--app", shop, code=2)


@pytest.mark.parametrize("text", ["{invoice: 7}", "{'invoice': 7}", "", "7 8", "[" * 100_000])
def test_invalid_json_is_refused(live: Live, text: str) -> None:
    said = live.refused("task", "enqueue", "send", "--json", text, code=2)
    assert "--json: not JSON" in said
    assert ("need double quotes: '{\"customer\": 7}'" in said) == text.startswith("{")


def test_missing_queue_error_names_existing_prefixes(valkey: Store, prefix: str) -> None:
    with valkey.client() as client:
        client.sadd(GlobalKeys(f"{prefix}-shop").queues, "default")
        client.sadd("not a prefix:queues", "default")
    with Qsync(valkey.url, prefix=f"{prefix}-mail") as app, app.client() as client:
        client.enqueue(Task("t"))
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix}
    for words in (["queue", "list"], ["stats"]):
        said = qsync(*words, env=env).out
        assert "There is no queue yet." in said
        assert f"{prefix}-shop" in said
        assert "not a prefix" not in said
    lists = ("task list", "dead list", "errors list", "schedule list", "server list", "events")
    for command in lists:
        ran = qsync(*command.split(), env=env)
        assert ran.code == 0, ran.err
        assert "There is no queue yet." in ran.err
        assert f"{prefix}-shop" in ran.err
    assert qsync("dead", "list", "--json", env=env).out.startswith(("[", "{"))
    for words in (["task", "list", "-q", "x"], ["queue", "pause", "x"], ["task", "show", "a"]):
        ran = qsync(*words, env=env)
        assert ran.code == 1
        assert f"{prefix}-shop" in ran.err


def test_purge_offers_only_valid_states(live: Live) -> None:
    live.enqueue(Task("t", id="a"))
    for words in ([], ["--state", "nope"], ["--state", "active"]):
        ran = live.run("queue", "purge", "default", *words)
        assert ran.code == 2
        said = " ".join(ran.err.replace("--state active", "").split())
        assert "pending, limited, scheduled, retry, completed, dead" in said
        assert "active" not in said.replace("'--state'", "")
    assert "deleted" in live.ok("queue", "purge", "default", "-s", "pending", "--yes").out


PASSWORD = "s3cr3tX"
MISPLACED = [
    ["dashboard", "--also", "{}"], ["dashboard", "--also", "eu={}"],
    ["dashboard", "--also", "eu=shop@{}"], ["dashboard", "--mask", "{}"],
    ["dashboard", "--host", "{}"], ["dashboard", "--trust-proxy", "{}"],
    ["dashboard", "--trace-url", "{}"], ["stats", "--app", "{}"],
    ["acl", "server", "--prefix", "{}"],
    ["worker", "{}"], ["worker", "tests.support.app:app", "--queues", "{}"],
]  # fmt: skip


@pytest.mark.parametrize("words", MISPLACED, ids=" ".join)
def test_url_in_place_of_another_option_hides_the_password(words: list[str]) -> None:
    env = {"QSYNC_URL": "redis://127.0.0.1:1", "PYTHONPATH": "."}
    for url in ("redis://u:{}@h:port", "u:{}@h", "redis:u:{}@h", "redis//u:{}@h"):
        is_url = "://" in url
        if is_url or words[1] in ("--also", "--mask", "--app", "{}"):
            placed = [word.format(url.format(PASSWORD)) for word in words]
            ran = qsync(*placed, env=env)
            assert ran.code == 2, ran.err
            assert PASSWORD not in ran.err, ran.err
