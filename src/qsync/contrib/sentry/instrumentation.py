"""The extension that `instrument` adds to an app: spans around enqueues and runs, and error
reports."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import sentry_sdk
from sentry_sdk.consts import OP, SPANDATA, SPANSTATUS
from sentry_sdk.crons import capture_checkin
from sentry_sdk.crons.consts import MonitorStatus
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.scope import Scope, should_send_default_pii
from sentry_sdk.tracing import Span, TransactionSource
from sentry_sdk.utils import event_from_exception

from qsync.app import Qsync
from qsync.client import AsyncHandle, Handle
from qsync.errors import ConfigError, InvalidTask, QsyncError, Retry, SkipRetry, Snooze, TaskFailed
from qsync.instrumentation import Extension
from qsync.keys import server_of_token
from qsync.mux import CallNext
from qsync.schedule import Cron, Every, Periodic, Schedule
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from qsync.times import MINUTE_US
from qsync.value_text import class_name, shorten

ORIGIN: Final = "auto.queue.qsync"
SYSTEM: Final = "qsync"

PAYLOAD_SHOWN: Final = 2000
"""Maximum length of a payload in a report, in characters."""

Report = Literal["all", "final"]


def instrument(app: Qsync, *, report: Report = "all", monitors: bool = True) -> None:
    """Start reporting the errors and traces of the app's tasks to Sentry.

    report    "all": each attempt that failed, as a warning if a retry follows; "final": only the
              failures after which the task is dead. A Retry with attempts left, a SkipRetry and a
              Snooze are never reported
    monitors  whether Sentry monitors the app's periodic tasks

    Errors are grouped by task type and error class. A report includes the task's id, type, queue
    and attempt, and the server. A report includes the payload only if `send_default_pii` is set.
    The trace of an enqueue continues in the handler. Records of the servers' logger are ignored, so
    that no error is reported twice. Raises ConfigError if the app has already enqueued or is
    instrumented, or an option is invalid.
    """
    if not isinstance(app, Qsync):
        raise ConfigError(f"app: {shorten(app)} is not a Qsync")
    if report not in get_args(Report):
        raise ConfigError(f"report: {shorten(report)} is neither 'all' nor 'final'")
    sentry = _Sentry(report, Monitors() if monitors else None)
    app.extend(Extension(name="sentry", around_enqueue=sentry.sending, server=sentry.serve))
    ignore_logger("qsync.server")


class _Sentry:
    """Creates the spans of enqueues and runs, and the error reports."""

    def __init__(self, report: Report, monitors: Monitors | None) -> None:
        self._report = report
        self._monitors = monitors

    # Enqueues.

    @contextlib.contextmanager
    def sending(self, tasks: Sequence[Any], queue: str | None) -> Iterator[_TracedEnqueue]:
        """Open a span around an enqueue; yield an object with the tasks to send."""
        queues = {queue or getattr(task, "queue", "") for task in tasks}
        types = {task.type for task in tasks if isinstance(task, Task)}
        with sentry_sdk.start_span(
            op=OP.QUEUE_PUBLISH, name=types.pop() if len(types) == 1 else "qsync", origin=ORIGIN
        ) as span:
            span.set_data(SPANDATA.MESSAGING_SYSTEM, SYSTEM)
            if len(queues) == 1:
                span.set_data(SPANDATA.MESSAGING_DESTINATION_NAME, queues.pop())
            yield _TracedEnqueue(span, tasks)

    # Runs.

    def serve(self, server: Server) -> None:
        """Trace the runs of this server, and report their errors."""
        server.add_outer_middleware(self.around)
        server.hooks.add("failed", self.failed)
        server.hooks.add("dead", self.dead)
        if self._monitors is not None:
            self._monitors.watch(server)

    async def around(self, task: TaskInfo, call_next: CallNext) -> Any:
        """Run the task in a separate scope and transaction; this is the middleware."""
        decision: BaseException | None = None
        value: Any = None
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            _describe(scope, task)
            transaction = sentry_sdk.continue_trace(
                dict(task.headers), op=OP.QUEUE_PROCESS, name=task.type,
                source=TransactionSource.TASK.value, origin=ORIGIN,
            )  # fmt: skip
            with sentry_sdk.start_transaction(
                transaction, custom_sampling_context={"qsync_task": task}
            ) as span:
                _describe_span(span, task)
                try:
                    value = await call_next()
                except (Retry, SkipRetry, Snooze) as error:
                    span.set_status(SPANSTATUS.ABORTED)
                    decision = error  # raise it below, so that the span is not marked as failed
                except Exception as error:
                    span.set_status(SPANSTATUS.INTERNAL_ERROR)
                    _keep(error, scope, span)
                    raise
                if decision is None:
                    span.set_status(SPANSTATUS.OK)
        if decision is not None:
            raise decision
        return value

    async def failed(self, task: TaskInfo, error: BaseException) -> None:
        """Report an attempt that failed; this is a hook."""
        if task.final or self._report == "all":
            _capture(task, error)

    async def dead(self, task: TaskInfo, error: BaseException) -> None:
        """Report a task that died without a failed attempt; this is a hook."""
        if isinstance(error, TaskFailed) and not hasattr(error, SCOPE_ATTRIBUTE):
            _capture(task, error)


class _TracedEnqueue:
    def __init__(self, span: Span, tasks: Sequence[Any]) -> None:
        self._span = span
        headers = dict(sentry_sdk.get_current_scope().iter_trace_propagation_headers(span=span))
        self.tasks = [_with_headers(task, headers) for task in tasks] if headers else list(tasks)

    def sent(self, handles: Sequence[Handle[Any] | AsyncHandle[Any]]) -> None:
        """Record the id of a task that a single enqueue has put into the store."""
        if len(handles) == 1:
            self._span.set_data(SPANDATA.MESSAGING_MESSAGE_ID, handles[0].id)


def _with_headers(task: Any, headers: Mapping[str, str]) -> Any:
    """Return the task with the trace in its headers; if the headers would be too large, return it
    unchanged."""
    if not isinstance(task, Task):
        return task  # the client reports the error
    own = task.headers or {}
    merged = {**own, **headers}
    others = [part for part in own.get("baggage", "").split(",") if part and not _is_ours(part)]
    if baggage := ",".join([*others, *filter(None, [headers.get("baggage")])]):
        merged["baggage"] = baggage
    try:
        return task.replace(headers=merged)
    except InvalidTask:
        return task


def _is_ours(part: str) -> bool:
    return part.strip().startswith("sentry-")


# Reports.

SCOPE_ATTRIBUTE: Final = "_qsync_sentry"
"""Attribute of an error that holds the trace and breadcrumbs of the run that raised it."""


def _keep(error: Exception, scope: Scope, span: Any) -> None:
    with contextlib.suppress(AttributeError):  # the error's class has __slots__
        setattr(error, SCOPE_ATTRIBUTE, (scope, span))


def _capture(task: TaskInfo, error: BaseException) -> None:
    """Send an event for a failed attempt or a dead task, with the run's trace if it is known."""
    scope, span = getattr(error, SCOPE_ATTRIBUTE, (None, None))
    if scope is None:
        with sentry_sdk.isolation_scope() as other:
            other.clear_breadcrumbs()
            _describe(other, task)
            other.generate_propagation_context(dict(task.headers))
            _send(task, error, None)
        return
    with sentry_sdk.scope.use_isolation_scope(scope):
        _send(task, error, span)


def _send(task: TaskInfo, error: BaseException, span: Any) -> None:
    client = sentry_sdk.get_client()
    event, hint = event_from_exception(
        error, client_options=client.options, mechanism={"type": "qsync", "handled": False}
    )
    with sentry_sdk.new_scope() as scope:
        if span is not None:
            scope.span = span
        scope.fingerprint = [task.type, class_name(error)]
        scope.set_level("error" if task.final else "warning")
        scope.set_tag("qsync.final", str(task.final).lower())
        sentry_sdk.capture_event(event, hint=hint)


def _describe(scope: Scope, task: TaskInfo) -> None:
    scope.set_transaction_name(task.type, source=TransactionSource.TASK.value)
    scope.set_tag("qsync.queue", task.queue)
    scope.set_tag("qsync.type", task.type)
    context: dict[str, Any] = {
        "id": task.id,
        "type": task.type,
        "queue": task.queue,
        "attempt": task.attempt,
        "retry": task.retry,
        "crashes": task.crashes,
        "worker": server_of_token(task.token),
    }
    if should_send_default_pii():
        context["payload"] = _shown(task)
    scope.set_context("qsync", context)


def _shown(task: TaskInfo) -> str:
    try:
        text = repr(task.value())
    except QsyncError:
        text = repr(task.payload)
    return text if len(text) <= PAYLOAD_SHOWN else text[:PAYLOAD_SHOWN] + "..."


def _describe_span(span: Any, task: TaskInfo) -> None:
    span.set_data(SPANDATA.MESSAGING_SYSTEM, SYSTEM)
    span.set_data(SPANDATA.MESSAGING_DESTINATION_NAME, task.queue)
    span.set_data(SPANDATA.MESSAGING_MESSAGE_ID, task.id)
    span.set_data(SPANDATA.MESSAGING_MESSAGE_RETRY_COUNT, task.attempt - 1)


NAMESPACE: Final = uuid.UUID("6f1f5b38-6f0e-4f8e-9d39-0a5c3f0b7f51")
"""Namespace for the ids of check-ins, which are derived from task ids."""

SLUG_LENGTH: Final = 50

UNITS: Final = (("day", 1440), ("hour", 60), ("minute", 1))


class Monitors:
    """Checks in with Sentry when a tick's task starts, and when it is completed or dead.

    All attempts of a tick share one check-in, so a retry that succeeds raises no alarm.
    """

    def __init__(self) -> None:
        self._periodics: dict[str, Periodic] = {}

    def watch(self, server: Server) -> None:
        """Send Sentry a check-in for each tick of this server's periodic tasks, except those whose
        schedules Sentry does not support."""
        for task in server.periodic:
            if config_of(task.periodic.schedule) is not None:
                self._periodics[task.periodic.name] = task.periodic
        if self._periodics:
            server.hooks.add("started", self._started)
            server.hooks.add("completed", self._completed)
            server.hooks.add("dead", self._dead)

    async def _started(self, task: TaskInfo) -> None:
        if task.attempt == 1:
            self._check_in(task, MonitorStatus.IN_PROGRESS)

    async def _completed(self, task: TaskInfo) -> None:
        self._check_in(task, MonitorStatus.OK)

    async def _dead(self, task: TaskInfo, error: BaseException) -> None:
        self._check_in(task, MonitorStatus.ERROR)

    def _check_in(self, task: TaskInfo, status: str) -> None:
        periodic = self._periodics.get(task.id.rpartition("@")[0])
        if periodic is None:
            return
        capture_checkin(
            monitor_slug=slug_of(periodic.name),
            check_in_id=uuid.uuid5(NAMESPACE, f"{task.queue}/{task.id}").hex,
            status=status,
            monitor_config=config_of(periodic.schedule),
        )


def slug_of(name: str) -> str:
    """Return the name of a schedule's monitor: lower-case letters, digits, - and _."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:SLUG_LENGTH] or "schedule"


def config_of(schedule: Schedule) -> Any:
    """Return Sentry's monitor configuration for a schedule; None if Sentry does not support it.

    Sentry supports only cron expressions with five fields, and intervals of whole minutes.
    """
    if isinstance(schedule, Cron):
        if len(schedule.expression.split()) != 5:
            return None
        return {
            "schedule": {"type": "crontab", "value": schedule.expression},
            "timezone": schedule.tz,
        }
    if isinstance(schedule, Every) and schedule.period_us % MINUTE_US == 0:
        minutes = schedule.period_us // MINUTE_US
        unit, size = next((unit, size) for unit, size in UNITS if minutes % size == 0)
        return {
            "schedule": {"type": "interval", "value": minutes // size, "unit": unit},
            "timezone": "UTC",
        }
    return None
