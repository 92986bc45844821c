"""Crashes the server of a drain at a chosen point."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final

from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.errors import ConfigError, QsyncError
from qsync.mux import CallNext
from qsync.server.current import running
from qsync.server.server import Server
from qsync.task import TaskInfo
from qsync.value_text import shorten

POINTS: Final = (
    "before handler", "during handler", "before complete", "after complete", "before failure",
    "after failure",
)  # fmt: skip
"""Points at which a drain's server can crash."""

POLL_S: Final = 0.001
"""Interval at which to check whether a handler has begun, in seconds."""

SETTLING: Final = {"complete": "complete", "retry": "failure", "kill": "failure"}
"""For each script that settles a task, the name that crash points use for the recorded event."""


class CrashPlan:
    """A point at which the next server crashes, once."""

    def __init__(self, point: str) -> None:
        if point not in POINTS:
            msg = f"crash: there is no point {shorten(point)}; use one of {', '.join(POINTS)}"
            raise ConfigError(msg)
        self.point = point
        self.happened: bool = False
        self.recorded: set[str] = set()
        """Outcomes that servers recorded: complete, failure."""

    def missed(self) -> str:
        """Return the message for a block in which no drain reached the point."""
        text = f"crash: no drain in the block reached the point {self.point!r}"
        if self.recorded:
            return f"{text}; its tasks ended with: {', '.join(sorted(self.recorded))}"
        return f"{text}; no task ended in it"

    def arm(self, server: Server) -> None:
        """Make this server crash at the point; the server must not have started yet."""
        server.replaced.broker = self._broker
        if self.point.endswith(" handler"):
            server.add_outer_middleware(self._around)

    def _broker(self, address: Address) -> AsyncBroker:
        broker = CrashingBroker(address)
        broker.plan = self
        return broker

    async def crash(self) -> None:
        """Crash here; the caller never continues."""
        self.happened = True
        await asyncio.get_running_loop().create_future()

    async def _around(self, task: TaskInfo, call_next: CallNext) -> Any:
        if self.happened:
            await self.crash()
        if self.point == "before handler":
            await self.crash()
        handler = call_next()
        try:
            await _FirstStep(handler)
            await _begun()
            await self.crash()
        finally:
            _end(handler)


async def _begun() -> None:
    """Wait until a handler has a thread or process to run in."""
    leased = getattr(running.get(None), "_leased", None)
    while leased is not None and leased.waits:  # noqa: ASYNC110 - a thread changes it, without an event
        await asyncio.sleep(POLL_S)


def _end(handler: Any) -> None:
    """End a handler's coroutine as a cancellation would."""
    if not isinstance(handler, Coroutine):
        return
    with contextlib.suppress(BaseException):
        handler.throw(asyncio.CancelledError())
    handler.close()


class _FirstStep:
    """Runs an awaitable until it waits for the first time or ends."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, None, None]:
        steps = self._awaitable.__await__()
        if isinstance(steps, Generator) or hasattr(steps, "send"):
            try:
                awaited = steps.send(None)
            except StopIteration:
                return
            if isinstance(awaited, asyncio.Future):
                awaited.add_done_callback(_retrieve)
        yield from ()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve a future's error, since the handler that awaited it is gone."""
    if not future.cancelled():
        future.exception()


class CrashingBroker(AsyncBroker):
    """A broker whose server crashes before or after the store records an outcome."""

    plan: CrashPlan | None = None

    async def run_many(
        self,
        calls: Sequence[Call[Any]],
        *,
        ends: float = float("inf"),
        overlap: Callable[[], None] = lambda: None,
    ) -> list[Any | QsyncError]:
        plan = self.plan
        events = {SETTLING[call.script.name] for call in calls if call.script.name in SETTLING}
        when, _, event = ("", "", "") if plan is None else plan.point.partition(" ")
        if plan is not None:
            plan.recorded |= events
        if plan is None or event not in events:
            return await super().run_many(calls, ends=ends, overlap=overlap)
        if plan.happened or when == "before":
            await plan.crash()
        answers = await super().run_many(calls, ends=ends, overlap=overlap)
        await plan.crash()
        return answers
