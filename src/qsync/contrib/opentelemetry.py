"""Tracing: a span for each enqueue and for each run of a task, connected across processes.

    from qsync.contrib import opentelemetry
    opentelemetry.instrument(app)         where the app is created, before its first use

The context travels in the task's headers, written by OpenTelemetry's configured propagators
(default: W3C `traceparent`). Needs `opentelemetry-api`; set up its SDK to export spans. Payloads
and results are not recorded; error texts are recorded only through `error_text`.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

from msgspec import structs

from qsync.app import Qsync
from qsync.client import AsyncHandle, Handle
from qsync.errors import DuplicateTask, InvalidTask, Retry, Snooze
from qsync.instrumentation import Extension, missing
from qsync.mux import CallNext
from qsync.server import process_pool_child
from qsync.server.current import running
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from qsync.value_text import class_name
from qsync.version import __version__

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ModuleNotFoundError as _error:
    raise missing(_error, "opentelemetry") from None

__all__ = ["instrument"]

SYSTEM: Final = "qsync"

Parentage = Literal["parent", "link"]


def instrument(
    app: Qsync,
    *,
    tracer_provider: TracerProvider | None = None,
    run: Parentage = "parent",
    error_text: Callable[[BaseException], str] | None = None,
) -> None:
    """Start tracing the clients and servers of the app.

    With `run="parent"`, the span of a run is a child of the enqueue's span, so a whole chain of
    tasks is one trace. With `run="link"`, each run starts a new trace that links to the enqueue;
    use this for tasks that run much later. `error_text` returns the text to record for an
    exception. Without `error_text`, only the exception's type and traceback lines are recorded,
    because the text may contain parts of the payload.

    In threads, the run's span is the current span of the handler. In a process of
    `executor="process"`, this requires that the handler's module instruments the app through which
    it enqueues. Raises ConfigError if the app has already enqueued or is instrumented.
    """
    tracer = trace.get_tracer("qsync", __version__, tracer_provider)
    tracing = Tracing(tracer, run, error_text)
    app.extend(
        Extension(name="opentelemetry", around_enqueue=tracing.sending, server=tracing.serve)
    )
    if _attached not in process_pool_child.around:
        process_pool_child.around.append(_attached)


class Tracing:
    """Creates the spans of enqueues and runs."""

    def __init__(
        self,
        tracer: Tracer,
        run: Parentage,
        error_text: Callable[[BaseException], str] | None,
    ) -> None:
        self._tracer = tracer
        self._run = run
        self._error_text = error_text

    def serve(self, server: Server) -> None:
        """Trace the runs of this server."""
        server.add_outer_middleware(self.around)

    @contextlib.contextmanager
    def sending(self, tasks: Sequence[Any], queue: str | None) -> Iterator[_EnqueueSpan]:
        """Open a span around an enqueue; yield an object with the tasks to send."""
        queues = {queue or getattr(task, "queue", "") for task in tasks}
        destination = queues.pop() if len(queues) == 1 else ""
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        }
        if destination:
            attributes["messaging.destination.name"] = destination
        if len(tasks) != 1:
            attributes["messaging.batch.message_count"] = len(tasks)
        elif isinstance(tasks[0], Task):
            attributes["qsync.task.type"] = tasks[0].type
        with self._tracer.start_as_current_span(
            f"send {destination}".rstrip(),
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _EnqueueSpan(span, tasks)
            except DuplicateTask as error:  # a duplicate is an expected outcome, not an error
                span.set_attribute("qsync.duplicate_of", error.id)
                raise
            except BaseException as error:
                self._note(span, error)
                raise

    async def around(self, task: TaskInfo, call_next: CallNext) -> Any:
        """Run the task in a span; this is the middleware."""
        sender = propagate.extract(task.headers, context=Context())
        links: list[Link] = []
        if self._run == "link":
            sent_by = trace.get_current_span(sender).get_span_context()
            links = [Link(sent_by)] if sent_by.is_valid else []
            sender = trace.set_span_in_context(trace.INVALID_SPAN, sender)
        attached = contexts.attach(sender)
        try:
            with self._tracer.start_as_current_span(
                f"process {task.queue}",
                kind=SpanKind.CONSUMER,
                attributes=_attributes(task),
                links=links,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await call_next(_carrying_context(task))
                except Retry as error:
                    if task.last_attempt:
                        self._note(span, error)
                    else:  # a task that asks to run again has not failed
                        span.set_attribute("qsync.task.retry", True)
                    raise
                except Snooze:
                    span.set_attribute("qsync.task.snooze", True)
                    raise
                except BaseException as error:
                    self._note(span, error)
                    raise
        finally:
            contexts.detach(attached)

    def _note(self, span: Span, error: BaseException) -> None:
        """Record an error's type and traceback; record a text only if `error_text` is set."""
        if not span.is_recording():
            return
        name = class_name(error)
        stopped = getattr(running.get(None), "stopped", None)
        if stopped and isinstance(error, asyncio.CancelledError):
            name = stopped
        event = {
            "exception.type": name,
            "exception.stacktrace": "".join(traceback.format_tb(error.__traceback__)),
        }
        if self._error_text is not None:
            event["exception.message"] = self._error_text(error)
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, name))
        span.add_event("exception", event)


class _EnqueueSpan:
    def __init__(self, span: Span, tasks: Sequence[Any]) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        self.tasks = [_with_headers(task, carrier) for task in tasks] if carrier else list(tasks)

    def sent(self, handles: Sequence[Handle[Any] | AsyncHandle[Any]]) -> None:
        """Record the id of a task that a single enqueue has put into the store."""
        if len(handles) == 1:
            self._span.set_attribute("messaging.message.id", handles[0].id)


def _with_headers(task: Any, carrier: dict[str, str]) -> Any:
    """Return the task with the context in its headers; if the headers would be too large, return it
    unchanged."""
    if not isinstance(task, Task):
        return task  # the client reports the error
    try:
        return task.replace(headers={**(task.headers or {}), **carrier})
    except InvalidTask:
        return task


def _carrying_context(task: TaskInfo) -> TaskInfo:
    """Return the task for the handler, with the run's context in its headers so that it is passed
    on."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return structs.replace(task, headers={**task.headers, **carrier}) if carrier else task


def _attributes(task: TaskInfo) -> dict[str, str | int]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": task.queue,
        "messaging.message.id": task.id,
        "messaging.message.body.size": len(task.payload),
        "qsync.task.type": task.type,
        "qsync.task.attempt": task.attempt,
        "qsync.task.crashes": task.crashes,
    }


@contextlib.contextmanager
def _attached(task: TaskInfo) -> Iterator[None]:
    """Make the run's context current in the handler's process."""
    token = contexts.attach(propagate.extract(task.headers, context=Context()))
    try:
        yield
    finally:
        contexts.detach(token)
