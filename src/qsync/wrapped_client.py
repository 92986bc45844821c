"""Clients that run code around each enqueue: extensions, and the "enqueued" hooks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from qsync.broker.call import Durability
from qsync.callbacks import stops_caller
from qsync.client import AsyncClient, AsyncHandle, Client, Handle
from qsync.errors import InvalidTask
from qsync.hooks import Hook, Hooks, log_failure
from qsync.loop_internals import running_loop
from qsync.new_task import payload_of
from qsync.task import Task, TaskInfo
from qsync.times import datetime_us

LOGGED: Final = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
"""Errors of hooks that are logged. Others are raised, e.g. the KeyboardInterrupt of a Ctrl-C, which
the program must get."""


class Outgoing(Protocol):
    """The tasks of one enqueue, as an extension wants to send them."""

    @property
    def tasks(self) -> Sequence[Any]:
        """The tasks to send instead of the caller's tasks."""

    def sent(self, handles: Sequence[Handle[Any] | AsyncHandle[Any]]) -> None:
        """Receive the handles of the tasks, which are now in the store."""


AroundEnqueue = Callable[[Sequence[Any], str | None], AbstractContextManager[Outgoing]]
"""A function that opens a context around an enqueue of these tasks to the queue that was passed."""


class WrappedClient(Client):
    """A Client that enters `around` for each enqueue and then calls the hooks."""

    def __init__(
        self, around: Sequence[AroundEnqueue], hooks: Hooks, *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._around = around
        self._hooks = hooks

    def enqueue(
        self, task: Task, *, queue: str | None = None, durability: Durability | None = None
    ) -> Handle[Any]:
        with entered(self._around, [task], queue) as tasks:
            [outgoing] = tasks.tasks
            handle = super().enqueue(outgoing, queue=queue, durability=durability)
            tasks.sent([handle])
        self.call_hooks(_created([outgoing], [handle]))
        return handle

    def enqueue_many(
        self, tasks: Iterable[Task], *, durability: Durability | None = None
    ) -> list[Handle[Any]]:
        with entered(self._around, _listed(tasks), None) as outgoing:
            handles = super().enqueue_many(outgoing.tasks, durability=durability)
            outgoing.sent(handles)
        self.call_hooks(_created(outgoing.tasks, handles))
        return handles

    def call_hooks(self, created: Iterable[TaskInfo]) -> None:
        """Call the "enqueued" hooks for new tasks."""
        for hook, info in _due(self._hooks, created):
            try:
                answer = hook(info)
                if inspect.isawaitable(answer):
                    _run(_awaited(answer, hook, info))
            except LOGGED as error:
                log_failure("enqueued", hook, info.id, error)


class WrappedAsyncClient(AsyncClient):
    """An AsyncClient that enters `around` for each enqueue, and then calls the hooks."""

    def __init__(
        self, around: Sequence[AroundEnqueue], hooks: Hooks, *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._around = around
        self._hooks = hooks

    async def enqueue(
        self, task: Task, *, queue: str | None = None, durability: Durability | None = None
    ) -> AsyncHandle[Any]:
        with entered(self._around, [task], queue) as tasks:
            [outgoing] = tasks.tasks
            handle = await super().enqueue(outgoing, queue=queue, durability=durability)
            tasks.sent([handle])
        await self.call_hooks(_created([outgoing], [handle]))
        return handle

    async def enqueue_many(
        self, tasks: Iterable[Task], *, durability: Durability | None = None
    ) -> list[AsyncHandle[Any]]:
        with entered(self._around, _listed(tasks), None) as outgoing:
            handles = await super().enqueue_many(outgoing.tasks, durability=durability)
            outgoing.sent(handles)
        await self.call_hooks(_created(outgoing.tasks, handles))
        return handles

    async def call_hooks(self, created: Iterable[TaskInfo]) -> None:
        """Call the "enqueued" hooks for new tasks."""
        for hook, info in _due(self._hooks, created):
            try:
                answer = hook(info)
                if inspect.isawaitable(answer):
                    await answer
            except LOGGED as error:
                if stops_caller(error):
                    raise
                log_failure("enqueued", hook, info.id, error)


class _WrappedTasks:
    """The tasks after all extensions have changed them."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.tasks = tasks
        self.entered: list[Outgoing] = []

    def sent(self, handles: Sequence[Handle[Any] | AsyncHandle[Any]]) -> None:
        for outgoing in self.entered:
            outgoing.sent(handles)


@contextlib.contextmanager
def entered(
    around: Sequence[AroundEnqueue], tasks: Sequence[Any], queue: str | None
) -> Iterator[_WrappedTasks]:
    """Enter the context of each extension; the first context is the outermost."""
    every = _WrappedTasks(tasks)
    with contextlib.ExitStack() as stack:
        for enter in around:
            outgoing = stack.enter_context(enter(every.tasks, queue))
            every.tasks = outgoing.tasks
            every.entered.append(outgoing)
        yield every


def _due(hooks: Hooks, created: Iterable[TaskInfo]) -> Iterator[tuple[Hook, TaskInfo]]:
    """Yield each "enqueued" hook with each task.

    Without hooks, `created` is not read, since reading it builds a TaskInfo for each task.
    """
    if enqueued := hooks.of("enqueued"):
        for info in created:
            yield from ((hook, info) for hook in enqueued)


def _created(
    tasks: Sequence[Task], handles: Sequence[Handle[Any] | AsyncHandle[Any]]
) -> Iterator[TaskInfo]:
    """Yield the tasks that the enqueue created."""
    for task, handle in zip(tasks, handles, strict=True):
        if handle.created:
            yield _info(task, handle)


def _info(task: Task, handle: Handle[Any] | AsyncHandle[Any]) -> TaskInfo:
    deadline = task.deadline
    return TaskInfo(
        id=handle.id, type=task.type, payload=payload_of(task, sys.maxsize), queue=handle.queue,
        retry=task.retry, attempt=1, crashes=0, enqueued_at_us=time.time_ns() // 1000,
        deadline_us=None if deadline is None else datetime_us("deadline", deadline),
        headers=task.headers or {},
        is_value=not isinstance(task.payload, bytes | bytearray | memoryview),
    )  # fmt: skip


def _run(coroutine: Any) -> None:
    """Run a coroutine in a task of this thread's running loop, or else to its end in a new loop."""
    loop = running_loop()
    if loop is None:
        asyncio.run(coroutine)
        return
    task = loop.create_task(coroutine)
    _running.add(task)
    task.add_done_callback(_running.discard)


_running: set[asyncio.Task[Any]] = set()


async def _awaited(answer: Any, hook: Hook, info: TaskInfo) -> None:
    try:
        await answer
    except LOGGED as error:
        if stops_caller(error):
            raise
        log_failure("enqueued", hook, info.id, error)


def _listed(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks as a list; raise the client's InvalidTask if they are not iterable."""
    try:
        return list(tasks)
    except TypeError:
        raise InvalidTask(f"tasks: {type(tasks).__name__} is not an iterable of Task") from None


for _wrapped, _plain in ((WrappedClient, Client), (WrappedAsyncClient, AsyncClient)):
    for _name in ("enqueue", "enqueue_many"):
        vars(_wrapped)[_name].__doc__ = vars(_plain)[_name].__doc__
