"""A pool of processes for `def` handlers that need the CPU, or have to be ended by force.

Each process has a socket of its own, so one that is killed in the middle of a message takes nothing
else along.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.errors import InvalidTask, Retry, SkipRetry
from qsync.mux import Handler
from qsync.server import in_process
from qsync.server.in_process import Reply
from qsync.server.lane import Claim, NotBegun
from qsync.server.raised import original_of
from qsync.server.worker_process import HandlerError, NeverBegan, WorkerProcess
from qsync.task import TaskInfo

__all__ = ["HandlerError", "ProcessPool"]

log = logging.getLogger("qsync.server")

IDLE_S: Final = 60.0
"""A process that had nothing to do for so long is ended."""

REUSE: Final = 10_000
"""A process is ended after so many tasks, so that memory that they leaked goes back."""

_CLOSED: Final = "the pool of processes is closed"

_reply_decoder = msgspec.msgpack.Decoder(Reply)


class ProcessPool:
    """Runs handlers in up to `processes` spawned processes, for one event loop.

    They are started on demand and used again, and know neither Ctrl-C nor SIGTERM: only a timeout,
    a cancellation or the end of this process ends them.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._slots = asyncio.Semaphore(processes or os.cpu_count() or 1)
        self._idle: list[WorkerProcess] = []
        self._busy: set[WorkerProcess] = set()
        self._preparing: set[asyncio.Task[WorkerProcess]] = set()
        self._reapers: list[threading.Thread] = []
        self._closed = False
        self._changed = asyncio.Event()

    async def run(
        self,
        handler: Handler,
        info: TaskInfo,
        timeout: float | None,  # noqa: ASYNC109 - a timeout has to end the process
        claim: Claim | None = None,
    ) -> Any:
        """Run a process handler with a task; what it returned, as msgpack carries it.

        `timeout` seconds are counted from when a process is ready, which has imported the handler.
        When they are over (TimeoutError), or the caller is cancelled, the process is killed.
        NotBegun when `claim` says, once a process is ready, that the task may not begin any more.
        Raises Retry, SkipRetry and InvalidTask as the handler did, and HandlerError for any other
        exception and for a process that died.
        """
        data = codec.encode(info)
        try:
            reply = await self._run(handler.path, data, timeout, claim, fresh=False)
        except NeverBegan:  # it died while it was idle: a fresh one will do
            try:
                reply = await self._run(handler.path, data, timeout, claim, fresh=True)
            except NeverBegan as error:
                msg = f"the process died before it could run {handler.path}"
                raise HandlerError(msg) from error
        return _outcome(_reply_decoder.decode(reply))

    async def _run(
        self, path: str, info: bytes, limit: float | None, claim: Claim | None, *, fresh: bool
    ) -> bytes:
        process = await self._take(path, fresh=fresh)
        if claim is not None and not claim.may_begin():
            self._keep(process)
            raise NotBegun
        self._busy.add(process)
        try:
            async with asyncio.timeout(limit):
                reply = await process.run(path, info)
        except BaseException:
            self._busy.discard(process)
            self._end(process, kill=True)
            self._release()
            raise
        self._busy.discard(process)
        self._keep(process)
        return reply

    async def _take(self, path: str, *, fresh: bool) -> WorkerProcess:
        """A process of our own that has imported the handler.

        A caller that is cancelled while it waits for the import does not end it: else a handler
        whose import takes longer than its timeout would never run.
        """
        await self._slots.acquire()
        if self._closed:
            self._release()
            raise HandlerError(_CLOSED)
        process = self._idle.pop() if self._idle and not fresh else None
        if process is not None:
            if process.retirement is not None:
                process.retirement.cancel()
            if process.is_prepared(path):
                return process
        preparing = asyncio.create_task(self._prepare(process, path))
        self._preparing.add(preparing)
        preparing.add_done_callback(self._prepared)
        try:
            return await asyncio.shield(preparing)
        except asyncio.CancelledError:
            if preparing.cancelled():  # by `close`
                raise HandlerError(_CLOSED) from None
            preparing.add_done_callback(self._keep_prepared)
            raise

    async def _prepare(self, process: WorkerProcess | None, path: str) -> WorkerProcess:
        try:
            process = process or WorkerProcess()
            return await process.prepare(path)
        except BaseException:
            if process is not None:
                self._end(process, kill=True)
            self._release()
            raise

    def _prepared(self, preparing: asyncio.Task[WorkerProcess]) -> None:
        self._preparing.discard(preparing)
        self._changed.set()

    def _keep_prepared(self, preparing: asyncio.Task[WorkerProcess]) -> None:
        if not preparing.cancelled() and preparing.exception() is None:
            self._keep(preparing.result())

    def _keep(self, process: WorkerProcess) -> None:
        """Put a process that is well back, for the next one."""
        if self._closed or process.calls >= REUSE:
            self._end(process, kill=False)
        else:
            self._idle.append(process)
            loop = asyncio.get_running_loop()
            process.retirement = loop.call_later(IDLE_S, self._retire, process)
        self._release()

    def _retire(self, process: WorkerProcess) -> None:
        self._idle.remove(process)
        self._end(process, kill=False)

    def _release(self) -> None:
        self._slots.release()
        self._changed.set()

    def _end(self, process: WorkerProcess, *, kill: bool) -> None:
        self._reapers = [one for one in self._reapers if one.is_alive()]
        self._reapers.append(process.end(kill=kill))

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - it is no error to reach it
        """Take no more tasks, give running ones so many seconds, and end all processes."""
        self._closed = True
        while self._idle:
            self._end(self._idle.pop(), kill=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._busy or self._preparing:
                    self._changed.clear()
                    await self._changed.wait()
        for preparing in self._preparing:
            preparing.cancel()
        for process in self._busy:
            self._end(process, kill=True)
        await asyncio.to_thread(self._reap, 5.0)

    def _reap(self, patience: float) -> None:
        ends = time.monotonic() + patience
        for thread in self._reapers:
            thread.join(max(0.0, ends - time.monotonic()))


def _outcome(reply: Reply) -> Any:
    """Return or raise what the handler did."""
    match reply:
        case in_process.Value(encoded):
            return codec.decode(encoded)
        case in_process.Unencodable(name):
            # Of the same name, so that whoever wants to encode it says what cannot be encoded.
            return type(name, (), {})()
        case in_process.AskedRetry(text, delay_s):
            raise Retry(text, delay=delay_s)
        case in_process.AskedSkipRetry(text):
            raise SkipRetry(text)
        case in_process.Unfit(text):
            raise InvalidTask(text)
        case in_process.Raised(name, text, traceback):
            error = HandlerError(f"{name}: {text}" if text else name, traceback)
            error.original = original_of(reply)
            raise error
