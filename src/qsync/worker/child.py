"""The child process of `qsync worker`, which runs the server that its parent describes.

    python -m qsync.worker.child FD

FD is the socket that the child shares with its parent; see `qsync.worker.process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, NoReturn

import msgspec

from qsync.errors import QsyncError, SchemaMismatch
from qsync.server import process_pool_child
from qsync.server.error_log import log_trace
from qsync.server.error_text import message_of, program_trace
from qsync.server.health import ServerHealth
from qsync.server.run_metrics import RunMetrics
from qsync.server.server import Server
from qsync.worker import logs
from qsync.worker.child_limits import LIMITS_CHECK_S, REPORT_AGAIN_S, Limits, memory_used
from qsync.worker.load_app import TargetError, load

log: Final = logging.getLogger("qsync.worker")

FILES_CHECK_S: Final = 0.5
"""Time between two checks for newly imported files, in seconds."""


class Parent:
    """The parent process, at the other end of the socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("rb")
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._sent_files: set[str] = set()
        self.server: Server | None = None
        """The server whose health and metrics are reported; None until it is created."""

    def order(self) -> dict[str, Any]:
        """Read the parent's order; block until it arrives. Return None if the parent has died."""
        order: dict[str, Any] = json.loads(self._lines.readline() or b"null")
        return order

    def watch(self) -> None:
        """Start the thread that answers the parent and stops this process when the parent dies."""
        threading.Thread(target=self._answer_until_end, name="qsync-parent", daemon=True).start()

    def _answer_until_end(self) -> None:
        """Answer in a separate thread, since a handler may block the event loop."""
        with contextlib.suppress(OSError):
            for line in self._lines:
                server = self.server
                condition = ServerHealth() if server is None else server.condition()
                self._send_metrics(
                    answer=json.loads(line)["ask"], condition=msgspec.to_builtins(condition)
                )
        os.kill(os.getpid(), signal.SIGTERM)

    def send_metrics(self) -> None:
        """Send the server's metrics for the last time."""
        self._send_metrics()

    def _send_metrics(self, **report: Any) -> None:
        """Send the metrics under a lock, so that no thread sends older metrics after newer ones."""
        with self._counting:
            run_metrics = None if self.server is None else self.server.run_metrics
            rows = [] if run_metrics is None else msgspec.to_builtins(run_metrics.rows())
            self.send(**report, rows=rows)

    def send(self, **report: Any) -> bool:
        """Send a report; return False if the parent has died."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(report).encode() + b"\n")
        except OSError:
            log.debug("the parent has died")
            return False
        return True

    def send_error(self, error: BaseException, trace: str = "") -> None:
        """Send the error that ends this process to the parent, which logs it.

        If the parent has died, log the error in this process.
        """
        ours = isinstance(error, QsyncError | TargetError)
        text = logs.escape(str(error)) if ours else message_of(error)
        if not self.send(error=text, trace=trace):
            log_trace(log, logging.ERROR, text, trace, {})

    def send_files(self) -> None:
        """Send the newly imported source files under the working directory."""
        here = os.path.join(os.getcwd(), "")  # noqa: PTH118, PTH109 - a prefix of texts
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        new = {file for file in files if file and file.startswith(here)} - self._sent_files
        if new:
            self._sent_files |= new
            self.send(files=sorted(new))

    def keep_comparing(self, limits: Limits) -> None:
        """In a thread, check the limits of the process; report to the parent if one is reached."""

        def work() -> None:
            while True:
                server = self.server
                tasks = 0 if server is None else server.condition().tasks
                reason = limits.exceeded(tasks, memory_used())
                if reason is not None:
                    self.send(worn=reason)
                time.sleep(LIMITS_CHECK_S if reason is None else REPORT_AGAIN_S)

        threading.Thread(target=work, name="qsync-limits", daemon=True).start()

    def keep_sending_files(self) -> None:
        """Send newly imported files periodically from a thread."""

        def work() -> None:
            while True:
                self.send_files()
                time.sleep(FILES_CHECK_S)

        threading.Thread(target=work, name="qsync-files", daemon=True).start()


def main() -> None:
    """Serve until the parent or a signal stops it. Exit codes: 0 clean stop, 1 failure, 2 failure
    to start."""
    parent = Parent(int(sys.argv[1]))
    order = parent.order()
    if order is None:  # the parent died before it sent its order
        sys.exit(1)
    parent.watch()
    sys.exit(_serve(order, parent))


def _serve(order: dict[str, Any], parent: Parent) -> int:
    tag = str(order["number"])
    set_up_logs = partial(logs.configure, order["log_level"], tag=tag, form=order["log_format"])
    try:
        app = load(order["target"])
        server = app.server(**order["config"], server_id=order["server_id"])
    except Exception as error:
        set_up_logs()
        cause = error.__cause__ if isinstance(error, TargetError) else error
        parent.send_error(error, program_trace(cause) if cause is not None else "")
        return 2
    finally:
        if order["reload"]:
            parent.send_files()
    set_up_logs()
    logs.catch_uncaught()
    if logs.is_set_up():
        # Set up the same logging in handler processes.
        process_pool_child.at_start.append(set_up_logs)
    if order["tally"]:
        server.run_metrics = server.run_metrics or RunMetrics(server.mux.types)
    # Wait for an unreachable store, because starting another process would not bring it back
    # sooner.
    server.wait_for_store = True
    parent.server = server
    if order["reload"]:
        parent.keep_sending_files()
    parent.send(queues=list(server.config.weights))
    limits = Limits(*order["limits"])
    return _run(server, parent, limits, uvloop=order["uvloop"])


def _run(server: Server, parent: Parent, limits: Limits, *, uvloop: bool) -> int:
    """Run the server; return the exit code of this process."""
    try:
        _run_loop(partial(_serving, server, parent, limits), parent, uvloop=uvloop)
    except SchemaMismatch as error:
        if not server.broken:  # another process could not serve the queues either
            parent.send_error(error)
            parent.send(hopeless=True)
        return 1
    except QsyncError as error:
        parent.send_error(error)
        return 1
    except BaseException as error:  # e.g. an error of the lifespan
        parent.send_error(error, program_trace(error))
        return 1
    finally:
        parent.send_metrics()
    return 1 if server.broken else 0


async def _serving(server: Server, parent: Parent, limits: Limits) -> None:
    def on_ready() -> None:
        limits.check_start(memory_used())
        parent.send(ready=True)
        _exempt_start_from_collection()
        if limits:
            parent.keep_comparing(limits)

    await server.run(
        on_ready=on_ready,
        # Report the order immediately, because the process may be killed before it has stopped.
        on_stop_order=lambda: parent.send(retired=True),
    )
    # Ctrl-C has nothing left to stop, but SIGTERM may end an exit that hangs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not server.broken:
        parent.send(stopped=True)


def _run_loop(
    serve: Callable[[], Coroutine[Any, Any, None]], parent: Parent, *, uvloop: bool
) -> None:
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop:
        import uvloop as library

        make_loop = library.new_event_loop
    serving = serve()
    with asyncio.Runner(loop_factory=make_loop) as runner:
        try:
            runner.run(serving)
        except BaseException as error:
            if inspect.getcoroutinestate(serving) != inspect.CORO_CLOSED:
                _die(error, parent)
            raise


def _die(error: BaseException, parent: Parent) -> NoReturn:
    """End this process at once, because code of a task has ended the event loop, e.g. by
    `sys.exit()` in an asyncio task of its own.

    The parent releases the leases, and a crash is counted for each running task. If the server shut
    down instead, the task would run again without end.
    """
    parent.send_error(error, program_trace(error))
    parent.send_metrics()
    os._exit(1)


def _exempt_start_from_collection() -> None:
    """Exempt objects created at startup, such as the modules of the app, from garbage collection.

    The objects created at startup live as long as the process. If they were not exempt, each full
    collection would visit them all and stop the event loop, e.g. for 10 to 20 ms with 50,000
    objects.
    """
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
