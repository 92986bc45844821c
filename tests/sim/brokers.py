"""The brokers of the code under test, with the simulated network where they meet redis-py.

Patience, tries, translation of errors and the way from EVALSHA to EVAL are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import redis.exceptions as failures

from qsync.broker import shell
from qsync.broker.faults import LIBRARY_ERRORS, no_answer
from qsync.broker.listen import GRACE
from qsync.errors import StoreUnavailable
from tests.sim.loop import STRAND
from tests.sim.network import Listener, Network
from tests.sim.process import Proc
from tests.sim.threads import SimEvent, Turns, current_thread

network: Network = cast("Network", None)
turns: Turns = cast("Turns", None)
"""Of the history that is under way."""


def _process() -> Proc:
    strand = STRAND.get()
    assert strand is not None and isinstance(strand.process, Proc)
    return strand.process


def _finish(replies: list[Any]) -> list[Any]:
    """As redis-py reads them: after an error of the connection there is nothing more to read."""
    for at, reply in enumerate(replies):
        if isinstance(reply, Exception) and not isinstance(reply, failures.ResponseError):
            return replies[:at] + [reply] * (len(replies) - at)
    return replies


class SimAsyncBroker(shell.AsyncBroker):
    """An AsyncBroker of a simulated process."""

    def _open(self) -> Any:
        return None

    async def aclose(self) -> None:
        pass

    async def _exchange(self, client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def deliver(replies: list[Any]) -> None:
            if not future.done():
                future.set_result(replies)

        network.send(_process(), commands, deliver)
        try:
            async with asyncio.timeout(self._read_timeout):
                return _finish(await future)
        except TimeoutError as error:
            return [error] * len(commands)

    async def _plain(self, *command: str) -> Any:
        await asyncio.sleep(0.001)
        if _process().link.away or network.loop.now < network.away_until:
            _process().trouble()
            msg = "connection refused"
            raise failures.ConnectionError(msg)
        return network.info

    def waiters(self, keys: Sequence[str]) -> list[Any]:
        return [SimWaiter(self, tuple(keys))]

    def subscribe(self, channel: str) -> Any:
        return SimAsyncSubscription(self, channel)


class SimBroker(shell.Broker):
    """A Broker of a simulated thread."""

    def _open(self) -> Any:
        return None

    def close(self) -> None:
        pass

    def _exchange(self, client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        event, answers = SimEvent(turns), []

        def deliver(replies: list[Any]) -> None:
            if not event.is_set():
                answers.extend(replies)
                event.set()

        network.send(_process(), commands, deliver)
        if not event.wait(self._read_timeout):
            event.set()
            return [failures.TimeoutError("Timeout reading from socket")] * len(commands)
        return _finish(answers)

    def subscribe(self, channel: str) -> Any:
        return SimSubscription(self, channel)


class SimWaiter:
    """In the place of listen.Waiter."""

    def __init__(self, broker: Any, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker

    async def wait(
        self, seconds: float, keys: Sequence[str] | None = None
    ) -> tuple[str, bytes] | None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def deliver(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        blocked = network.block(_process(), keys or self.keys, max(seconds, 0.001), deliver)
        try:
            async with asyncio.timeout(seconds + GRACE):
                reply: tuple[str, bytes] | None = await future
                return reply
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self._broker.address) from error
        finally:
            network.hang_up(blocked)

    async def aclose(self) -> None:
        pass


class SimAsyncSubscription:
    """In the place of listen.AsyncSubscription."""

    def __init__(self, broker: Any, channel: str) -> None:
        self._broker = broker
        self._heard: asyncio.Queue[str] = asyncio.Queue()
        self._listener = Listener(_process(), channel, self._heard.put_nowait)

    async def open(self) -> None:
        await asyncio.sleep(0.001)
        if self._listener.process.link.away:
            error = failures.ConnectionError("connection refused")
            raise no_answer(error, self._broker.address)
        network.listen(self._listener)

    async def read(self) -> str:
        return await self._heard.get()

    async def aclose(self) -> None:
        network.unlisten(self._listener)


class SimSubscription:
    """In the place of listen.Subscription."""

    def __init__(self, broker: Any, channel: str) -> None:
        self._broker = broker
        self._heard: list[str] = []
        self._event = SimEvent(turns)
        self._listener = Listener(_process(), channel, self._hear)

    def _hear(self, id: str) -> None:
        self._heard.append(id)
        self._event.set()

    def open(self) -> None:
        current_thread().park(0.001)
        if self._listener.process.link.away:
            raise StoreUnavailable("connection refused")
        network.listen(self._listener)

    def read(self, seconds: float) -> str | None:
        self._event.wait(seconds)
        self._event.clear()
        return self._heard.pop(0) if self._heard else None

    def close(self) -> None:
        network.unlisten(self._listener)
