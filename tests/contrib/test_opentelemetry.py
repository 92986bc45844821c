"""With tracing, an enqueue and all its consequences, in any process, form one connected trace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from qsync import (
    Client,
    DuplicateTask,
    Mux,
    Qsync,
    Retry,
    SkipRetry,
    Snooze,
    Task,
    TaskInfo,
    current,
)
from qsync.contrib import opentelemetry
from qsync.errors import ConfigError, InvalidTask
from qsync.server.server import Server
from tests.support.server import until
from tests.support.stores import Store

CANARY = "canary-9b1f"


class Traced:
    """An app with tracing, and its spans."""

    def __init__(self, url: str, prefix: str, mux: Mux, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")
        self.app = Qsync(url, prefix=prefix, mux=mux)
        opentelemetry.instrument(self.app, tracer_provider=self.provider, **options)

    def server(self, **config: Any) -> Server:
        return self.app.server(**{"lease": 1.0, "sweep": 0.2, "shutdown_timeout": 2.0, **config})

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    async def wait(self, name: str, count: int) -> list[ReadableSpan]:
        """Wait until `count` spans with this name have ended; return them."""
        await until(lambda: len(self.named(name)) >= count)
        return self.named(name)


def connected(spans: list[ReadableSpan], root: ReadableSpan) -> bool:
    """Return whether all spans belong to one trace, in which each span but the root has a known
    parent."""
    ids = {span.context.span_id for span in spans}
    return all(
        span.context.trace_id == root.context.trace_id
        and (span is root or (span.parent is not None and span.parent.span_id in ids))
        for span in spans
    )


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


@contextlib.contextmanager
def request(traced: Traced) -> Iterator[None]:
    """Open a span for a request, as the instrumentation of a web framework does."""
    with traced.tracer.start_as_current_span("request"):
        yield


@contextlib.asynccontextmanager
async def closing(app: Qsync) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await app.aclose()


def nested() -> Mux:
    """Return a mux in which `outer` enqueues `inner`, on the loop and in a thread."""
    mux = Mux()

    @mux.handle("outer")
    async def outer(task: TaskInfo) -> None:
        await current().client.enqueue(Task("inner", b""))

    @mux.handle("outer-many")
    async def outer_many(task: TaskInfo) -> None:
        await current().client.enqueue_many([Task("inner", b""), Task("inner", b"")])

    @mux.handle("outer-thread")
    def outer_thread(task: TaskInfo) -> None:
        current().client.enqueue(Task("inner", b""))

    @mux.handle("inner")
    async def inner(task: TaskInfo) -> None:
        pass

    return mux


@pytest.mark.parametrize("outer", ["outer", "outer-thread"])
@pytest.mark.parametrize("sender", ["async", "blocking", "many", "blocking many"])
def test_a_request_its_task_and_child_tasks_are_one_trace(
    valkey: Store, prefix: str, sender: str, outer: str
) -> None:
    traced = Traced(valkey.url, prefix, nested())
    task = Task(outer, b"", headers={"own": "kept"})

    def block() -> None:
        with traced.app.client() as client, request(traced):
            client.enqueue_many([task]) if "many" in sender else client.enqueue(task)

    async def work() -> None:
        async with closing(traced.app), traced.server():
            if "blocking" in sender:
                await asyncio.to_thread(block)
            else:
                async with traced.app.async_client() as client:
                    with request(traced):
                        if sender == "many":
                            await client.enqueue_many([task])
                        else:
                            await client.enqueue(task)
            await traced.wait("process default", 2)

    asyncio.run(work())
    [root] = traced.named("request")
    assert len(traced.spans) == 5
    assert connected(traced.spans, root)
    sends, runs = traced.named("send default"), traced.named("process default")
    first, second = sorted(sends, key=lambda span: span.start_time or 0)
    by_type = {span.attributes["qsync.task.type"]: span for span in runs}
    assert parent_of(first) == root.context.span_id
    assert parent_of(by_type[outer]) == first.context.span_id
    assert parent_of(second) == by_type[outer].context.span_id
    assert parent_of(by_type["inner"]) == second.context.span_id
    assert {span.kind for span in sends} == {SpanKind.PRODUCER}
    assert {span.kind for span in runs} == {SpanKind.CONSUMER}


def test_tasks_of_one_call_share_a_span_and_each_run_has_its_own(
    valkey: Store, prefix: str
) -> None:
    traced = Traced(valkey.url, prefix, nested())

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                with request(traced):
                    await client.enqueue(Task("outer-many", b""))
            await traced.wait("process default", 3)

    asyncio.run(work())
    [root] = traced.named("request")
    assert connected(traced.spans, root)
    _, many = sorted(traced.named("send default"), key=lambda span: span.start_time or 0)
    assert many.attributes["messaging.batch.message_count"] == 2
    inner = [s for s in traced.spans if (s.attributes or {}).get("qsync.task.type") == "inner"]
    assert [parent_of(span) for span in inner] == [many.context.span_id] * 2


def test_attributes_follow_the_conventions_for_messaging(valkey: Store, prefix: str) -> None:
    traced = Traced(valkey.url, prefix, nested())
    ids = []

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                ids.append((await client.enqueue(Task("inner", b"12345"))).id)
            await traced.wait("process default", 1)

    asyncio.run(work())
    [send], [run] = traced.named("send default"), traced.named("process default")
    common = {
        "messaging.system": "qsync",
        "messaging.destination.name": "default",
        "messaging.message.id": ids[0],
        "qsync.task.type": "inner",
    }
    assert dict(send.attributes or {}) == {
        **common, "messaging.operation.name": "send", "messaging.operation.type": "send",
    }  # fmt: skip
    assert dict(run.attributes or {}) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.body.size": 5,
        "qsync.task.attempt": 1,
        "qsync.task.crashes": 0,
    }
    assert run.status.status_code is StatusCode.UNSET


def test_task_functions_are_traced_and_headers_of_a_task_are_kept(
    valkey: Store, prefix: str
) -> None:
    mux, seen = Mux(), []

    @mux.handle("look")
    async def look(task: TaskInfo) -> None:
        seen.append(dict(task.headers))

    traced = Traced(valkey.url, prefix, mux)

    @traced.app.task("greet")
    async def greet(name: str) -> None:
        seen.append(name)

    async def work() -> None:
        async with closing(traced.app), traced.server():
            with request(traced):
                await greet.enqueue("you")
                async with traced.app.async_client() as client:
                    await client.enqueue(Task("look", b"", headers={"own": "kept"}))
            await traced.wait("process default", 2)

    asyncio.run(work())
    [root] = traced.named("request")
    assert connected(traced.spans, root)
    assert "you" in seen
    [headers] = [one for one in seen if isinstance(one, dict)]
    assert headers["own"] == "kept"
    assert headers["traceparent"].startswith("00-")


def test_a_server_started_within_a_span_does_not_adopt_its_tasks(
    valkey: Store, prefix: str
) -> None:
    """A task that is enqueued without a context starts a new trace."""
    traced = Traced(valkey.url, prefix, nested())
    plain = Qsync(valkey.url, prefix=prefix)

    async def work() -> None:
        async with closing(traced.app), closing(plain):
            with request(traced):
                async with traced.server(), plain.async_client() as client:
                    await client.enqueue(Task("inner", b""))
                    await traced.wait("process default", 1)

    asyncio.run(work())
    [run] = traced.named("process default")
    assert run.parent is None


def test_run_with_links_starts_a_new_trace(valkey: Store, prefix: str) -> None:
    traced = Traced(valkey.url, prefix, nested(), run="link")

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                with request(traced):
                    await client.enqueue(Task("outer", b""))
            await traced.wait("process default", 2)

    asyncio.run(work())
    first, second = sorted(traced.named("send default"), key=lambda span: span.start_time or 0)
    by_type = {s.attributes["qsync.task.type"]: s for s in traced.named("process default")}
    for run, send in ((by_type["outer"], first), (by_type["inner"], second)):
        assert run.parent is None
        assert [link.context.span_id for link in run.links] == [send.context.span_id]


def test_baggage_is_passed_to_nested_tasks(valkey: Store, prefix: str) -> None:
    mux, seen = Mux(), []

    @mux.handle("outer")
    async def outer(task: TaskInfo) -> None:
        await current().client.enqueue(Task("inner", b""))

    @mux.handle("inner")
    def inner(task: TaskInfo) -> None:
        seen.append(baggage.get_baggage("tenant"))

    traced = Traced(valkey.url, prefix, mux)

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                token = context.attach(baggage.set_baggage("tenant", "blue"))
                await client.enqueue(Task("outer", b""))
                context.detach(token)
            await traced.wait("process default", 2)

    asyncio.run(work())
    assert seen == ["blue"]


def test_a_task_without_room_for_the_context_is_sent_without_it(valkey: Store, prefix: str) -> None:
    mux, seen = Mux(), []

    @mux.handle("look")
    async def look(task: TaskInfo) -> None:
        seen.append(set(task.headers))

    traced = Traced(valkey.url, prefix, mux)
    plain = Qsync(valkey.url, prefix=prefix, mux=mux)

    async def work() -> None:
        async with closing(traced.app), closing(plain), plain.server():
            async with traced.app.async_client() as client:
                await client.enqueue(Task("look", b"", headers={"full": "x" * 8180}))
            await until(lambda: bool(seen))

    asyncio.run(work())
    assert seen == [{"full"}]


def test_unsampled_trace_is_marked_in_the_header(valkey: Store, prefix: str) -> None:
    mux, seen = Mux(), []

    @mux.handle("look")
    async def look(task: TaskInfo) -> None:
        seen.append(task.headers["traceparent"])

    app = Qsync(valkey.url, prefix=prefix, mux=mux)
    opentelemetry.instrument(app, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))

    async def work() -> None:
        async with closing(app), app.server(), app.async_client() as client:
            await client.enqueue(Task("look", b""))
            await until(lambda: bool(seen))

    asyncio.run(work())
    assert int(seen[0].rpartition("-")[2], 16) & 1 == 0  # the sampled flag is not set


def test_errors_are_recorded_without_their_text(valkey: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("plain")
    async def plain(task: TaskInfo) -> None:
        raise ValueError(task.payload.decode())

    @mux.handle("retry")
    async def retry(task: TaskInfo) -> None:
        raise Retry(task.payload.decode(), delay=3600)

    @mux.handle("skip")
    def skip(task: TaskInfo) -> None:
        raise SkipRetry(task.payload.decode())

    @mux.handle("late")
    async def late(task: TaskInfo) -> None:
        await asyncio.sleep(60)

    traced = Traced(valkey.url, prefix, mux)
    types = ["plain", "retry", "skip", "late"]

    async def work() -> None:
        async with closing(traced.app), traced.server(timeout=0.2):
            async with traced.app.async_client() as client:
                for type in types:
                    await client.enqueue(Task(type, CANARY.encode(), retry=0))
            await traced.wait("process default", len(types))

    asyncio.run(work())
    by_type = {s.attributes["qsync.task.type"]: s for s in traced.named("process default")}
    assert {type: by_type[type].attributes["error.type"] for type in types} == {
        "plain": "ValueError", "retry": "Retry", "skip": "SkipRetry", "late": "timeout",
    }  # fmt: skip
    for span in by_type.values():
        assert span.status.status_code is StatusCode.ERROR
        [event] = span.events
        assert event.name == "exception"
    assert "in plain" in by_type["plain"].events[0].attributes["exception.stacktrace"]
    assert CANARY not in "".join(span.to_json() for span in traced.spans)


def test_snoozed_poll_is_not_an_error(valkey: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("poll")
    async def poll(task: TaskInfo) -> None:
        raise Retry(delay=0)

    @mux.handle("closed")
    async def closed(task: TaskInfo) -> None:
        raise Snooze(3600)

    traced = Traced(valkey.url, prefix, mux)

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                await client.enqueue(Task("closed", b""))
                await traced.wait("process default", 1)
                await client.enqueue(Task("poll", b"", retry=1))
            await traced.wait("process default", 3)

    asyncio.run(work())
    snoozed, first, last = traced.named("process default")
    assert snoozed.status.status_code is StatusCode.UNSET
    assert snoozed.attributes["qsync.task.snooze"] is True
    assert first.status.status_code is StatusCode.UNSET
    assert first.attributes["qsync.task.retry"] is True
    assert last.status.status_code is StatusCode.ERROR


def test_error_texts_are_recorded_on_request(valkey: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("plain")
    async def plain(task: TaskInfo) -> None:
        raise ValueError("a text")

    traced = Traced(valkey.url, prefix, mux, error_text=lambda error: str(error).upper())

    async def work() -> None:
        async with closing(traced.app), traced.server():
            async with traced.app.async_client() as client:
                await client.enqueue(Task("plain", b"", retry=0))
            await traced.wait("process default", 1)

    asyncio.run(work())
    [run] = traced.named("process default")
    assert run.events[0].attributes["exception.message"] == "A TEXT"


def test_duplicate_is_not_an_error_and_invalid_task_is(
    colour: Any, valkey: Store, prefix: str
) -> None:
    traced = Traced(valkey.url, prefix, nested())
    client = traced.app.async_client() if colour.name == "async" else traced.app.client()
    try:
        colour.do(client.enqueue(Task("inner", b"", id="same")))
        with pytest.raises(DuplicateTask):
            colour.do(client.enqueue(Task("inner", b"", id="same")))
        with pytest.raises(InvalidTask, match="not a Task"):
            colour.do(client.enqueue("no task"))
        with pytest.raises(InvalidTask, match="not an iterable"):
            colour.do(client.enqueue_many(7))
    finally:
        colour.close_client(client)
    first, second, mistake = traced.spans
    assert first.status.status_code is second.status.status_code is StatusCode.UNSET
    assert second.attributes["qsync.duplicate_of"] == "same"
    assert mistake.attributes["error.type"] == "InvalidTask"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_app_that_is_used_or_instrumented_cannot_be_instrumented(
    valkey: Store, prefix: str
) -> None:
    app = Qsync(valkey.url, prefix=prefix)

    @app.task("noted")
    def noted() -> None:
        pass

    noted.enqueue_sync()
    with pytest.raises(ConfigError, match="has already enqueued"):
        opentelemetry.instrument(app)
    app.close()
    opentelemetry.instrument(app)
    with pytest.raises(ConfigError, match="already"):
        opentelemetry.instrument(app)


PROCESS_APP = """
import os
from opentelemetry import trace
from qsync import Qsync, TaskInfo, current
from qsync.contrib import opentelemetry

app = Qsync(os.environ["QSYNC_TEST_URL"], prefix=os.environ["QSYNC_TEST_PREFIX"])
opentelemetry.instrument(app)

@app.task("inner")
async def inner(spent: str) -> None:
    pass

@app.task("outer", executor="process")
def outer() -> None:
    context = trace.get_current_span().get_span_context()
    inner.enqueue_sync(f"{context.trace_id:032x} {context.span_id:016x} {os.getpid()}")
    app.close()
"""


def test_process_handler_continues_the_trace(
    valkey: Store, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "traced_process_app.py").write_text(PROCESS_APP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("QSYNC_TEST_URL", valkey.url)
    monkeypatch.setenv("QSYNC_TEST_PREFIX", prefix)
    from importlib import import_module

    module = import_module("traced_process_app")
    mux, seen = Mux(), []

    @mux.handle("inner")
    async def inner(task: TaskInfo) -> None:
        seen.append(task.value()["spent"].split())

    mux.add(module.outer.handler)
    traced = Traced(valkey.url, prefix, mux)

    async def work() -> None:
        async with closing(traced.app), traced.server(processes=1, lease=30):
            async with traced.app.async_client() as client:
                with request(traced):
                    await client.enqueue(Task("outer", {}))
            await until(lambda: bool(seen), timeout=60)
            await traced.wait("process default", 2)

    asyncio.run(work())
    [(trace_id, span_id, pid)] = seen
    [outer] = [
        span
        for span in traced.named("process default")
        if span.attributes["qsync.task.type"] == "outer"
    ]
    assert int(pid) != os.getpid()
    assert trace_id == f"{outer.context.trace_id:032x}"
    assert span_id == f"{outer.context.span_id:016x}"
    [root] = traced.named("request")
    assert connected(traced.spans, root)
    sys.modules.pop("traced_process_app")


def test_app_without_tracing_has_plain_clients(valkey: Store, prefix: str) -> None:
    """Without tracing, there are no spans or headers, and no classes are replaced."""
    app = Qsync(valkey.url, prefix=prefix)
    with app.client() as client:
        assert type(client) is Client
    server = app.server()
    assert server.config.middleware == ()
    assert server.run_metrics is None
