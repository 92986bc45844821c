"""`qsync.current()`: the running task, for its handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from qsync.errors import QsyncError
from qsync.running_task import running as running
from qsync.task import TaskInfo

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar  # type checkers bundle its stubs

    S_co = _TypeVar("S_co", covariant=True, default=Any)
else:
    S_co = TypeVar("S_co", covariant=True)

S = TypeVar("S")


class Current(Protocol[S_co]):
    """The running task and its context; S is the type that the lifespan yields."""

    @property
    def task(self) -> TaskInfo:
        """The running task; in a batch handler, the first task of the call."""

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of the call: all tasks of a batch, or only the running one."""

    @property
    def client(self) -> Any:
        """Client for enqueueing: AsyncClient in `async def` handlers, Client in `def` handlers."""

    @property
    def state(self) -> S_co:
        """Value that the server's lifespan yielded; None without a lifespan."""

    @property
    def cancelled(self) -> bool:
        """True once this run should stop: it was cancelled, timed out or lost its lease, or the
        server is shutting down.

        An `async def` handler also gets CancelledError; a `def` handler must check this property.
        """

    def progress(self, done: float, total: float) -> None:
        """Report the task's progress without waiting for the store; only the last report is kept.

        `total` is 0 if it is unknown. Raises InvalidTask unless both are finite numbers from 0.
        Raises LeaseLost once the server has lost the task's lease: another server may run the task.
        """


@overload
def current() -> Current: ...


@overload
def current(state: type[S]) -> Current[S]: ...


def current(state: type[Any] | None = None) -> Current[Any]:
    """Return the running task and its context; raise QsyncError outside of a handler.

        current().task              TaskInfo with id, attempt, payload and so on
        current().tasks             the tasks of a batch handler's call, or only the running task
        current().state             value that the server's lifespan yielded, or None
        current().client            client for enqueueing: AsyncClient in `async def` handlers,
                                    Client in `def` handlers
        current().cancelled         True once this run should stop: it was cancelled, timed out or
                                    lost its lease, or the server is shutting down; a `def`
                                    handler must check it
        current().progress(3, 10)   reports progress without waiting for the store

    For type checkers, `current(State).state` is a State; `current(State)` raises QsyncError if the
    lifespan yielded another type. In a handler with executor="process", the client and the state
    belong to its process, which runs the lifespan itself. In such a handler, `.cancelled` is always
    False, since the process is killed when the run should stop. In a test, call the task in place,
    or use `qsync.testing.context`.
    """
    try:
        context: Current[Any] = running.get()
    except LookupError:
        raise QsyncError(
            "qsync.current() works only inside a handler that a server runs; in a test, call it "
            "inside `with qsync.testing.context():`"
        ) from None
    if state is not None and not isinstance(context.state, state):
        msg = f"current({state.__name__}): the lifespan yielded {type(context.state).__name__}"
        raise QsyncError(msg)
    return context


def fields_of(task: TaskInfo) -> dict[str, object]:
    """Return a task's fields for a log record, for use as `extra`."""
    return {
        "task_id": task.id, "queue": task.queue, "task_type": task.type, "attempt": task.attempt,
    }  # fmt: skip
