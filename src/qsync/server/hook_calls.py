"""Calls the hooks of an app for the tasks of a server, on its event loop.

Hooks for "started" are awaited before the handler runs. The other hooks are called only once the
store has recorded the outcome, so no hook reports an outcome that a crash then loses.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from msgspec.structs import replace

from qsync.broker.op_values import Completion, Killed, Retried
from qsync.callbacks import stops_caller
from qsync.errors import Retry, SkipRetry, TaskFailed
from qsync.hooks import Event, Hooks, log_failure
from qsync.mux import CallNext
from qsync.new_task import NewTask, info_of
from qsync.server.current import running
from qsync.server.invoke import Invoker
from qsync.server.outcome import Snoozed
from qsync.server.queue_state import LeasedTask
from qsync.task import TaskInfo

OnCreated = Callable[[Sequence[NewTask], int], object]
"""Function to call with the tasks that ticks have created, and with the time of the ticks in
microseconds."""

END_S: Final = 5.0
"""How long hooks may take to end when the server stops, in seconds."""


class HookCalls:
    """The hook calls in flight, and the errors to report."""

    def __init__(self, hooks: Hooks, invoker: Invoker) -> None:
        self._hooks = hooks
        self._invoker = invoker
        if hooks.of("started"):
            invoker.add_outer_middleware(self._around)
        self._errors: dict[LeasedTask, tuple[BaseException, bool]] = {}
        """Errors of tasks whose outcome is not recorded yet, and whether each error counts as a
        failed attempt."""
        self._calls: set[asyncio.Task[None]] = set()

    async def _around(self, info: TaskInfo, call_next: CallNext) -> Any:
        await self._call("started", info)
        for other in running.get().tasks[1:]:  # of a batch
            await self._call("started", other)
        return await call_next()

    def failed(self, leased: LeasedTask, error: BaseException) -> None:
        """Keep the error of an attempt until the store has recorded the attempt's outcome."""
        self._errors[leased] = error, not _is_asked_for(error)

    def died(self, leased: LeasedTask, why: str) -> None:
        """Keep the reason why a task is dead although no attempt failed."""
        self._errors[leased] = TaskFailed(why), False

    def settled(self, leased: LeasedTask, record: Any) -> None:
        """Call the hooks for an outcome that the store has recorded; None means a lost lease."""
        noted = self._errors.pop(leased, None)
        info = leased.info or leased.task_info()
        if type(record) is Completion:
            self._spawn(self._call("completed", info))
        elif noted is not None and type(record) is Snoozed:
            self._spawn(self._call("snoozed", info, noted[0]))
        elif noted is not None and type(record) in (Retried, Killed):
            self._spawn(self._failed(info, *noted, dead=type(record) is Killed))

    def enqueued(self, tasks: Sequence[NewTask], now_us: int) -> None:
        """Call the hooks for tasks that the ticks of schedules have created in the store."""
        for task in tasks:
            self._spawn(self._call("enqueued", info_of(task, now_us)))

    def crashed(self, tasks: Sequence[TaskInfo]) -> None:
        """Call the hooks for tasks that are dead because they crashed their servers."""
        for info in tasks:
            error = TaskFailed(f"task {info.id}: crashed {info.crashes} times")
            self._spawn(self._call("dead", replace(info, final=True), error))

    async def _failed(
        self, info: TaskInfo, error: BaseException, failed: bool, *, dead: bool
    ) -> None:
        info = replace(info, final=dead)
        if failed or (dead and isinstance(error, Retry)):
            await self._call("failed", info, error)
        if dead:
            await self._call("dead", info, error)

    async def _call(self, event: Event, info: TaskInfo, *error: BaseException) -> None:
        for hook in self._hooks.of(event):
            try:
                answer = await self._invoker.call_beside(info.type, hook, info, *error)
                if inspect.isawaitable(answer):
                    await answer
            except BaseException as broken:
                if stops_caller(broken):
                    raise
                log_failure(event, hook, info.id, broken)

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def finished(self) -> None:
        """Wait until all hook calls have ended."""
        while self._calls:
            await asyncio.wait(self._calls)

    async def aclose(self) -> None:
        """Wait up to END_S for running hooks, then cancel them."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=END_S)
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


def _is_asked_for(error: BaseException) -> bool:
    """Return whether the handler raised the error on purpose, to control what happens next."""
    return isinstance(error, Retry | SkipRetry)
