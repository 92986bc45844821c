"""What the log and `on_error` say about a failed attempt: its details, and whether it is final."""

from __future__ import annotations

import asyncio
import inspect
import logging
from datetime import UTC, datetime, timedelta
from json import dumps
from typing import Any

import pytest

from qsync import ConfigError, Mux, Qsync, Retry, SkipRetry, Task, TaskInfo
from qsync.contrib.prometheus import render, server_metrics
from qsync.server.error_text import program_trace
from qsync.server.run_metrics import RunMetrics
from qsync.web import create_app
from qsync.worker import logs
from tests.support.dashboard import visiting
from tests.support.server import bench, until
from tests.support.stores import Store, wait_until_async

OWN = "raise ValueError(f"


def fail_in_a_library() -> None:
    dumps({1: object()})


def mux() -> Mux:
    mux = Mux()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError(f"boom\n2026-01-01 ERROR fake \x1b[2J {'x' * 5000}")

    @mux.handle("thread")
    def thread(task: TaskInfo) -> None:
        fail_in_a_library()

    @mux.handle("poll")
    async def poll(task: TaskInfo) -> None:
        raise Retry("not there yet", delay=0)

    @mux.handle("caused")
    async def caused(task: TaskInfo) -> None:
        try:
            raise LookupError("no such order")
        except LookupError as error:
            raise Retry(delay=0.05) from error

    @mux.handle("skip")
    async def skip(task: TaskInfo) -> None:
        raise SkipRetry("no such customer")

    return mux


def mux_of(type: str) -> Mux:
    mux = Mux()

    @mux.handle(type)
    async def nothing(task: TaskInfo) -> None: ...

    return mux


class Told:
    """Records the calls of a server's `on_error`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int, bool]] = []

    async def on_error(self, error: BaseException, task: TaskInfo) -> None:
        self.calls.append((task.type, type(error).__name__, task.attempt, task.final))


def about(caplog: pytest.LogCaptureFixture, type: str) -> list[logging.LogRecord]:
    return [one for one in caplog.records if getattr(one, "task_type", None) == type]


def run(
    url: str, prefix: str, caplog: pytest.LogCaptureFixture, task: Task, **config: Any
) -> tuple[Told, list[logging.LogRecord]]:
    """Run a task until it is dead; return what `on_error` received, and the log records."""
    told = Told()

    async def main() -> None:
        async with bench(url, prefix) as b, b.server(mux(), on_error=told.on_error, **config):
            handle = await b.client.enqueue(task)
            await b.reaches(handle.id, "dead")

    with caplog.at_level(logging.INFO, logger="qsync.server"):
        asyncio.run(main())
    return told, about(caplog, task.type)


def test_failed_attempts_are_warnings_and_the_death_is_an_error(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("bad", b"", retry=2, retry_delay=0)
    told, records = run(valkey.url, prefix, caplog, task)
    assert [one.levelname for one in records] == ["WARNING", "WARNING", "ERROR"]
    assert [vars(one)["final"] for one in records] == [False, False, True]
    assert "failed, attempt 1 of 3, next immediately: ValueError: boom" in records[0].getMessage()
    assert "is dead: failed, attempt 3 of 3: ValueError: boom" in records[2].getMessage()
    assert told.calls == [
        ("bad", "ValueError", 1, False), ("bad", "ValueError", 2, False),
        ("bad", "ValueError", 3, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("detail", "message", "trace"),
    [("class", False, False), ("message", True, False), ("traceback", True, True), (None,) * 3],
)
def test_option_decides_how_much_of_an_error_is_logged(
    valkey: Store,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    detail: Any,
    message: bool | None,
    trace: bool | None,
) -> None:
    config = {} if detail is None else {"log_errors": detail}
    _, [record] = run(valkey.url, prefix, caplog, Task("bad", b"", retry=0), **config)
    for form in (logs.Text("1", terminal=False), logs.Json("1"), logging.Formatter()):
        text = form.format(record)
        assert "ValueError" in text
        assert ("boom" in text) == (message is not False)
        assert (OWN in text) == (trace is not False)
        assert "invoke.py" not in text
        assert len(text) < 4000
        assert text.isprintable() or type(form) is logging.Formatter
        assert "\n2026" not in text
    assert vars(record)["error_class"] == "ValueError"
    assert ("boom" in vars(record).get("error", "")) == (message is not False)


def test_traceback_ends_where_the_program_calls_a_library(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, [record] = run(valkey.url, prefix, caplog, Task("thread", b"", retry=0))
    assert record.exc_text is not None
    lines = [line for line in record.exc_text.splitlines() if line.startswith("  File ")]
    assert len(lines) == 2
    assert all("test_failures.py" in line for line in lines)
    assert "dumps({1: object()})" in record.exc_text


def test_traceback_without_program_frames_keeps_all_frames() -> None:
    try:
        dumps(object())
    except TypeError as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        assert "json" in program_trace(error)


@pytest.mark.parametrize(("kind", "shown"), [(TimeoutError, False), (RuntimeError, True)])
def test_frames_of_qsync_are_logged_for_its_errors_but_not_for_its_time_limit(
    kind: type[Exception], shown: bool
) -> None:
    """A handler with executor="process" runs in another process, so the traceback of a timeout
    contains none of the handler's frames."""
    code = compile(f"raise {kind.__name__}", inspect.getfile(program_trace), "exec")
    try:
        exec(code)  # noqa: S102 - of this test
    except kind as error:
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        assert ("error_text.py" in program_trace(error)) == shown


def test_poll_is_not_a_failure_until_its_attempts_are_used_up(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    told, records = run(valkey.url, prefix, caplog, Task("poll", b"", retry=2))
    assert [one.levelname for one in records] == ["INFO", "INFO", "ERROR"]
    text = "will run again immediately, attempt 1 of 3: Retry: not there yet"
    assert text in records[0].getMessage()
    assert told.calls == [("poll", "Retry", 3, True)]


def test_retry_without_a_message_has_the_text_of_its_cause(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, records = run(valkey.url, prefix, caplog, Task("caused", b"", retry=1))
    cause = "Retry: LookupError: no such order"
    first, last = (record.getMessage() for record in records)
    assert f"will run again in 50 ms, attempt 1 of 2: {cause}" in first
    assert f"is dead: failed, attempt 2 of 2: {cause}" in last
    assert vars(records[0])["error"] == cause


def test_skip_retry_is_not_logged_as_a_failure(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    told, [record] = run(valkey.url, prefix, caplog, Task("skip", b""))
    assert record.levelname == "WARNING"
    assert "is dead: retries skipped, attempt 1 of 4: SkipRetry: no such" in record.getMessage()
    assert told.calls == []


def test_failure_after_which_the_deadline_passes_is_final(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    task = Task("bad", b"", retry_delay=3600, deadline=deadline)
    told, [record] = run(valkey.url, prefix, caplog, task)
    assert record.levelname == "ERROR"
    assert told.calls == [("bad", "ValueError", 1, True)]


def test_death_by_deadline_is_an_error(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that cannot start because its deadline has passed is also reported."""

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            task = Task("bad", b"", deadline=datetime.now(UTC) + timedelta(milliseconds=50))
            handle = await b.client.enqueue(task)
            await until(lambda: datetime.now(UTC) > task.deadline)  # type: ignore[operator]
            async with b.server(mux()):
                await b.reaches(handle.id, "dead")

    asyncio.run(main())
    [record] = about(caplog, "bad")
    assert record.levelname == "ERROR"
    assert "is dead: deadline passed before it could start" in record.getMessage()


def test_type_without_a_handler_is_logged_once(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux()):
            handles = await b.client.enqueue_many(Task("moved.away", b"") for _ in range(50))
            for handle in handles:
                await b.reaches(handle.id, "scheduled")

    asyncio.run(main())
    [record] = about(caplog, "moved.away")
    assert record.levelname == "WARNING"
    assert "no handler for type moved.away" in record.getMessage()


def test_type_that_no_server_handles_is_on_the_overview_and_in_the_metrics(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log also names the handled type `src.shop.send`, whose function has the same name."""
    handlers = Mux()

    @handlers.handle("src.shop.send")
    async def send(task: TaskInfo) -> None: ...

    async def main() -> str:
        async with bench(valkey.url, prefix) as b, Qsync(valkey.url, prefix=prefix) as app:
            server = b.server(handlers)
            server.run_metrics = RunMetrics(handlers.types)
            async with server, app.inspector() as inspector:
                await b.client.enqueue_many(Task("shop.send", b"") for _ in range(3))

                async def named() -> bool:
                    return await inspector.unknown_types() == {"default": ["shop.send"]}

                await wait_until_async(named, message="the server does not report the unknown type")
                dashboard = create_app(inspector, auth="host", read_only=True)
                async with dashboard as site, visiting(site) as client:
                    page = (await client.get("/")).text
                assert "has a handler for" in page
                assert ">shop.send</a>" in page
                metrics = render(server_metrics(server.run_metrics.rows(), [])).decode()
                async with b.server(mux_of("shop.send")):

                    async def known() -> bool:
                        return await inspector.unknown_types() == {}

                    await wait_until_async(
                        known, message="another server has a handler for the type"
                    )
                return metrics

    metrics = asyncio.run(main())
    assert 'qsync_tasks_without_handler_total{queue="default"} 3.0' in metrics
    assert "It has one for src.shop.send: import the module by the same name" in caplog.text


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_any_error_of_on_error_is_logged_and_the_failure_recorded(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def on_error(failure: BaseException, task: TaskInfo) -> None:
        raise error

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(mux(), on_error=on_error, shutdown_timeout=30),
        ):
            handle = await b.client.enqueue(Task("bad", b"", retry=1, retry_delay=0))
            await b.reaches(handle.id, "dead")
            info = await handle.info()
            assert info is not None
            assert info.attempt == 2

    with caplog.at_level(logging.ERROR, "qsync.server"):
        asyncio.run(main())
    texts = [record.getMessage() for record in caplog.records]
    assert sum("on_error raised for task" in text for text in texts) == 2


def test_unknown_level_of_detail_is_refused() -> None:
    with pytest.raises(ConfigError, match="log_errors: 'all' is not one of 'class', 'message'"):
        Qsync("redis://127.0.0.1:1").server(log_errors="all")  # type: ignore[typeddict-item]


def test_handler_can_tell_its_last_attempt() -> None:
    info = TaskInfo(
        id="a", type="t", payload=b"", queue="q", retry=1, attempt=1, crashes=0, enqueued_at_us=0
    )
    assert not info.last_attempt
    assert not info.final
    again = TaskInfo(
        id="a", type="t", payload=b"", queue="q", retry=1, attempt=2, crashes=0, enqueued_at_us=0
    )
    assert again.last_attempt
