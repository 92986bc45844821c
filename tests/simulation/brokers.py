"""The brokers of the code under test, with a simulated network instead of redis-py.

The code for patience, retries, error mapping and the fallback from EVALSHA to EVAL is the real
code.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import redis.exceptions as failures

from qsync.broker import aio, base, blocking, redis_errors
from qsync.broker.base import noop
from qsync.broker.call import Call
from qsync.broker.channels import ChannelEvent
from qsync.broker.error_mapping import unavailable
from qsync.broker.listeners import BLOCKING_READ_GRACE_S
from qsync.errors import QsyncError
from tests.simulation.loop import STRAND
from tests.simulation.network import Listener, Network
from tests.simulation.process import Proc
from tests.simulation.store import broken, refused
from tests.simulation.threads import SimEvent, Turns, current_thread

T = TypeVar("T")

INFO: Final = b"redis_version:7.2.4\r\nvalkey_version:9.0.0\r\nmaxmemory_policy:noeviction\r\n"
"""The store's version and settings, which a server reads at startup."""

network: Network = cast("Network", None)
turns: Turns = cast("Turns", None)
"""The network of the current history, and its scheduler of threads."""


def _process() -> Proc:
    strand = STRAND.get()
    assert strand is not None
    return cast("Proc", strand.process)


def _answer(future: asyncio.Future[Any], reply: Any) -> None:
    """Deliver a reply if its caller is still waiting for it."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def _finish(replies: list[Any]) -> list[Any]:
    """Return replies as redis-py would: after a connection error, each further reply is that
    error."""
    for at, reply in enumerate(replies):
        if isinstance(reply, Exception) and not isinstance(reply, failures.ResponseError):
            return replies[:at] + [reply] * (len(replies) - at)
    return replies


class SimAsyncBroker(aio.AsyncBroker):
    """An AsyncBroker of a simulated process."""

    def _pool_for(self, node: Any) -> Any:
        return None

    async def aclose(self) -> None:
        pass

    async def _exchange(
        self,
        pool: Any,
        commands: Sequence[tuple[Any, ...]],
        ends: float = math.inf,
        overlap: Any = noop,
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        deliver = partial(_answer, future)
        limit = max(min(self._read_timeout, ends - base.time.monotonic()), 0.0)
        timer = loop.call_later(limit, deliver, [TimeoutError()] * len(commands))
        network.send(_process(), commands, deliver)
        overlap()
        try:
            return _finish(await future)
        finally:
            timer.cancel()

    async def _execute(self, *command: str) -> Any:
        await asyncio.sleep(0.001)
        if network.unreachable(_process()):
            _process().trouble()
            raise refused()
        return INFO

    def blocking_pops(self, keys: Sequence[str]) -> list[Any]:
        return [SimBlockingPop(self, tuple(keys))]

    def subscribe(self, node: Any) -> Any:
        return SimAsyncSubscription(self)


class SimBroker(blocking.Broker):
    """A Broker of a simulated thread."""

    def _pool_for(self, node: Any) -> Any:
        return None

    def close(self) -> None:
        pass

    def _exchange(
        self,
        pool: Any,
        commands: Sequence[tuple[Any, ...]],
        ends: float,
        overlap: Any = noop,
    ) -> list[Any]:
        event, answers = SimEvent(turns), []

        def deliver(replies: list[Any]) -> None:
            if not event.is_set():
                answers.extend(replies)
                event.set()

        network.send(_process(), commands, deliver)
        if not event.wait(max(min(self._read_timeout, ends - base.time.monotonic()), 0.0)):
            event.set()
            return [failures.TimeoutError("Timeout reading from socket")] * len(commands)
        return _finish(answers)

    def subscribe(self, node: Any) -> Any:
        return SimSubscription(self)


class SimBlockingPop:
    """Replaces listeners.BlockingPop."""

    def __init__(self, broker: Any, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker

    async def pop(
        self, seconds: float, keys: Sequence[str] | None = None
    ) -> tuple[str, bytes] | None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        deliver = partial(_answer, future)
        blocked = network.block(_process(), keys or self.keys, max(seconds, 0.001), deliver)
        timer = loop.call_later(seconds + BLOCKING_READ_GRACE_S, deliver, TimeoutError())
        try:
            reply: tuple[str, bytes] | None = await future
            return reply
        except redis_errors.LIBRARY_ERRORS as error:
            raise unavailable(error, self._broker.address) from error
        finally:
            timer.cancel()
            network.hang_up(blocked)

    async def pop_then_run(self, seconds: float, call: Call[T]) -> T | QsyncError:
        await self.pop(seconds)
        [answer] = await self._broker.run_many([call])
        return cast("T | QsyncError", answer)

    async def aclose(self) -> None:
        pass


class _Channels:
    """The channels of a subscription. `hear` is called with each message, or with None when the
    connection is lost."""

    def __init__(self, hear: Callable[[ChannelEvent | None], None]) -> None:
        self.confirmed: dict[str, Listener] = {}
        self._hear = hear
        self._process = _process()

    def follow(self, wanted: Collection[str]) -> None:
        for channel in self.confirmed.keys() - set(wanted):
            network.unlisten(self.confirmed.pop(channel))
        for channel in sorted(set(wanted) - self.confirmed.keys()):
            self.confirmed[channel] = Listener(
                self._process, channel, partial(self._ended, channel)
            )
            network.listen(self.confirmed[channel])
            self._hear(ChannelEvent("on", channel))

    def reach(self, broker: Any) -> None:
        if network.unreachable(self._process):
            raise unavailable(refused(), broker.address)

    def close(self) -> None:
        self.follow(())

    def _ended(self, channel: str, id: str | None) -> None:
        self._hear(None if id is None else ChannelEvent("ended", channel, id))


class SimAsyncSubscription:
    """Replaces listeners.AsyncSubscription."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._heard: asyncio.Queue[ChannelEvent | None] = asyncio.Queue()
        self._channels = _Channels(self._heard.put_nowait)
        self.confirmed = self._channels.confirmed

    async def open(self) -> None:
        await asyncio.sleep(0.001)
        self._channels.reach(self._broker)

    async def follow(self, wanted: Collection[str]) -> None:
        self._channels.follow(wanted)

    async def read(self) -> ChannelEvent:
        heard = await self._heard.get()
        if heard is None:
            raise unavailable(broken(), self._broker.address)
        return heard

    async def aclose(self) -> None:
        self._channels.close()


class SimSubscription:
    """Replaces listeners.Subscription."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._heard: list[ChannelEvent | None] = []
        self._event = SimEvent(turns)
        self._channels = _Channels(self._hear)
        self.confirmed = self._channels.confirmed

    def _hear(self, heard: ChannelEvent | None) -> None:
        self._heard.append(heard)
        self._event.set()

    def wake(self) -> None:
        self._event.set()

    def open(self) -> None:
        current_thread().park(0.001)
        self._channels.reach(self._broker)

    def follow(self, wanted: Collection[str]) -> None:
        self._channels.follow(wanted)

    def read(self, seconds: float) -> ChannelEvent | None:
        if not self._heard:
            self._event.wait(seconds)
        self._event.clear()
        if not self._heard:
            return None
        heard = self._heard.pop(0)
        if heard is None:
            raise unavailable(broken(), self._broker.address)
        return heard

    def close(self) -> None:
        self._channels.close()
