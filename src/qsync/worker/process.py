"""A child process of `qsync worker`, as its parent sees it.

Each child is told its server id, so that its leases can be given up the moment it dies. It shares a
socket with its parent: the parent writes the order of work, then {"ask": n} when it wants to know
how the child is, and holds the socket open, so a child whose parent died reads its end; the child
writes reports, one JSON object a line:

    {"queues": [...]}                   it has loaded the app and will serve these queues
    {"ready": true}                     it serves them
    {"error": "...", "trace": "..."}    it cannot, and ends; where that was raised
    {"retired": true}                   an operator told it to stop: it is not to be replaced
    {"files": [...]}                    source files that it has imported, to be watched
    {"answer": n, "condition": {...}, "rows": [...]}    how it is, and what it has counted
    {"rows": [...]}                     what it has counted, at its end
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import re
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from qsync.server.health import ProcessHealth, ServerHealth
from qsync.server.metrics import MetricRow

log = logging.getLogger("qsync.worker")

FIRST_S: Final = 1.0
"""A child that says of an error within its first second, and ends, has failed to start."""

LINE_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that one report may have: there may be many files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start. `order` is what each child is told, besides its number and its server id."""

    processes: int
    command: Sequence[str]
    order: Mapping[str, Any]
    queues: Sequence[str]
    shutdown_timeout: float
    reload: bool = False


def make_server_id() -> str:
    """A server id that no other server has, and that tells the host."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:24]
    return f"{host}-{secrets.token_hex(12)}"


class Child:
    """A child process, from its start on."""

    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.server_id = make_server_id()
        self.queues = list(plan.queues)
        self.error: str | None = None
        self.trace = ""
        """Where that was raised."""
        self.retired = False
        """An operator told it to stop."""
        self.code: int | None = None
        self.lived: float | None = None
        """Seconds from when it was ready to its end; None when it never was ready."""
        self.told_to_stop = 0
        self.changed = asyncio.Event()
        """Set when it is ready, and when it has ended."""
        self.ended = asyncio.Event()
        self.rows: list[MetricRow] = []
        """What it has counted, as far as it is known."""
        self._heard_at = time.monotonic()
        self._asking: dict[int, asyncio.Future[ServerHealth]] = {}
        self._questions = itertools.count(1)
        self._ready_at: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._killer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return 0 if self._process is None else self._process.pid

    @property
    def failed_to_start(self) -> bool:
        """It ended before it served, or hardly later by an error of its own.

        One that is killed while it serves has started: what it ran may be what killed it, and after
        three times that does so no more.
        """
        return self.lived is None or (self.lived < FIRST_S and self.error is not None)

    async def start(self, plan: Plan) -> asyncio.StreamReader:
        """Start the process and give it its order; what it reports can be read."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *plan.command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which passes it on
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        order = {**plan.order, "number": self.number, "server_id": self.server_id}
        self._writer.write(json.dumps(order).encode() + b"\n")
        return reader

    def _is_ready(self) -> None:
        """It serves its queues."""
        self._ready_at = time.monotonic()
        self.changed.set()

    async def ask(self, patience: float) -> ProcessHealth:
        """How it is now; it has so many seconds to answer."""
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
        return ProcessHealth(self.number, self.pid, condition, unheard_s)

    def hear(self, report: Mapping[str, Any]) -> None:
        """Take what it reports of itself."""
        self.error = report.get("error", self.error)
        self.trace = report.get("trace", self.trace)
        self.queues = report.get("queues", self.queues)
        self.retired = report.get("retired", self.retired)
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
        """Its exit code once it has ended; negative: the signal that killed it."""
        if self._process is None:
            msg = "the process has not been started"
            raise RuntimeError(msg)
        self.code = await self._process.wait()
        if self._ready_at is not None:
            self.lived = time.monotonic() - self._ready_at
        if self._killer is not None:
            self._killer.cancel()
        return self.code

    def has_ended(self, code: int) -> None:
        """It has ended, and nothing of it is left to see to."""
        self.code = code
        self.ended.set()
        self.changed.set()

    def stop(self, patience: float) -> None:
        """Tell it to stop, more urgently each time; it is killed when it takes longer."""
        self.told_to_stop += 1
        self._signal(signal.SIGTERM)
        if self._killer is not None:
            self._killer.cancel()
        self._killer = asyncio.get_running_loop().call_later(patience, self.kill)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.code is None:
            log.error("process %d (pid %d) does not stop and is killed", self.number, self.pid)
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def close(self) -> None:
        """Close the socket that it shared."""
        if self._writer is not None:
            self._writer.close()

    def manner(self) -> str:
        """How it ended, in words."""
        code = self.code
        if code is None:
            return "not at all"
        if code >= 0:
            return f"exit code {code}" + (f": {self.error}" if self.error else "")
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
