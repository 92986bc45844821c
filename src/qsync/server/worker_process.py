"""One process for `def` handlers, as the server sees it: a socket, and requests one at a time.

It leads a session of its own, so the programs that its handlers start are killed with it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import threading
from typing import Any, Final, Self
from weakref import WeakSet

from qsync.errors import QsyncError
from qsync.server import in_process

START_S: Final = 60.0
"""How long a process may take to start and to import a handler."""

EXIT_S: Final = 5.0
"""How long a process that was told to end may take."""

_spawned: WeakSet[WorkerProcess] = WeakSet()


class HandlerError(QsyncError):
    """A handler in another process raised, or its process died.

    The message begins with the name of the original exception; `traceback` is its traceback, and
    `original` an exception of the same class, where this process knows it.
    """

    original: Exception | None = None

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
        if traceback:
            self.add_note(f"In the process of the handler:\n{traceback}")


class NeverBegan(Exception):
    """The process ended before it took the task."""


class WorkerProcess:
    """A spawned process. It is used by one caller at a time, on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = os.getpid()
        self._process: Any = None
        self._socket: socket.socket | None = None
        self._watched: int | None = None
        """A descriptor that can be read once the process has ended."""
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._reaper: threading.Thread | None = None
        self._died = self._untaken = False
        self._prepared: set[str] = set()
        self.calls = 0
        self.retirement: asyncio.TimerHandle | None = None

    def is_prepared(self, path: str) -> bool:
        """Whether the handler has been imported there."""
        return path in self._prepared

    async def prepare(self, path: str) -> Self:
        """The process runs and has imported the handler; itself, for convenience."""
        try:
            async with asyncio.timeout(START_S):
                if self._process is None:
                    await self._start()
                await self._ask(path, b"")
        except TimeoutError:
            msg = f"no process could start and import {path} within {START_S:.0f} s"
            raise HandlerError(msg) from None
        self._prepared.add(path)
        return self

    async def run(self, path: str, info: bytes) -> bytes:
        """Run a handler; HandlerError when the process died of it, NeverBegan when it was dead."""
        self.calls += 1
        return await self._ask(path, info)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = multiprocessing.get_context("spawn").Process(
                target=in_process.serve, args=(theirs, *in_process.at_start), daemon=True
            )
            _spawned.add(self)
            await asyncio.to_thread(self._process.start)  # it takes some 20 ms
        if self._reaper is not None:  # nobody waits for it any more
            ours.close()
            return
        ours.setblocking(False)
        self._socket = ours
        self._watched = _descriptor_of(self._process)
        self._loop.add_reader(ours, self._receive)
        self._loop.add_reader(self._watched, self._has_died)

    async def _ask(self, path: str, info: bytes) -> bytes:
        if self._died or self._socket is None:
            raise NeverBegan
        self._answer = answer = self._loop.create_future()
        where = path.encode()
        request = struct.pack(">IH", len(where) + len(info), len(where)) + where + info
        try:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(request)
            if sent < len(request):
                await self._loop.sock_sendall(self._socket, memoryview(request)[sent:])
        except OSError as error:
            raise NeverBegan from error
        try:
            reply: bytes = await answer
            return reply
        finally:
            self._answer = None

    def _receive(self) -> None:
        """Take what can be read of an answer."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:  # it has ended without having read the request
            self._untaken, data = True, b""
        if not data:  # how it ended, its exit code will say
            self._loop.remove_reader(self._socket)
            return
        received = self._received
        received += data
        if len(received) < 4:
            return
        size = int.from_bytes(received[:4], "big")
        if len(received) >= 4 + size and self._answer is not None and not self._answer.done():
            self._answer.set_result(bytes(received[4 : 4 + size]))
            received.clear()

    def _has_died(self) -> None:
        """The process has ended by itself, or somebody else has killed it."""
        self._receive()  # what it wrote before
        self._died = True
        self._forget()
        self._kill_group()  # before it is reaped, since until then its id is nobody else's
        answer = self._answer
        if answer is None or answer.done():
            return
        if self._untaken:
            answer.set_exception(NeverBegan())
            return

        def tell() -> None:
            self._process.join(EXIT_S)
            code = self._process.exitcode
            manner = "it cannot be told how" if code is None else manner_of(code)
            error = HandlerError(f"the process died: {manner}")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_fail, answer, error)

        threading.Thread(target=tell, name="qsync-reaper", daemon=True).start()

    def end(self, *, kill: bool) -> threading.Thread:
        """The process is killed, or ends by itself when it is idle; the thread sees to the rest."""
        if self._reaper is not None:
            return self._reaper
        if self.retirement is not None:
            self.retirement.cancel()
        if kill:
            self._kill_group()
        self._forget()
        if self._answer is not None:
            _fail(self._answer, HandlerError("the process was killed: the server stops"))
        self._reaper = threading.Thread(target=self._reap, name="qsync-reaper", daemon=True)
        self._reaper.start()
        return self._reaper

    def _forget(self) -> None:
        """Listen no more; without the socket an idle process ends."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            if self._watched != getattr(self._process, "sentinel", None):
                os.close(self._watched)
            self._watched = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _reap(self) -> None:
        if self._process is None or self._process.pid is None:
            return
        self._process.join(EXIT_S)
        if self._process.exitcode is None:
            self._kill_group()
            self._process.join(EXIT_S)

    def _kill_group(self) -> None:
        """Kill the process and the programs that its handlers have started."""
        process = self._process
        if process is None or process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.exitcode is None:  # it may not lead its session yet
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def manner_of(code: int) -> str:
    """How a process ended, by its exit code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _fail(answer: asyncio.Future[bytes], error: HandlerError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _descriptor_of(process: Any) -> int:
    """Its sentinel would stay open in programs that its handlers start."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return int(os.pidfd_open(process.pid))
    return int(process.sentinel)


@atexit.register
def _kill_all() -> None:
    """multiprocessing would wait for them, and they heed no SIGTERM."""
    for process in list(_spawned):
        if process._reaper is None and process._owner == os.getpid():  # not of a forked copy
            process._kill_group()
