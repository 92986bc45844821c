"""One process for `def` handlers as the server sees it: its sockets and the calls sent to it.

The process leads its own session, so that programs started by its handlers are killed with it.
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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakSet

from qsync.errors import LeaseLost, QsyncError
from qsync.server import process_pool_child
from qsync.server.child_context import PROGRESS, ChildSetup
from qsync.server.queue_state import Claim

START_TIMEOUT_S: Final = 60.0
"""Longest time that a process may take to start and to import a handler, in seconds."""

STACK_S: Final = 1.0
"""Longest time to wait for the stack of a handler, in seconds."""

EXIT_S: Final = 5.0
"""Longest time that a process may take to end before it is killed, in seconds."""

WINDOW: Final = 16
"""Maximum number of unanswered calls per process."""

QUICK_S: Final = 0.005
"""Duration below which a call counts as quick, in seconds. If its calls are quick, a process
receives further calls before it has replied."""

_spawned: WeakSet[WorkerProcess] = WeakSet()


class HandlerError(QsyncError):
    """A handler in another process raised an exception, or its process died.

    If the handler raised, the message begins with the name of the original exception, and
    `traceback` is its traceback. If this process has the exception's class, `original` is an
    exception of that class.
    """

    original: BaseException | None = None

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
        if traceback:
            self.add_note(f"In the handler's process:\n{traceback}")


class ProcessNotStarted(Exception):
    """The process ended before it began to import the handler."""


class HandlerCall:
    """One call of a handler; the future gets the reply in msgpack."""

    __slots__ = ("claim", "future", "info", "limit", "path", "tries")

    def __init__(
        self,
        path: str,
        info: bytes,
        limit: float | None,
        claim: Claim | None,
        future: asyncio.Future[bytes],
    ) -> None:
        self.path: str = path
        self.info: bytes = info
        """The task in msgpack; if empty, the process only imports the handler."""
        self.limit: float | None = limit
        self.claim: Claim | None = claim
        self.future: asyncio.Future[bytes] = future
        self.tries: int = 0
        """Number of processes that were to run this call but did not start, or died before they
        began any call."""


class WorkerProcess:
    """A spawned process and the calls sent to it, for one event loop.

    Before it begins a call, the process takes a ticket from a second socket. The server can take
    back the tickets that are left. So the server knows for certain which calls have begun, even if
    the process dies.
    """

    def __init__(
        self,
        on_answers: Callable[[WorkerProcess], None],
        on_death: Callable[[WorkerProcess, list[HandlerCall]], None],
        setup: ChildSetup | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_answers = on_answers
        self._on_death = on_death
        self._setup = setup
        self._owner = os.getpid()
        self._process: Any = None
        self._socket: socket.socket | None = None
        self._tickets: tuple[socket.socket, socket.socket] | None = None
        """Socket pair for tickets: the end to write to, and the end that both sides read from."""
        self._asks: tuple[socket.socket, socket.socket] | None = None
        """Socket pair on which the server requests the stack of the handler, with one byte per
        request."""
        self._asked: deque[asyncio.Future[str]] = deque()
        """Futures for the requested stacks, in order."""
        self._watched: int | None = None
        """File descriptor that becomes readable when the process ends."""
        self._number = 0
        """Number of the last ticket."""
        self._unsent = bytearray()
        self._received = bytearray()
        self._reaper: threading.Thread | None = None
        self._prepared: set[str] = set()
        self.sent: deque[HandlerCall] = deque()
        """Unanswered calls, in order; only the first one can have begun."""
        self.since: float = self._loop.time()
        """Time of the last answer, or of the first call to the idle process if that is later."""
        self.quick: bool = False
        """True if each of the last calls took less than QUICK_S, so that more calls may be sent
        ahead."""
        self.preparing = False
        self.dead: bool = False
        self.calls: int = 0
        self.timer: asyncio.TimerHandle | None = None

    def is_prepared(self, path: str) -> bool:
        """Return whether the process has imported the handler."""
        return path in self._prepared

    @property
    def takes_more(self) -> bool:
        """Return whether another call may be sent before the process has answered the earlier
        ones."""
        return self.quick and not self.preparing and not self._unsent and len(self.sent) < WINDOW

    async def prepare(self, path: str) -> None:
        """Start the process if it is not running, and import the handler in it."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                if self._process is None:
                    await self._start()
                call = HandlerCall(path, b"", None, None, self._loop.create_future())
                self.send([call])
                await call.future
        except TimeoutError:
            msg = f"no process could start and import {path} within {START_TIMEOUT_S:.0f} s"
            raise HandlerError(msg) from None
        self._prepared.add(path)
        self.quick = False

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._tickets = socket.socketpair()
        self._asks = socket.socketpair()
        sockets = (theirs, self._tickets[1], self._asks[1])
        with theirs:
            self._process = multiprocessing.get_context("spawn").Process(
                target=process_pool_child.serve,
                args=(*sockets, self._setup, *process_pool_child.at_start),
                daemon=True,
            )
            _spawned.add(self)
            await asyncio.to_thread(self._process.start)  # takes about 20 ms
        if self._reaper is not None:  # `end` was called in the meantime
            ours.close()
            self._close_tickets()
            return
        ours.setblocking(False)
        self._socket = ours
        self._watched = _descriptor_of(self._process)
        self._loop.add_reader(ours, self.receive)
        self._loop.add_reader(self._watched, self._has_died)

    def send(self, calls: Sequence[HandlerCall]) -> None:
        """Send calls to the process, which answers them in this order."""
        if not self.sent:
            self.since = self._loop.time()
        self.sent += calls
        requests, tickets = self._unsent, bytearray()
        for call in calls:
            self._number += 1
            self.calls += bool(call.info)
            where = call.path.encode()
            ticket = struct.pack(">I", self._number)
            requests += struct.pack(">IH", len(where) + len(call.info), len(where))
            requests += ticket + where + call.info
            tickets += ticket
        if self._tickets is not None:
            self._tickets[0].send(tickets)
        self._flush()

    def _flush(self) -> None:
        """Write as much as the socket accepts.

        If the process has ended, discard the data; `_has_died` handles its end.
        """
        if self._socket is None or not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    async def stack(self) -> str:
        """Return the stack of the running handler; empty if it ends or the process is busy."""
        call = self.sent[0] if self.sent else None
        if call is None or self._asks is None or len(self._asked) >= WINDOW:
            return ""
        asked: asyncio.Future[str] = self._loop.create_future()
        self._asked.append(asked)
        try:
            self._asks[0].send(b"?")
            async with asyncio.timeout(STACK_S):
                text = await asked
        except (OSError, TimeoutError):
            return ""
        return text if self.sent and self.sent[0] is call else ""

    def recall(self) -> list[HandlerCall]:
        """Take back the calls that have not begun, and return them; the process will not run
        them."""
        if self._tickets is None:
            return []
        try:
            count = len(self._tickets[1].recv(8 * WINDOW, socket.MSG_DONTWAIT)) // 4
        except BlockingIOError:
            return []
        recalled = [self.sent.pop() for _ in range(count)]
        recalled.reverse()
        return recalled

    def receive(self) -> bool:
        """Read and deliver the answers that have arrived; return False if there are none."""
        data = self._read()
        if not data:
            return False
        received = self._received
        received += data
        count = end = 0
        progress = b""
        while len(received) >= end + 4:
            start = end + 4
            head = int.from_bytes(received[end:start], "big")
            size = head & ~(process_pool_child.NOTE | process_pool_child.STACK)
            if len(received) < start + size:
                break
            end = start + size
            message = bytes(received[start:end])
            if head & process_pool_child.NOTE:
                progress = message
                continue
            if head & process_pool_child.STACK:
                self._deliver_stack(message)
                continue
            self._report(progress)
            progress = b""
            count += 1
            self._answered(message)
        self._report(progress)
        del received[:end]
        if count:
            now = self._loop.time()
            self.quick = now - self.since < QUICK_S * count
            self.since = now
            self._on_answers(self)
        return True

    def _read(self) -> bytes:
        """Return the bytes that the process has sent; empty if it has sent none or has ended."""
        if self._socket is None:
            return b""
        try:
            data = self._socket.recv(256 * 1024)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:  # the process has ended, so `_has_died` will be called
            self._loop.remove_reader(self._socket)
        return data

    def _report(self, progress: bytes) -> None:
        """Forward the last progress report of the running call, if there is one."""
        if progress and self.sent and (claim := self.sent[0].claim) is not None:
            with contextlib.suppress(LeaseLost):  # a lost lease already stops the run
                claim.progress(*PROGRESS.unpack(progress))

    def _deliver_stack(self, message: bytes) -> None:
        asked = self._asked.popleft()
        if not asked.done():
            asked.set_result(message.decode(errors="replace"))

    def _answered(self, reply: bytes) -> None:
        future = self.sent.popleft().future
        if not future.done():
            future.set_result(reply)
        if self.sent and (claim := self.sent[0].claim) is not None:
            claim.may_begin()  # only to record when the call begins

    def _has_died(self) -> None:
        """React to a process that has ended although the server did not end it.

        Deliver the answers of the process, fail its running call, and return its other calls to the
        pool.
        """
        self.dead = True
        while self.receive():  # answers that the process wrote before it ended
            pass
        recalled = self.recall()
        self._forget()
        self._kill_group()  # before the id of the process can be reused
        begun, self.sent = self.sent, deque()
        if begun:
            threading.Thread(
                target=self._fail_running, args=(begun[0],), name="qsync-reaper", daemon=True
            ).start()
        else:
            for call in recalled:
                call.tries += 1
                if not call.info:
                    fail(call, ProcessNotStarted())
        self._on_death(self, recalled)

    def _fail_running(self, call: HandlerCall) -> None:
        """Fail the call that was running when the process died, and name the cause of the death."""
        self._process.join(EXIT_S)
        code = self._process.exitcode
        cause = "the cause is unknown" if code is None else manner_of(code)
        error = HandlerError(f"the process died: {cause}")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(fail, call, error)

    def end(self, *, kill: bool) -> threading.Thread:
        """Kill the process, or let it end once idle; return the thread that reaps it."""
        if self._reaper is not None:
            return self._reaper
        self.dead = True
        if self.timer is not None:
            self.timer.cancel()
        if kill:
            self._kill_group()
        self._forget()
        self._reaper = threading.Thread(target=self._reap, name="qsync-reaper", daemon=True)
        self._reaper.start()
        return self._reaper

    def _forget(self) -> None:
        """Close the sockets and stop watching; an idle process then ends."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            if self._watched != getattr(self._process, "sentinel", None):
                os.close(self._watched)
            self._watched = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
            self._close_tickets()

    def _close_tickets(self) -> None:
        for end in (*(self._tickets or ()), *(self._asks or ())):
            end.close()
        self._tickets = self._asks = None

    def _reap(self) -> None:
        if self._process is None or self._process.pid is None:
            return
        self._process.join(EXIT_S)
        if self._process.exitcode is None:
            self._kill_group()
            self._process.join(EXIT_S)

    def _kill_group(self) -> None:
        """Kill the process and the programs that its handlers started."""
        process = self._process
        if process is None or process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.exitcode is None:  # the process may not lead a session yet
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def manner_of(code: int) -> str:
    """Return how a process with this exit code ended, as text."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def fail(call: HandlerCall, error: BaseException) -> None:
    """Fail the call with this error if its caller is still waiting."""
    if not call.future.done():
        call.future.set_exception(error)


def _descriptor_of(process: Any) -> int:
    """Return a descriptor that becomes readable when the process ends: a pidfd if possible.

    Programs that a handler starts may inherit the other end of the sentinel and keep it open. The
    sentinel would then become readable only once those programs have ended.
    """
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return int(os.pidfd_open(process.pid))
    return int(process.sentinel)


@atexit.register
def _kill_all() -> None:
    """Kill all processes at exit.

    Otherwise, multiprocessing would wait for the processes, which ignore SIGTERM.
    """
    for process in list(_spawned):
        if process._reaper is None and process._owner == os.getpid():  # not in a forked child
            process._kill_group()
