"""A pool of processes for `def` handlers that need the CPU, or have to be ended by force.

Each process is a pebble pool of its own with one worker: the pipes and locks of a process are its
alone, so one that is killed in the middle of a message takes nothing else along, and after any
such end its pool is thrown away whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, Self

import msgspec

from qsync import codec
from qsync.errors import ConfigError, InvalidTask, QsyncError, Retry, SkipRetry
from qsync.mux import Handler
from qsync.server import in_process
from qsync.server.in_process import Reply
from qsync.server.lane import Claim, NotBegun
from qsync.task import TaskInfo

log = logging.getLogger("qsync.server")

START_S: Final = 60.0
"""How long a process may take to start and to import a handler."""

IDLE_S: Final = 60.0
"""A process that had nothing to do for so long is ended."""

REUSE: Final = 1000
"""A process is ended after so many tasks, so that memory that they leaked goes back."""

_CLOSED: Final = "the pool of processes is closed"

_reply_decoder = msgspec.msgpack.Decoder(Reply)


class HandlerError(QsyncError):
    """A handler in another process raised, or its process died.

    The message begins with the name of the original exception; `traceback` is its traceback.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
        if traceback:
            self.add_note(f"In the process of the handler:\n{traceback}")


class _NeverBegan(Exception):
    """The process ended before it took the task."""


def _pebble() -> Any:
    try:
        import pebble
    except ImportError:
        msg = "handlers with executor='process' need pebble: pip install 'qsync-py[process]'"
        raise ConfigError(msg) from None
    return pebble


class _Process:
    """One process, started when the first call is made."""

    def __init__(self) -> None:
        self._pool = _pebble().ProcessPool(
            max_workers=1,
            initializer=in_process.begin,
            initargs=tuple(in_process.at_start),
            context=multiprocessing.get_context("spawn"),
        )
        self._pid: int | None = None
        self._prepared: set[str] = set()
        self._answer: asyncio.Future[Any] | None = None
        self._reaper: threading.Thread | None = None
        self.calls = 0
        self.retirement: asyncio.TimerHandle | None = None

    def is_prepared(self, path: str) -> bool:
        """Whether the handler has been imported there."""
        return path in self._prepared

    async def prepare(self, path: str) -> Self:
        """The process runs and has imported the handler; itself, for convenience."""
        try:
            async with asyncio.timeout(START_S):
                if self._pid is None:
                    self._pid = await self._call(os.getpid)
                await self._call(in_process.prepare, path)
        except TimeoutError:
            msg = f"no process could start and import {path} within {START_S:.0f} s"
            raise HandlerError(msg) from None
        self._prepared.add(path)
        return self

    async def run(self, path: str, info: bytes) -> bytes:
        """Run a handler; HandlerError when the process died of it, _NeverBegan when it was dead."""
        self.calls += 1
        reply: bytes = await self._call(in_process.run_in_child, path, info)
        return reply

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            if self._pid is None:  # the process is started by this, which takes some 20 ms
                future = await asyncio.to_thread(self._pool.schedule, function, args=args)
            else:
                future = self._pool.schedule(function, args=args)
            self._answer = asyncio.wrap_future(future)
            return await self._answer
        except asyncio.CancelledError:
            if self._reaper is not None:  # so it was not the caller who was cancelled
                raise HandlerError("the process was killed: the server stops") from None
            raise
        except _pebble().ProcessExpired as error:
            raise HandlerError(f"the process died: {_manner(error.exitcode)}") from None
        except (BrokenProcessPool, RuntimeError) as error:
            raise _NeverBegan(str(error)) from error

    def end(self, *, kill: bool) -> threading.Thread:
        """The process is killed, or ends by itself when it is idle; the thread sees to the rest."""
        if self._reaper is not None:
            return self._reaper
        if self.retirement is not None:
            self.retirement.cancel()
        self._pool.stop()  # first, or pebble would put another process in its place
        self._reaper = threading.Thread(target=self._pool.join, name="qsync-reaper", daemon=True)
        if self._answer is not None:
            self._answer.cancel()  # pebble does not tell of an end any more
        if kill:
            for process in multiprocessing.active_children():
                if process.pid == self._pid:
                    process.kill()
        self._reaper.start()
        return self._reaper


class ProcessPool:
    """Runs handlers in up to `processes` spawned processes, for one event loop.

    They are started on demand and used again, and know neither Ctrl-C nor SIGTERM: only a timeout,
    a cancellation or the end of this process ends them. ConfigError when pebble is not installed.
    """

    def __init__(self, processes: int | None = None) -> None:
        _pebble()
        self._slots = asyncio.Semaphore(processes or os.cpu_count() or 1)
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._preparing: set[asyncio.Task[_Process]] = set()
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
        except _NeverBegan:  # it died while it was idle: a fresh one will do
            try:
                reply = await self._run(handler.path, data, timeout, claim, fresh=True)
            except _NeverBegan as error:
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

    async def _take(self, path: str, *, fresh: bool) -> _Process:
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

    async def _prepare(self, process: _Process | None, path: str) -> _Process:
        try:
            process = process or _Process()
            return await process.prepare(path)
        except BaseException:
            if process is not None:
                self._end(process, kill=True)
            self._release()
            raise

    def _prepared(self, preparing: asyncio.Task[_Process]) -> None:
        self._preparing.discard(preparing)
        self._changed.set()

    def _keep_prepared(self, preparing: asyncio.Task[_Process]) -> None:
        if not preparing.cancelled() and preparing.exception() is None:
            self._keep(preparing.result())

    def _keep(self, process: _Process) -> None:
        """Put a process that is well back, for the next one."""
        if self._closed or process.calls >= REUSE:
            self._end(process, kill=False)
        else:
            self._idle.append(process)
            loop = asyncio.get_running_loop()
            process.retirement = loop.call_later(IDLE_S, self._retire, process)
        self._release()

    def _retire(self, process: _Process) -> None:
        self._idle.remove(process)
        self._end(process, kill=False)

    def _release(self) -> None:
        self._slots.release()
        self._changed.set()

    def _end(self, process: _Process, *, kill: bool) -> None:
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
            raise HandlerError(f"{name}: {text}" if text else name, traceback)


def _manner(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
