"""The objects that the fixtures `qsync` and `qsync_sync` provide."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

from qsync.app import Qsync
from qsync.broker.bounds_ops import put_program_bounds
from qsync.errors import ConfigError, QsyncError
from qsync.keys import QueueKeys
from qsync.loop_internals import running_loop
from qsync.task_function import TaskFunction
from qsync.testing.advance import Advance
from qsync.testing.calling_thread import CallingThread, run_on_loop
from qsync.testing.crash import CrashPlan
from qsync.testing.drain import Drain
from qsync.testing.enqueued_tasks import AnyTask, EnqueuedTask, asked_task, enqueued, matching
from qsync.testing.inline import close_clients
from qsync.testing.store import TestStore, session_store
from qsync.value_text import shorten

_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")

TASKS_SHOWN = 10
"""Number of tasks that a failed assertion shows."""


class _AnyKit:
    """The part that Kit and SyncKit share.

    Inside the `with` block, the app uses a test store and a unique prefix.
    """

    def __init__(self, app: Qsync, *, url: str = "") -> None:
        if not isinstance(app, Qsync):
            raise ConfigError(f"qsync_app: {shorten(app)} is not a Qsync")
        self.app = app
        """The app under test."""
        self._url = url
        self._store: TestStore | None = None
        self._plan: CrashPlan | None = None
        self._pointed: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        store = self._store = session_store(self._url).of_test()
        # The app's servers also do this when they start.
        for queue, bounds in self.app.bounds.items():
            store.broker.run(put_program_bounds(QueueKeys(store.prefix, queue), bounds))
        self._pointed = self.app._connections.pointed_at(store.address, store.prefix)
        self._pointed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pointed is None or self._store is None:
            return
        try:
            close_clients(self.app)
        finally:
            self._pointed.__exit__(None, None, None)
            self._store.close()
            self._store = self._pointed = None

    @property
    def _opened(self) -> TestStore:
        if self._store is None:
            raise QsyncError(
                "qsync: the app uses its own store because the test is over or the kit has not "
                "been opened (`with SyncKit(app) as kit:`)"
            )
        if self.app.prefix != self._store.prefix:
            raise ConfigError(
                "qsync: the app uses the store of a fixture or Kit that was opened later; use only "
                "that one, and not both qsync and qsync_sync in a test"
            )
        return self._store

    def enqueued(self, task: AnyTask) -> list[EnqueuedTask]:
        """Return the waiting and running tasks of this function or type, in order of enqueue.

        The function may be a task of django.tasks.
        """
        store = self._opened
        return enqueued(store.broker, store.prefix, asked_task(task))

    def assert_enqueued(
        self, task: AnyTask, /, *, queue: str | None = None, **arguments: Any
    ) -> EnqueuedTask:
        """Fail unless a task of this function is waiting or running; return the first one.

        Only the passed arguments are compared, in the form that the handler gets. For a type of a
        Mux, the payload is the argument `payload`.
        """
        tasks, asked = self.enqueued(task), asked_task(task)
        matches = matching(tasks, asked, queue, arguments)
        if matches:
            return matches[0]
        name = asked.name
        expected = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        where = "" if queue is None else f" on queue {queue}"
        lines = [f"no task {name}({expected}){where} is enqueued"]
        if tasks:
            lines.append(f"of {name} there are:")
            lines += [f"  {enqueued_task!r}" for enqueued_task in tasks[:TASKS_SHOWN]]
            lines += [f"  and {len(tasks) - TASKS_SHOWN} more"] if len(tasks) > TASKS_SHOWN else []
        else:
            lines.append("no task of this function is waiting or running")
            if isinstance(task, TaskFunction) and not self._is_of_app(task):
                lines.append(f"it is a task of another app, not of this kit's app, {self.app}")
        sender = self.app._connections.sender
        if sender is not None and (waiting := sender.waiting()):
            lines.append(waiting)
        raise AssertionError("\n".join(lines))

    def _is_of_app(self, task: TaskFunction[..., Any, ..., Any]) -> bool:
        return task._connections.is_alike(self.app._connections)

    @contextlib.contextmanager
    def crash(self, point: str) -> Iterator[None]:
        """Make the server of a drain in the block crash at this point; its tasks run again later.

        before handler    the server has leased the task; the handler has not begun
        during handler    the handler waits for something for the first time, or ends
        before complete   the handler has returned; the store has not recorded the success
        after complete    the store has recorded the success; the task does not run again
        before failure    the handler has raised; the store has not recorded the failure
        after failure     the store has recorded the failure

        The drain returns when the server is dead; the next drain runs the tasks that the server
        held. Raises ConfigError for an unknown point, and AssertionError if no drain in the block
        reached the point.
        """
        if self._plan is not None:
            raise ConfigError("crash: blocks cannot be nested, since a server crashes once")
        plan = self._plan = CrashPlan(point)
        try:
            yield
        finally:
            self._plan = None
        if not plan.happened:
            raise AssertionError(plan.missed())

    def _drain(self, threads: CallingThread | None = None) -> Drain:
        _ = self._opened
        return Drain(self.app, self._plan, threads)

    def _advance(
        self, by: timedelta | None, units: dict[str, float], *, schedules: bool
    ) -> Advance:
        store = self._opened
        if by is not None and units:
            raise ConfigError("advance: pass a timedelta or units, not both")
        for unit in units:
            if unit not in _UNITS:
                close = difflib.get_close_matches(unit, _UNITS, 1, cutoff=0.75)
                meant = f"{close[0]}={shorten(units[unit])}" if close else " or ".join(_UNITS[:5])
                raise ConfigError(f"advance: no unit {unit!r}; pass {meant}")
        if by is not None and not isinstance(by, timedelta):
            if isinstance(by, int | float):
                raise ConfigError(f"advance: {by} has no unit; pass e.g. seconds={by}")
            raise ConfigError(
                f"advance: {shorten(by)} is not a timedelta; pass a timedelta, or e.g. days=1"
            )
        try:
            delta = timedelta(**units) if by is None else by
            by_us = delta // timedelta(microseconds=1)
        except (TypeError, ValueError, OverflowError) as error:
            step = units if by is None else shorten(by)
            msg = f"advance: {step} is not a valid time ({error}); pass e.g. days=1 or minutes=5"
            raise ConfigError(msg) from None
        if by_us <= 0:
            raise ConfigError(f"advance: {delta} is not positive; the clock moves only forward")
        store.session.check_is_for_tests()
        return Advance(self.app, store.clock, by_us, schedules=schedules)


class Kit(_AnyKit):
    """The fixture `qsync`: the app of an async test, and the tasks that it has enqueued.

    Without the fixture, open a Kit with `async with`, or with `with` where no event loop runs.
    """

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await self.app.aclose()
        self.__exit__()

    async def drain(self) -> None:
        """Run the pending tasks, and those that they enqueue, until none are left.

        A real server runs them, with the app's options, middleware and lifespan. Afterwards the
        drain raises the errors of failed attempts: a single error unchanged, several errors as an
        ExceptionGroup. A retry runs in the same drain only if it becomes due before the drain ends;
        use `advance` to make later retries due.
        """
        _check_async("drain")
        await self._drain().run()

    async def advance(
        self, by: timedelta | None = None, /, *, schedules: bool = True, **units: float
    ) -> None:
        """Move the store's clock, e.g. `advance(days=1)`, and do the work that becomes due.

        Delayed tasks and retries become pending, schedules enqueue a task for each tick, and unique
        locks, leases, results and dead tasks expire. No handler runs; use `drain` for that. Only
        the store's clock moves; the clock of this process does not. With `schedules=False`, no
        schedule ticks; the next move with schedules enqueues the missed ticks.
        """
        _check_async("advance")
        await self._advance(by, units, schedules=schedules).run()


class SyncKit(_AnyKit):
    """The fixture `qsync_sync`, which is like Kit but for tests without asyncio.

    Handlers that are `def` run in the thread of the test, one after another; `async def` handlers
    run on an event loop in another thread.
    """

    def drain(self) -> None:
        """Do what `Kit.drain` does, and block until it is done."""
        _check_plain("drain")
        threads = CallingThread()
        threads.run(self._drain(threads).run())

    def advance(
        self, by: timedelta | None = None, /, *, schedules: bool = True, **units: float
    ) -> None:
        """Do what `Kit.advance` does, and block until it is done."""
        _check_plain("advance")
        run_on_loop(self._advance(by, units, schedules=schedules).run()).result()


def _check_async(name: str) -> None:
    if running_loop() is None:
        raise ConfigError(
            f"{name}: no asyncio event loop is running here; for anyio, set anyio_backend to "
            f"asyncio"
        )


def _check_plain(name: str) -> None:
    if running_loop() is None:
        return
    raise ConfigError(
        f"{name}: an event loop runs in this thread, and {name}() would block it. In pytest, use "
        f"the fixture qsync and call `await qsync.{name}()`. With QsyncMixin in a Django test "
        f"case, call `await sync_to_async(self.qsync.{name})()` (from asgiref.sync). Without "
        f"Django, derive the test case from unittest.IsolatedAsyncioTestCase and call "
        f"`await self.qsync.{name}()`"
    )
