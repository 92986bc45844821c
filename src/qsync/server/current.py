"""What a handler can reach of the server that runs it: `qsync.current()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from qsync.errors import QsyncError
from qsync.running_task import running as running
from qsync.task import TaskInfo

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar  # which type checkers know without it

    S_co = _TypeVar("S_co", covariant=True, default=Any)
else:
    S_co = TypeVar("S_co", covariant=True)

S = TypeVar("S")


class Current(Protocol[S_co]):
    """The running task and its surroundings; S is what the lifespan yields."""

    @property
    def task(self) -> TaskInfo:
        """The task that runs."""

    @property
    def client(self) -> Any:
        """For enqueueing more: an AsyncClient in `async def` handlers, a Client in `def` ones."""

    @property
    def state(self) -> S_co:
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


@overload
def current() -> Current: ...


@overload
def current(state: type[S]) -> Current[S]: ...


def current(state: type[Any] | None = None) -> Current[Any]:
    """Return the running task and its surroundings; QsyncError outside of a handler.

        current().task              its TaskInfo: id, attempt, payload and so on
        current().state             what the server's lifespan yielded; None without one
        current().client            for enqueueing more: an AsyncClient in `async def` handlers, a
                                    Client in `def` ones
        current().cancelled         True once this run is not wanted any more: cancelled, out of
                                    time, lease lost, shutdown; a `def` handler has to look here
        current().progress(3, 10)   tells how far the task is; does not wait

    `current(State).state` is a State for type checkers, and QsyncError when the lifespan yielded
    something else. In a handler with executor="process" only `.task` is there. In a test, call a
    task in place, or use `qsync.testing.context`.
    """
    try:
        found: Current[Any] = running.get()
    except LookupError:
        msg = (
            "qsync.current() is there only inside a handler that a server runs; in a test, give "
            "it a context: `with qsync.testing.context():`"
        )
        raise QsyncError(msg) from None
    if state is not None and not isinstance(found.state, state):
        msg = f"current({state.__name__}): the lifespan yielded {type(found.state).__name__}"
        raise QsyncError(msg)
    return found


def fields_of(task: TaskInfo) -> dict[str, object]:
    """What a log record about a task says of it, as `extra`."""
    return {
        "task_id": task.id, "queue": task.queue, "task_type": task.type, "attempt": task.attempt,
    }  # fmt: skip
