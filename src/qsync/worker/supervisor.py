"""The parent of `qsync worker`: starts servers as child processes and restarts those that die.

The first SIGTERM or SIGINT stops the children gracefully, the second stops them immediately, and
the third stops them without any cleanup. SIGHUP replaces the children one after another: each old
child stops once its replacement is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from qsync.server.error_log import log_trace
from qsync.server.health import ProcessHealth
from qsync.server.metrics import MetricRow, MetricTotals
from qsync.worker.file_watcher import FileWatcher
from qsync.worker.lease_abandoner import LeaseAbandoner
from qsync.worker.process import FIRST_S, Child, Plan, keep_reaping

log: Final = logging.getLogger("qsync.worker")

MAX_START_FAILURES: Final = 5
"""Number of successive failures to start after which the worker gives up."""

RETRY_START_S: Final = 0.2
"""Delay before the second attempt to start a child, in seconds; it doubles with each attempt."""

STEADY_S: Final = 2.0
"""Lifetime, in seconds, after which a child that ends is replaced almost immediately, so that a
single crash hardly delays other tasks. The delay before a restart doubles each time a child ends
earlier."""

REPLACEMENT_START_S: Final = 60.0
"""How long a replacement child may take to load the app, in seconds."""

GIVE_UP_S: Final = 3.0
"""How long the worker tries to release the leases of dead servers after all children have stopped,
in seconds."""

LAST_REPORT_S: Final = 0.2
"""Longest wait for the last report of a child that has ended, in seconds."""

ECHO_S: Final = 0.2
"""Time within which repeated signals count as one, in seconds. On Ctrl-C, a terminal and a wrapper
such as `uv run` each send a signal."""

KILL_AFTER_S: Final = 5.0
"""Time beyond `shutdown_timeout` after which a child that does not stop is killed, in seconds."""


@dataclass(slots=True)
class _ChildSlot:
    """A slot for one child; the child that replaces it uses the same slot."""

    number: int
    child: Child | None = None
    failures: int = 0
    restarts: int = 0
    retired: bool = False
    """Whether an operator stopped the child; the slot then stays empty."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Event that is set when the child ends, when it is replaced, and when the worker stops."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def delay(self, child: Child) -> float:
        """Return how long to wait before a restart, in seconds, given the child that ended."""
        uptime_s = child.uptime_s or 0.0
        self.failures = self.failures + 1 if child.failed_to_start else 0
        self.restarts = 0 if uptime_s >= STEADY_S else self.restarts
        self.restarts += 1
        first = RETRY_START_S if self.failures else 0.1
        return min(5.0, first * 2.0 ** (self.restarts - 1))


def _tell_end(child: Child, level: int, then: str = "") -> None:
    """Log how a child ended, in one record."""
    failed = child.failed_to_start and not child.stop_requests
    verb = "failed to start" if failed else "ended"
    text = f"process {child.number} (pid {child.pid}) {verb}: {child.exit_reason()}"
    log_trace(log, level, f"{text}; {then}" if then else text, child.trace, {})


async def _report(slot: _ChildSlot, child: Child | None, patience: float) -> ProcessHealth:
    if child is None:
        return ProcessHealth(slot.number, 0, None, ended="has not started yet")
    if child.ended.is_set():
        # Omit the error's text, because it may contain secrets and any client of the health port
        # would see it.
        how = child.exit_reason().partition(": ")[0]
        return ProcessHealth(slot.number, child.pid, None, ended=f"ended: {how}")
    return await child.ask(patience)


class Supervisor:
    """Keeps `plan.processes` children running until the worker is stopped."""

    def __init__(self, plan: Plan, abandoner: LeaseAbandoner) -> None:
        self._plan = plan
        self._abandoner = abandoner
        self._slots = [_ChildSlot(number) for number in range(1, plan.processes + 1)]
        self._children: set[Child] = set()
        self._launching = 0
        self._stopping = asyncio.Event()
        self._stops = 0
        self._last_signal = -math.inf
        self._rolling = asyncio.Lock()
        self._watch = FileWatcher()
        self._ledger = MetricTotals()
        self._restarts = 0
        self._failed: str | None = None
        self._unclean = False
        self._was_terminal = sys.stdin is not None and sys.stdin.isatty()

    async def run(self) -> int:
        """Run until the worker is stopped or children fail to start; return the exit code."""
        reaping = None
        if os.getpid() == 1:
            reaping = asyncio.create_task(keep_reaping(self._pids))
        with self._signals():
            async with asyncio.TaskGroup() as self._tasks:
                for slot in self._slots:
                    self._tasks.create_task(self._supervise_slot(slot))
                if self._plan.reload:
                    self._tasks.create_task(self._reload())
        if reaping is not None:
            reaping.cancel()
        if not await asyncio.to_thread(self._abandoner.wait, GIVE_UP_S):
            log.warning(
                "leases of dead servers are not released; their tasks wait until the leases expire"
            )
        if self._failed is not None:
            log.error("giving up: %s", self._failed)
        return 1 if self._failed is not None or self._unclean else 0

    async def ask(self, patience: float) -> list[ProcessHealth]:
        """Return the health of each process; a process may take `patience` seconds to answer."""
        children = [(slot, slot.child) for slot in self._slots if not slot.retired]
        return await asyncio.gather(*[_report(slot, child, patience) for slot, child in children])

    def rows(self) -> list[MetricRow]:
        """Return the sums of the processes' metrics, as of their last reports.

        Thread-safe.
        """
        return self._ledger.rows()

    @property
    def restarts(self) -> int:
        """Number of processes that ended without an order to stop."""
        return self._restarts

    def _pids(self) -> set[int] | None:
        """Return the process ids of the children; None while a child is being started."""
        return None if self._launching else {child.pid for child in self._children}

    # Running one child in each slot.

    async def _supervise_slot(self, slot: _ChildSlot) -> None:
        """Keep a child running in this slot until the worker stops."""
        slot.child = child = await self._launch(slot)
        while not self._stopping.is_set():
            slot.changed.clear()
            child = slot.child
            if not child.ended.is_set():
                await slot.changed.wait()
                continue
            if child.retired:
                self._retire(slot)
                return
            delay = slot.delay(child)
            if child.hopeless and not self._plan.reload:
                self._failed = child.exit_reason()
                self._stop()
                return
            if slot.failures >= MAX_START_FAILURES and not self._plan.reload:
                self._give_up(child)
                return
            await self._pause(slot, child, delay)
            async with slot.lock:
                if slot.child is child and not self._stopping.is_set():
                    slot.child = await self._launch(slot)

    def _retire(self, slot: _ChildSlot) -> None:
        """Leave the slot empty, because an operator stopped its process.

        If no process is left, the worker ends.
        """
        slot.retired = True
        if slot.child is not None and slot.child.code:
            _tell_end(slot.child, logging.ERROR)
        log.info("process %d was told to stop and is not restarted", slot.number)
        if all(other.retired for other in self._slots):
            log.info("all processes were told to stop: the worker exits")
            self._stopping.set()

    async def _pause(self, slot: _ChildSlot, child: Child, delay: float) -> None:
        self._restarts += 1
        if self._plan.reload and child.failed_to_start:
            _tell_end(child, logging.ERROR, "it restarts when a file changes")
            await slot.changed.wait()
            return
        if child.failed_to_start:
            tries = f"try {slot.failures} of {MAX_START_FAILURES}, the next in {delay:.1f} s"
            _tell_end(child, logging.ERROR, tries)
        else:
            _tell_end(child, logging.WARNING, f"another starts in {delay:.1f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await slot.changed.wait()

    async def _launch(self, slot: _ChildSlot) -> Child:
        """Start and return a new child; if the start fails, return a child that has already
        ended."""
        child = Child(slot.number, self._plan)
        self._launching += 1
        try:
            reader = await child.start(self._plan)
            self._children.add(child)
        except OSError as error:
            child.error = f"it cannot be started: {error}"
            child.has_ended(1)
            return child
        finally:
            self._launching -= 1
        self._ledger.add(child)
        self._tasks.create_task(self._reap(slot, child, reader))
        log.info("process %d started, pid %d, server %s", child.number, child.pid, child.server_id)
        if self._stopping.is_set():
            child.stop(self._patience)
        return child

    async def _reap(self, slot: _ChildSlot, child: Child, reader: asyncio.StreamReader) -> None:
        """Read a child's reports until it ends, then abandon its leases and log its end."""
        listening = asyncio.create_task(self._listen(slot, child, reader))
        code = await child.wait()
        self._children.discard(child)
        # Wait for the child's last report, which tells whether its server had stopped. Only a child
        # whose server has stopped, or had not started, has nothing left to do: a handler may end
        # the process with exit code 0.
        if code in (0, -signal.SIGTERM) and not child.stopped:
            await asyncio.wait({listening}, timeout=LAST_REPORT_S)
        idle = child.uptime_s is None or child.stopped
        clean = idle and (code == 0 or (child.stop_requests > 0 and code == -signal.SIGTERM))
        if not clean or child.stop_requests > 1:
            self._abandoner.add(child.server_id, child.queues, again=not self._stopping.is_set())
        # Everything that the child wrote has already arrived. EOF may never arrive, since a
        # grandchild may keep the socket open.
        await asyncio.wait({listening}, timeout=LAST_REPORT_S)
        listening.cancel()
        child.close()
        self._ledger.end(child)
        if child.stop_requests:
            self._unclean = self._unclean or (self._stopping.is_set() and not clean)
            _tell_end(child, logging.INFO if clean else logging.ERROR)
        child.has_ended(code)
        slot.changed.set()

    async def _listen(self, slot: _ChildSlot, child: Child, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                report = json.loads(line)
                self._watch.add(report.get("files", ()))
                child.on_report(report)
                if "worn" in report and not child.replacing:
                    child.replacing = True
                    self._tasks.create_task(self._replace_worn(slot, child))

    def _give_up(self, child: Child) -> None:
        self._failed = (
            f"process {child.number} failed to start {MAX_START_FAILURES} times in a row, "
            f"the last time: {child.exit_reason()}"
        )
        self._stop()

    # Replacing children.

    async def _rolling_restart(self) -> None:
        """Replace the children one after another, up to the first replacement that fails."""
        async with self._rolling:
            for slot in self._slots:
                if slot.retired:
                    continue
                async with slot.lock:
                    if self._stopping.is_set() or not await self._replace(slot):
                        log.warning("the other processes keep the old code")
                        return
            log.info("all processes have been replaced")

    async def _replace_worn(self, slot: _ChildSlot, child: Child) -> None:
        """Replace a child that has reached a limit, once no other child is being replaced."""
        try:
            async with self._rolling, slot.lock:
                if self._stopping.is_set() or slot.child is not child or child.ended.is_set():
                    return
                log.info(
                    "process %d (pid %d) is being replaced: %s", child.number, child.pid, child.worn
                )
                if not await self._replace(slot):
                    log.warning("process %d keeps running; it is replaced later", child.number)
        finally:
            child.replacing = False

    async def _replace(self, slot: _ChildSlot) -> bool:
        old, new = slot.child, await self._launch(slot)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLACEMENT_START_S):
                await new.changed.wait()
            if not new.ended.is_set() and not self._plan.reload:
                async with asyncio.timeout(FIRST_S):
                    await new.ended.wait()
        if new.ended.is_set() or not new.changed.is_set():
            if not self._stopping.is_set():
                reason = (
                    new.exit_reason()
                    if new.ended.is_set()
                    else f"not ready after {REPLACEMENT_START_S:.0f} s"
                )
                log.error("the new process failed to start: %s", reason)
            new.kill()
            return False
        slot.child = new
        slot.failures = slot.restarts = 0
        slot.changed.set()
        if old is not None and not old.ended.is_set():
            old.stop(self._patience)
            if not self._plan.reload:
                await old.ended.wait()
        return True

    async def _reload(self) -> None:
        """Replace the children whenever a source file that one of them imported changes."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._stopping.wait()
            if changed := self._watch.changed_files():
                log.info("%s changed: replacing the processes", ", ".join(changed))
                await self._rolling_restart()

    # Signals.

    @property
    def _patience(self) -> float:
        """How long a child may take to stop, in seconds; the time shrinks with each further
        signal."""
        return {1: self._plan.shutdown_timeout + KILL_AFTER_S, 2: KILL_AFTER_S}.get(
            max(self._stops, 1), 0.5
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        reactions = {signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            reactions[signal.SIGHUP] = self._on_sighup
        for number, reaction in reactions.items():
            loop.add_signal_handler(number, reaction)
        try:
            yield
        finally:
            for number in reactions:
                loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last_signal > ECHO_S:
            self._stop()
        self._last_signal = now

    def _stop(self) -> None:
        self._stops += 1
        self._stopping.set()
        if self._stops == 1:
            log.info(
                "stopping: running tasks have %g s to finish; "
                "send the signal again to stop immediately",
                self._plan.shutdown_timeout,
            )
        for slot in self._slots:
            slot.changed.set()
        for child in list(self._children):
            child.stop(self._patience)

    def _on_sighup(self) -> None:
        if self._was_terminal and not os.isatty(sys.stdin.fileno()):
            self._stop()  # the terminal was closed, so this is not a request to restart
        elif not self._stopping.is_set():
            log.info("SIGHUP: replacing the processes one after another")
            self._tasks.create_task(self._rolling_restart())
