"""Reports failed attempts and dead tasks to the log and to `on_error`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, Final

from msgspec.structs import replace

from qsync.broker.op_values import Killed, Retried
from qsync.callbacks import stops_caller
from qsync.errors import Retry, SkipRetry, Snooze
from qsync.formatting import duration, printable
from qsync.server.config import Config
from qsync.server.current import fields_of
from qsync.server.error_log import LogErrors, log_error, log_trace
from qsync.server.handler_mismatch import HandlerFinder
from qsync.server.hook_calls import HookCalls
from qsync.server.invoke import Invoker
from qsync.server.queue_state import LeasedTask
from qsync.task import TaskInfo

log: Final = logging.getLogger("qsync.server")


UNKNOWN_TYPES: Final = 100
"""Maximum number of (queue, type) pairs without a handler that are logged; each is logged once."""

UNKNOWN_FOR: Final = "an hour"


class Failures:
    """Reports failures of a server's tasks; runs on the event loop."""

    def __init__(
        self,
        config: Config,
        invoker: Invoker,
        finder: HandlerFinder,
        hooks: HookCalls | None,
    ) -> None:
        self._invoker = invoker
        self._finder = finder
        self._hooks = hooks
        self._on_error = config.on_error
        self._detail = config.log_errors
        self._loop = asyncio.get_running_loop()
        self.unknown_types: dict[tuple[str, str], None] = {}
        """Queue and type of tasks for which this server has no handler, in order of arrival."""
        self._callbacks: set[asyncio.Task[None]] = set()

    def failed(
        self, leased: LeasedTask, error: BaseException, record: Any, *, brief: bool = False
    ) -> None:
        """Log an attempt that ended with this error, and call `on_error`.

        With `brief`, leave out the traceback, which was logged for another task of the same call.

        `on_error` is not called for a Retry with attempts left, nor for a SkipRetry.
        """
        if self._hooks is not None:
            self._hooks.failed(leased, error)
        dead = type(record) is Killed
        fields = {**leased.fields, "final": dead}
        attempt = f"attempt {leased.failure.attempts + 1} of {leased.message.retry + 1}"
        due = ""
        if isinstance(record, Retried):
            fields["retry_in_s"] = delay_s = record.delay_us / 1_000_000
            due = f"in {duration(delay_s)}" if delay_s else "immediately"
        if isinstance(error, Retry) and not dead:
            level, outcome = logging.INFO, f"will run again {due}, {attempt}"
        elif isinstance(error, SkipRetry):
            level, outcome = logging.WARNING, f"is dead: retries skipped, {attempt}"
        elif dead:
            level, outcome = logging.ERROR, f"is dead: failed, {attempt}"
        else:
            level, outcome = logging.WARNING, f"failed, {attempt}, next {due}"
        asked = (isinstance(error, Retry) and not dead) or isinstance(error, SkipRetry)
        detail = "message" if (asked or brief) and self._detail == "traceback" else self._detail
        log_error(log, level, f"{_name(leased)} {outcome}", error, detail, fields)
        if self._on_error is not None and leased.info is not None and not asked:
            info = replace(leased.info, final=dead)
            task = self._loop.create_task(self._call_on_error(error, info))
            self._callbacks.add(task)
            task.add_done_callback(self._callbacks.discard)

    def snoozed(self, leased: LeasedTask, error: Snooze) -> None:
        """Log that a handler asked to run again later."""
        if self._hooks is not None:
            self._hooks.failed(leased, error)
        delay_s = error.delay_us / 1_000_000
        fields = {**leased.fields, "snoozed_for_s": delay_s}
        detail: LogErrors = "message" if self._detail == "traceback" else self._detail
        outcome = f"is snoozed for {delay_s:g} s"
        log_error(log, logging.INFO, f"{_name(leased)} {outcome}", error, detail, fields)

    def died(self, leased: LeasedTask, why: str) -> None:
        """Log a task that is dead although no attempt failed."""
        if self._hooks is not None:
            self._hooks.died(leased, why)
        fields = {**leased.fields, "final": True}
        log_trace(log, logging.ERROR, f"{_name(leased)} is dead: {printable(why)}", "", fields)

    def suspected(self, leased: LeasedTask) -> None:
        """Log that a task runs again although a server died while running it."""
        times = "once" if leased.crashes == 1 else f"{leased.crashes} times"
        text = f"{_name(leased)} runs again: a server died {times} while running it"
        fields = {**leased.fields, "crashes": leased.crashes}
        log_trace(log, logging.WARNING, text, "", fields)

    def unknown(self, leased: LeasedTask, record: Any) -> None:
        """Log that this server has no handler for a task, and whether the task was handed back or
        is dead."""
        if type(record) is Killed:
            self.died(leased, f"no server had a handler for its type for {UNKNOWN_FOR}")
        key = (leased.queue.name, leased.message.type)
        if key in self.unknown_types or len(self.unknown_types) >= UNKNOWN_TYPES:
            return
        self.unknown_types[key] = None
        text = (
            f"{_name(leased)} returns to the queue: this server has no handler for type "
            f"{printable(key[1])}; without a handler for {UNKNOWN_FOR}, a task becomes dead"
            f"{self._similar(key[1])}"
        )
        log_trace(log, logging.WARNING, text, "", leased.fields)
        self._finder.search(*key)

    def _similar(self, type: str) -> str:
        """Return a hint if a known type differs only in its package, else an empty string."""
        for handled in self._invoker.types():
            if handled.endswith(f".{type}") or type.endswith(f".{handled}"):
                return (
                    f". It has one for {printable(handled)}: import the module by the same name "
                    "where tasks are enqueued and where they run"
                )
        return ""

    async def _call_on_error(self, error: BaseException, info: TaskInfo) -> None:
        try:
            if self._on_error is None:
                return
            answer = await self._invoker.call_beside(info.type, self._on_error, error, info)
            if inspect.isawaitable(answer):
                await answer
        except BaseException as broken:
            if stops_caller(broken):
                raise
            text = f"on_error raised for task {info.id}"
            log_error(log, logging.ERROR, text, broken, self._detail, fields_of(info))

    async def aclose(self) -> None:
        """Cancel pending calls of `on_error`."""
        for task in self._callbacks:
            task.cancel()
        await asyncio.gather(*self._callbacks, return_exceptions=True)


def _name(leased: LeasedTask) -> str:
    type = printable(leased.message.type)
    return f"task {leased.id} of type {type} on queue {leased.queue.name}"
