"""Connections that wait for the store: on lists that wake, and on channels of ended tasks.

Each is a connection of its own, without retries, whose reads end soon after they should.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import redis.exceptions as failures

from qsync.broker import connect
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.broker.durable import Command, eval_, evalsha
from qsync.broker.faults import LIBRARY_ERRORS, no_answer, translate
from qsync.broker.wire import PlainWire, Wire, wire_of
from qsync.errors import QsyncError

T = TypeVar("T")

SILENT: Final = "a connection that listens gets no answer any more"

GRACE: Final = 2.0
"""How much later than asked for a blocking read may answer before its connection counts as dead."""

IDLE_S: Final = 5.0
"""A subscription that has heard nothing for so many seconds asks whether the store is there."""


class Opens(Protocol):
    """A Broker, as far as it is needed here."""

    address: Address

    def client_for(self, key: str) -> Any:
        """A client with one connection to the node that holds a key."""

    def suspect(self, key: str, error: BaseException) -> None:
        """A connection to the node that holds a key broke so, or was sent elsewhere."""


class AsyncOpens(Protocol):
    """An AsyncBroker, as far as it is needed here."""

    address: Address

    async def client_for(self, key: str) -> Any:
        """A client with one connection to the node that holds a key."""

    async def suspect(self, key: str, error: BaseException) -> None:
        """A connection to the node that holds a key broke so, or was sent elsewhere."""


class Subscription:
    """A connection that listens on one sharded channel and blocks."""

    def __init__(self, broker: Opens, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._client: Any = None
        self._connection: Any = None
        self._heard = 0.0
        self._asked = False

    def open(self) -> None:
        """Connect and subscribe; StoreUnavailable when that fails."""
        try:
            self._client = self._broker.client_for(self._channel)
            self._connection = self._client.connection_pool.get_connection()
            self._connection.send_command("SSUBSCRIBE", self._channel)
            self._connection.read_response()
            self._heard, self._asked = time.monotonic(), False
        except LIBRARY_ERRORS as error:
            raise self._broke(error) from error

    def read(self, seconds: float) -> str | None:
        """The next message, or None after so many seconds; StoreUnavailable when it broke."""
        try:
            if not self._connection.can_read(timeout=max(seconds, 0.0)):
                self._ask_if_idle()
                return None
            reply = self._connection.read_response()
        except LIBRARY_ERRORS as error:
            raise self._broke(error) from error
        self._heard, self._asked = time.monotonic(), False
        return _message(reply)

    def _ask_if_idle(self) -> None:
        silent = time.monotonic() - self._heard
        if not self._asked and silent >= IDLE_S:
            self._connection.send_command("PING", check_health=False)
            self._asked = True
        elif silent >= IDLE_S + GRACE:
            raise failures.TimeoutError(SILENT)

    def _broke(self, error: BaseException) -> QsyncError:
        self.close()
        self._broker.suspect(self._channel, error)
        return no_answer(error, self._broker.address)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        client, self._client = self._client, None
        if client is not None:
            connect.close(client)


class Waiter:
    """A connection that blocks until one of its lists has an element, and takes it."""

    def __init__(self, broker: AsyncOpens, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker
        self._client: Any = None
        self._wire: Wire | PlainWire | None = None

    async def wait(
        self, seconds: float, keys: Sequence[str] | None = None
    ) -> tuple[str, bytes] | None:
        """Take an element: the key of its list and its value; None after so many seconds.

        `keys` are some of the waiter's own; None: all of them.
        Raises StoreUnavailable, and what was taken meanwhile may be lost.
        """
        [reply] = await self._exchange(seconds + GRACE, self._blpop(seconds, keys))
        await self._check(reply)
        return None if reply is None else (reply[0].decode(), reply[1])

    async def wait_and_run(self, seconds: float, call: Call[T]) -> T | QsyncError | None:
        """Wait for an element, at most so many seconds, and make a call: in one round trip.

        The store has the call beforehand, and makes it when it wakes. None: it did not answer in
        time. Raises StoreUnavailable, and then the call may have been made.
        """
        woken, reply = await self._exchange(seconds + GRACE, self._blpop(seconds), evalsha(call))
        await self._check(woken)
        if isinstance(reply, failures.NoScriptError):
            [reply] = await self._exchange(GRACE, eval_(call))
        if reply is None:
            return None
        if isinstance(reply, failures.ResponseError):
            return translate(reply, call, self._broker.address)
        return call.decode(reply)

    def _blpop(self, seconds: float, keys: Sequence[str] | None = None) -> Command:
        return ("BLPOP", *(keys or self.keys), f"{max(seconds, 0.001):.3f}")

    async def _exchange(self, seconds: float, *commands: Command) -> list[Any]:
        """The replies; None in the place of those that did not come in time: then the connection
        may be dead, or a handler blocked the loop. The next one will tell."""
        wire = self._wire or await self._open()
        try:
            replies = await wire.exchange(commands, seconds)
        except BaseException:
            await self.aclose()
            raise
        if (broken := wire.broken) is None:
            return replies
        await self.aclose()
        await self._broker.suspect(self.keys[0], broken)
        if isinstance(broken, TimeoutError):
            return [None if reply is broken else reply for reply in replies]
        raise no_answer(broken, self._broker.address) from broken

    async def _check(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            await self.aclose()
            await self._broker.suspect(self.keys[0], reply)
            raise no_answer(reply, self._broker.address) from reply

    async def _open(self) -> Wire | PlainWire:
        async with _opening(self, self._broker, self.keys[0]):
            self._client = await self._broker.client_for(self.keys[0])
            self._wire = wire_of(await self._client.connection_pool.get_connection())
        return self._wire

    async def aclose(self) -> None:
        """Close the connection; the next wait opens another."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await connect.aclose(client)


class AsyncSubscription:
    """A connection that listens on one sharded channel."""

    def __init__(self, broker: AsyncOpens, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._client: Any = None
        self._connection: Any = None

    async def open(self) -> None:
        """Connect and subscribe; StoreUnavailable when that fails."""
        async with _opening(self, self._broker, self._channel):
            self._client = await self._broker.client_for(self._channel)
            self._connection = await self._client.connection_pool.get_connection()
            await self._connection.send_command("SSUBSCRIBE", self._channel)
            await self._connection.read_response()

    async def read(self) -> str:
        """The next message, however long it takes; StoreUnavailable when the connection broke."""
        try:
            asked = False
            while True:
                # None: nothing came in time, and it may be asked for again.
                reply = await self._connection.read_response(timeout=GRACE if asked else IDLE_S)
                if reply is not None:
                    if (message := _message(reply)) is not None:
                        return message
                    asked = False
                elif asked:
                    raise failures.TimeoutError(SILENT)
                else:
                    await self._connection.send_command("PING", check_health=False)
                    asked = True
        except LIBRARY_ERRORS as error:
            await self.aclose()
            await self._broker.suspect(self._channel, error)
            raise no_answer(error, self._broker.address) from error

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await connect.aclose(client)


@contextlib.contextmanager
def heeding_cancellation() -> Iterator[None]:
    """A cancellation that came meanwhile is heeded afterwards, at the latest.

    redis-py sends by way of `asyncio.wait_for`, which in Python 3.11 forgets a cancellation that
    comes when what it waits for has just been done.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


@contextlib.asynccontextmanager
async def _opening(
    connection: Waiter | AsyncSubscription, broker: AsyncOpens, key: str
) -> AsyncIterator[None]:
    """Within it a connection opens; what goes wrong closes it, and is StoreUnavailable."""
    try:
        with heeding_cancellation():
            async with asyncio.timeout(connect.CONNECT_TIMEOUT):
                yield
    except LIBRARY_ERRORS as error:
        await connection.aclose()
        await broker.suspect(key, error)
        raise no_answer(error, broker.address) from error
    except BaseException:
        await connection.aclose()
        raise


def _message(reply: Any) -> str | None:
    """What was published; None for the answer to a PING, "" when the store sends no more."""
    if reply[0] == b"pong":
        return None
    return bytes(reply[-1]).decode() if isinstance(reply[-1], bytes) else ""
