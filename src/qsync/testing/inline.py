"""Runs tasks inline, i.e. within the call that enqueues them, without a store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from qsync.app import Qsync
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Call, Durability
from qsync.broker.op_values import Enqueued
from qsync.broker.stored_task import StoredTask
from qsync.client import AsyncClient, AsyncHandle, Client, Handle
from qsync.errors import ConfigError, TaskNotFound
from qsync.hooks import Hooks
from qsync.loop_internals import running_loop
from qsync.message import ENVELOPE_HEAD, Result, decode_message
from qsync.mux import Mux
from qsync.new_task import NewTask
from qsync.results import result_if_finished
from qsync.server.current import running
from qsync.server.invoke import Invoker, encode_result
from qsync.server.outcome import NEVER_RUN, never_run
from qsync.server.server import Server
from qsync.server.standalone_context import PlainContext
from qsync.server.thread_pool import Threads
from qsync.state import TaskState
from qsync.task import PAYLOAD_LIMIT, Task, TaskInfo
from qsync.task_queries import AsyncTaskQueries, TaskQueries
from qsync.testing.calling_thread import CallingThread
from qsync.value_text import shorten
from qsync.wrapped_client import WrappedAsyncClient, WrappedClient

NOWHERE = Address("node", settings={"path": "/nowhere/qsync.testing.inline"})


@contextlib.contextmanager
def inline(app: Qsync) -> Iterator[None]:
    """Run the app's tasks within the calls that enqueue them, inside the block; no store is used.

        with inline(app):
            handle = send.enqueue_sync(7)     # send has run when this returns

    A task goes through the same encoding, argument checks and middleware as on a server. A blocking
    enqueue runs `def` handlers in the calling thread; `await enqueue()` runs them in another
    thread. Tasks run immediately, even with a `delay`. There are no retries. Instead, the enqueue
    raises the handler's error, including a Snooze. Limits, unique locks, timeouts, schedules and
    the lifespan have no effect. Of the hooks, only those for `enqueued` are called, after the
    handler has returned; `on_error` is not called. Handlers with `executor="process"` run in a
    thread. A batch handler
    receives one task per call. The handle has a result if the task has a retention.
    `current().state` comes from `qsync.testing.context` around the block.
    """
    if not isinstance(app, Qsync):
        raise ConfigError(f"inline: {shorten(app)} is not a Qsync")
    runs = _Runs(app)
    connections = app._connections
    types = (partial(_InlineClient, runs), partial(_InlineAsyncClient, runs))
    with connections.pointed_at(NOWHERE, app.prefix, types):
        runs.server = app.server()
        try:
            yield
        finally:
            close_clients(app)


class _Runs:
    """Runs tasks with the handlers, middleware and options of an app's server."""

    server: Server

    def __init__(self, app: Qsync) -> None:
        self._app = app
        self.ended: dict[tuple[str, str], StoredTask] = {}
        """Ended tasks with a retention, by queue and id."""

    def queue_of(self, id: str) -> str:
        """Return the queue of a task that has run; raise TaskNotFound if it had no retention."""
        for queue, ended_id in self.ended:
            if ended_id == id:
                return queue
        raise TaskNotFound(
            f"task {id}: no task with this id has run inline, or the task had no retention"
        )

    def run_here(self, task: NewTask) -> None:
        """Run a task, with its `def` handler in this thread."""
        threads = CallingThread()
        threads.run(self.run(task, threads))

    async def run(self, task: NewTask, threads: Threads | None = None) -> None:
        """Run a task; raise the error of its handler."""
        config = self.server.config
        now = (time.time_ns() // 1000).to_bytes(8, "big")
        stored = ENVELOPE_HEAD + now + task.message
        message = decode_message(stored)
        options = message.options
        info = TaskInfo(
            id=task.id, type=message.type, payload=message.payload, queue=task.queue,
            retry=message.retry, attempt=1, crashes=0, enqueued_at_us=message.enqueued_at_us,
            deadline_us=options.deadline_us if options else None,
            headers=(options.headers if options else None) or {}, is_value=message.is_value,
        )  # fmt: skip
        invoker = Invoker(config, _in_threads(self.server.mux), threads=threads)
        try:
            way = invoker.find_alone(info.type)
            if way is None:
                raise ConfigError(f"inline: there is no handler for type {info.type!r}")
            around = running.get(None)
            token = running.set(_Context(info, self._app, getattr(around, "state", None)))
            try:
                value = await way.invoke(info, None)
            finally:
                running.reset(token)
            if value is not None and type(value) in NEVER_RUN:
                raise never_run(value)
            if task.retention_us is not None:
                result = encode_result(
                    value, way.carry_result, config.result_limit or PAYLOAD_LIMIT
                )
                self.ended[task.queue, task.id] = StoredTask(
                    TaskState.COMPLETED, 0, stored, None, None, None, result, None, None
                )
        finally:
            await invoker.aclose()


def _in_threads(mux: Mux) -> Mux:
    """Return the handlers; those with `executor="process"` run in threads."""
    copied = Mux()
    for handler in mux.handlers:
        place = "thread" if handler.place == "process" else handler.place
        copied.add(dataclasses.replace(handler, place=place))
    return copied


class _Context(PlainContext):
    """`current()` of a task that runs inline."""

    def __init__(self, task: TaskInfo, app: Qsync, state: Any) -> None:
        super().__init__(task, state=state)
        self._app = app

    @property
    def client(self) -> Any:
        """The app's client of this thread: an AsyncClient on an event loop, otherwise a Client."""
        connections = self._app._connections
        return connections.shared() if running_loop() is None else connections.here()


class _InlineQueries(TaskQueries):
    """Looks up the tasks that have run inline."""

    ended: dict[tuple[str, str], StoredTask]

    def show(
        self, id: str, queue: str, *, messages: bool = True, ends: float | None = None
    ) -> StoredTask | None:
        return self.ended.get((queue, id))

    def wait(self, id: str, queue: str, seconds: float | None, *, known: bool) -> Result | None:
        return result_if_finished(id, queue, self.show(id, queue))

    def cancel(self, id: str, queue: str, retention_us: Any) -> bool:
        return False


class _InlineAsyncQueries(AsyncTaskQueries):
    """Looks up the tasks that have run inline."""

    ended: dict[tuple[str, str], StoredTask]

    async def show(self, id: str, queue: str, **_: Any) -> StoredTask | None:
        return self.ended.get((queue, id))

    async def wait(
        self, id: str, queue: str, seconds: float | None, *, known: bool
    ) -> Result | None:
        return result_if_finished(id, queue, await self.show(id, queue))

    async def cancel(self, id: str, queue: str, retention_us: Any) -> bool:
        return False


class _RunsInPlace(Client):
    """A Client that runs the tasks that it enqueues."""

    runs: _Runs

    def find(self, id: str, *, type: Any = None) -> Handle[Any]:
        return self.handle(id, queue=self.runs.queue_of(id), type=type)

    def enqueue(
        self, task: Task[Any], *, queue: str | None = None, durability: Durability | None = None
    ) -> Handle[Any]:
        self._queries.check_open()
        new = self._ready(task, queue)
        self.runs.run_here(new)
        return self._handle(new, Enqueued("created", new.id))

    def enqueue_many(
        self, tasks: Iterable[Task[Any]], *, durability: Durability | None = None
    ) -> list[Handle[Any]]:
        ready = [self._ready(task, None) for task in tasks]
        for new in ready:
            self.runs.run_here(new)
        return [self._handle(new, Enqueued("created", new.id)) for new in ready]


class _RunsInPlaceAsync(AsyncClient):
    """An AsyncClient that runs the tasks that it enqueues."""

    runs: _Runs

    async def find(self, id: str, *, type: Any = None) -> AsyncHandle[Any]:
        return self.handle(id, queue=self.runs.queue_of(id), type=type)

    async def enqueue(
        self, task: Task[Any], *, queue: str | None = None, durability: Durability | None = None
    ) -> AsyncHandle[Any]:
        self._queries.check_open()
        new = self._ready(task, queue)
        await self.runs.run(new)
        return self._handle(new, Enqueued("created", new.id))

    async def enqueue_many(
        self, tasks: Iterable[Task[Any]], *, durability: Durability | None = None
    ) -> list[AsyncHandle[Any]]:
        ready = [self._ready(task, None) for task in tasks]
        for new in ready:
            await self.runs.run(new)
        return [self._handle(new, Enqueued("created", new.id)) for new in ready]


class _NoStore(Broker):
    """A broker for a block without a store: each call raises an error that names the reason."""

    def _try(self, calls: Sequence[Call[Any]], *_: Any) -> list[Any]:
        raise _needs_store(calls)


class _NoStoreAsync(AsyncBroker):
    """A broker for a block without a store: each call raises an error that names the reason."""

    async def _try(self, calls: Sequence[Call[Any]], *_: Any) -> list[Any]:
        raise _needs_store(calls)


def _needs_store(calls: Sequence[Call[Any]]) -> ConfigError:
    return ConfigError(
        f"inline: {calls[0].script.name} needs a store, and inside the block there is none; use "
        "the fixture qsync or qsync_sync for this test"
    )


class _InlineClient(WrappedClient, _RunsInPlace):
    def __init__(
        self, runs: _Runs, around: Any, hooks: Hooks, broker: Broker, **options: Any
    ) -> None:
        super().__init__(around, hooks, _NoStore(broker.address), **options)
        self.runs = runs
        self._queries = _InlineQueries(self._broker, self._global_keys.prefix)
        self._queries.ended = runs.ended


class _InlineAsyncClient(WrappedAsyncClient, _RunsInPlaceAsync):
    def __init__(
        self, runs: _Runs, around: Any, hooks: Hooks, broker: AsyncBroker, **options: Any
    ) -> None:
        super().__init__(around, hooks, _NoStoreAsync(broker.address), **options)
        self.runs = runs
        self._queries = _InlineAsyncQueries(self._broker, self._global_keys.prefix)
        self._queries.ended = runs.ended


CLOSE_S = 10.0
"""Time limit for closing a client that belongs to another thread's event loop, in seconds."""


def close_clients(app: Qsync) -> None:
    """Close the app's shared clients of this process and of all event loops."""
    here = running_loop()
    for loop, client in app._connections.by_loop.items():
        if loop is here:
            task = loop.create_task(client.aclose())
            _closing.add(task)
            task.add_done_callback(_closing.discard)
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(CLOSE_S)
        elif not loop.is_closed() and here is None:
            loop.run_until_complete(client.aclose())
    app.close()


_closing: set[asyncio.Task[None]] = set()
