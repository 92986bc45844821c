"""A child process of `qsync worker`, as its parent sees it.

The parent chooses the child's server id, so it can release the child's leases as soon as the child
dies. Parent and child share a socket. The parent writes the order, which describes the server to
run, then {"ask": n} to ask for the child's health. The parent keeps the socket open, so a child
whose parent dies reads EOF. The child writes reports, one JSON object per line:

    {"queues": [...]}                   the app is loaded; the queues that it will serve
    {"ready": true}                     the child serves its queues
    {"error": "...", "trace": "..."}    the error that ends the child, and its traceback
    {"worn": "..."}                     the limit that it has reached: replace it
    {"retired": true}                   an operator stopped the child: do not replace it
    {"files": [...]}                    source files that it has imported, to be watched
    {"answer": n, "condition": {...}, "rows": [...]}    its health and its metrics
    {"rows": [...]}                     its last metrics, sent when it ends
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from qsync.server.health import ProcessHealth, ServerHealth
from qsync.server.metrics import MetricRow

log: Final = logging.getLogger("qsync.worker")

FIRST_S: Final = 1.0
"""Time after a child is ready, in seconds, in which an error still counts as a failure to start."""

LINE_LIMIT: Final = 16 * 1024 * 1024
"""Maximum size of one report, in bytes; a list of imported files can be long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The child process to start. Each child receives `order`, plus its number and its server
    id."""

    processes: int
    command: Sequence[str]
    order: Mapping[str, Any]
    queues: Sequence[str]
    shutdown_timeout: float
    reload: bool = False


def make_server_id() -> str:
    """Return a new, unique server id that begins with the host name."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:24]
    return f"{host}-{secrets.token_hex(12)}"


class Child:
    """One child process, from its start to its end."""

    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.server_id: str = make_server_id()
        self.queues: list[str] = list(plan.queues)
        self.error: str | None = None
        self.trace: str = ""
        """Traceback of `error`."""
        self.retired: bool = False
        """Whether an operator told the child to stop."""
        self.hopeless: bool = False
        """Whether a replacement process would end for the same reason."""
        self.worn: str | None = None
        """Limit that the child has reached, as text; None if it has reached none."""
        self.replacing = False
        """Whether the child waits for its turn to be replaced."""
        self.code: int | None = None
        self.uptime_s: float | None = None
        """Seconds from when the child was ready until it ended; None if it was never ready."""
        self.stopped: bool = False
        """Whether the child has reported that its server stopped without a failure."""
        self.stop_requests: int = 0
        self.changed: asyncio.Event = asyncio.Event()
        """Event that is set when the child is ready, and when it has ended."""
        self.ended: asyncio.Event = asyncio.Event()
        self.rows: list[MetricRow] = []
        """Metrics as of the child's last report."""
        self._heard_at = time.monotonic()
        self._asking: dict[int, asyncio.Future[ServerHealth]] = {}
        self._questions = itertools.count(1)
        self._ready_at: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._killer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Process id of the child; 0 before its start."""
        return 0 if self._process is None else self._process.pid

    @property
    def failed_to_start(self) -> bool:
        """Whether the child ended before it was ready, or soon after with its own error.

        A child that is killed while it serves counts as started, since one of its tasks may have
        killed it. A task that kills its server is dead once it has killed `max_crashes` servers.
        """
        return self.uptime_s is None or (self.uptime_s < FIRST_S and self.error is not None)

    async def start(self, plan: Plan) -> asyncio.StreamReader:
        """Start the process, send it its order, and return the reader for its reports."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *plan.command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C goes to the parent, which forwards it
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        order = {**plan.order, "number": self.number, "server_id": self.server_id}
        self._writer.write(json.dumps(order).encode() + b"\n")
        return reader

    def _is_ready(self) -> None:
        """Record that the child serves its queues."""
        self._ready_at = time.monotonic()
        self.changed.set()

    async def ask(self, patience: float) -> ProcessHealth:
        """Return the child's health.

        The result has no condition if the child does not answer within `patience` seconds.
        """
        number = next(self._questions)
        self._asking[number] = answer = asyncio.get_running_loop().create_future()
        condition = None
        try:
            if self._writer is not None:
                self._writer.write(b'{"ask": %d}\n' % number)
            async with asyncio.timeout(patience):
                condition = await answer
        except TimeoutError:
            pass
        finally:
            del self._asking[number]
        unheard_s = time.monotonic() - self._heard_at
        was_ready = self._ready_at is not None
        return ProcessHealth(self.number, self.pid, condition, unheard_s, was_ready=was_ready)

    def on_report(self, report: Mapping[str, Any]) -> None:
        """Apply a report from the child."""
        self.stopped = report.get("stopped", self.stopped)
        self.error = report.get("error", self.error)
        self.trace = report.get("trace", self.trace)
        self.queues = report.get("queues", self.queues)
        self.retired = report.get("retired", self.retired)
        self.hopeless = report.get("hopeless", self.hopeless)
        self.worn = report.get("worn", self.worn)
        if "rows" in report:
            self.rows = msgspec.convert(report["rows"], list[MetricRow])
        if "answer" in report:
            self._heard_at = time.monotonic()
            asked = self._asking.get(report["answer"])
            if asked is not None and not asked.done():
                asked.set_result(msgspec.convert(report["condition"], ServerHealth))
        if report.get("ready"):
            self._is_ready()

    async def wait(self) -> int:
        """Wait until the child ends; return its exit code, or the negated number of the signal that
        killed it."""
        if self._process is None:
            raise RuntimeError("the process has not been started")
        self.code = await self._process.wait()
        if self._ready_at is not None:
            self.uptime_s = time.monotonic() - self._ready_at
        if self._killer is not None:
            self._killer.cancel()
        return self.code

    def has_ended(self, code: int) -> None:
        """Record that the child has ended, its leases are released and its output has been read."""
        self.code = code
        self.ended.set()
        self.changed.set()

    def stop(self, patience: float) -> None:
        """Send SIGTERM; kill the child if it still runs after `patience` seconds.

        The child counts the signals, and stops more urgently with each one.
        """
        self.stop_requests += 1
        self._signal(signal.SIGTERM)
        if self._killer is not None:
            self._killer.cancel()
        self._killer = asyncio.get_running_loop().call_later(patience, self.kill)

    def kill(self) -> None:
        """Kill the child unless it has ended."""
        if self.code is None:
            log.error(
                "process %d (pid %d) did not stop in time and is killed", self.number, self.pid
            )
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def close(self) -> None:
        """Close the parent's end of the socket."""
        if self._writer is not None:
            self._writer.close()

    def exit_reason(self) -> str:
        """Describe how the child ended."""
        code = self.code
        if code is None:
            return "not at all"
        if code >= 0:
            return f"exit code {code}" + (f": {self.error}" if self.error else "")
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"


REAP_INTERVAL_S: Final = 1.0
"""Time between two checks for orphans that have ended, in seconds."""


def reap(ours: Collection[int]) -> int:
    """Reap ended processes, up to the first in `ours`, which asyncio reaps; return their number.

    A process that a handler started becomes a child of PID 1 when the handler's process dies.
    """
    reaped = 0
    with contextlib.suppress(ChildProcessError):  # this process has no children
        while True:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if child is None or child.si_pid in ours:
                break
            os.waitpid(child.si_pid, os.WNOHANG)
            reaped += 1
    return reaped


async def keep_reaping(ours: Callable[[], Collection[int] | None]) -> None:
    """Reap orphans until cancelled; skip a round while `ours` returns None (not known)."""
    while True:
        reapable = ours()
        if reapable is not None:
            reap(reapable)
        await asyncio.sleep(REAP_INTERVAL_S)
