"""What a handler can reach of the server that runs it: `qsync.current()`."""

from __future__ import annotations

from typing import Any, Protocol

from qsync.errors import QsyncError
from qsync.running import running as running
from qsync.task import TaskInfo


class Current(Protocol):
    """The running task and its surroundings."""

    @property
    def task(self) -> TaskInfo:
        """The task that runs."""

    @property
    def client(self) -> Any:
        """For enqueueing more: an AsyncClient in `async def` handlers, a Client in `def` ones."""

    @property
    def state(self) -> Any:
        """What the server's lifespan yielded; None without one."""

    @property
    def cancelled(self) -> bool:
        """True once this run is not wanted any more: cancelled, out of time, lease lost, shutdown.

        An `async def` handler gets CancelledError as well; a `def` one has to look here.
        """

    def progress(self, done: float, total: float) -> None:
        """Tell how far the task is; those who look see the last call. Does not wait.

        Raises LeaseLost once the server has lost the task's lease: another may run it by then.
        """


def current() -> Current:
    """The running task and its surroundings; QsyncError outside of a handler.

    In a handler with executor="process" only `.task` is there.
    """
    try:
        here: Current = running.get()
    except LookupError:
        msg = "qsync.current() is there only inside a handler that a server runs"
        raise QsyncError(msg) from None
    return here


def fields_of(task: TaskInfo) -> dict[str, object]:
    """What a log record about a task says of it, as `extra`."""
    return {
        "task_id": task.id, "queue": task.queue, "task_type": task.type, "attempt": task.attempt,
    }  # fmt: skip
