"""Runs `def` handlers in threads.

A run in a thread needs no asyncio task while its handler runs. An asyncio task continues the run if
the handler raised, was stopped or could not be called, or if the last progress must be stored.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from qsync.server import outcome
from qsync.server.clock import boot_s
from qsync.server.current import running
from qsync.server.handler_context import HandlerContext, ServerContext, TellProgress
from qsync.server.inline_start import Run
from qsync.server.invoke import BoundHandler, Submit
from qsync.server.queue_state import RUNNING, LeasedTask
from qsync.server.run_records import RunRecords
from qsync.server.thread_pool import Threads, fail

Resume = Callable[[LeasedTask, BoundHandler, None, Awaitable[Any]], Run]


class ThreadRuns:
    """Starts runs that have a slot, each with a copy of the server's context.

    `begin_timeout` begins the timeout of a run, `finish` ends a run with its record, and `resume`
    returns the rest of a run whose handler has ended.
    """

    def __init__(
        self,
        records: RunRecords,
        context: ServerContext,
        tell: TellProgress,
        threads: Threads,
        *,
        begin_timeout: Callable[[LeasedTask, BoundHandler], float | None],
        finish: Callable[[LeasedTask, Any], None],
        resume: Resume,
    ) -> None:
        self._records = records
        self._server = context
        self._tell = tell
        self._threads = threads
        self._begin_timeout = begin_timeout
        self._finish = finish
        self._resume = resume
        self._loop = asyncio.get_running_loop()
        self._base = contextvars.copy_context()

    def start(self, leased: LeasedTask, way: BoundHandler, submit: Submit) -> None:
        """Start the handler of a task as soon as a thread is free."""
        leased.begun_s = boot_s()
        claim = self._claim(leased)
        claim.wait()
        try:
            future = submit(claim.task, self._context(claim), claim)
        except BaseException as error:
            leased.waits = False
            future = self._loop.create_future()
            fail(future, error)
        leased.task = future
        self._begin_timeout(leased, way)
        future.add_done_callback(partial(self._ended, leased, way), context=self._base)

    def _ended(self, leased: LeasedTask, way: BoundHandler, future: asyncio.Future[Any]) -> None:
        """End the run of a handler that has returned, raised or been stopped."""
        leased.task = None
        if future.cancelled():
            self._threads.abandon(future)
        elif future.exception() is None and leased.stop is None:
            record = self._record(leased, way, future.result())
            if record is not None:
                self._finish(leased, record)
                return
        if leased.phase is RUNNING:
            run = self._resume(leased, way, None, future)
            context = self._context(self._claim(leased))
            self._loop.create_task(run, name=leased.id, context=context)

    def _record(self, leased: LeasedTask, way: BoundHandler, value: Any) -> Any:
        """Return the record for a handler that returned, or None.

        None means that the run must continue, to report a failure or to store the last progress.
        """
        if value is not None and type(value) in outcome.NEVER_RUN:
            return None
        done, options = self._records.done, leased.message.options
        if options is None or options.retention_us is None:
            return done(leased, value, way)
        if leased.progress is not None:
            return None
        try:  # encoding the result may run the program's code
            return self._context(self._claim(leased)).run(done, leased, value, way)
        except BaseException:  # the rest of the run raises the same error, and reports it
            return None

    def _claim(self, leased: LeasedTask) -> HandlerContext:
        info: Any = leased.info
        return HandlerContext(leased, info, self._server, self._tell)

    def _context(self, claim: HandlerContext) -> contextvars.Context:
        context = self._base.copy()
        context.run(running.set, claim)
        return context
