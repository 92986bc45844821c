"""Connections that wait for the store: on lists that wake, and on channels of ended tasks.

Each is a connection of its own, without retries, whose reads end soon after they should.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import redis.exceptions as failures

from qsync.broker import redis_clients
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.broker.channels import Channels, Heard
from qsync.broker.error_mapping import LIBRARY_ERRORS, no_answer, translate
from qsync.broker.exchanges import Command, eval_, evalsha
from qsync.broker.protocol import PlainConnection, RedisConnection, packets, wire_of
from qsync.broker.redis_internals import socket_of
from qsync.broker.slot_map import Node
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

    def client_at(self, node: Node | None) -> Any:
        """A client with one connection to a node of a cluster; None: the only node."""

    def distrust(self, node: Node | None, error: BaseException) -> None:
        """Note the error that a node answered, or that broke a connection to it."""


class AsyncOpens(Protocol):
    """An AsyncBroker, as far as it is needed here."""

    address: Address

    async def client_for(self, key: str) -> Any:
        """A client with one connection to the node that holds a key."""

    def client_at(self, node: Node | None) -> Any:
        """A client with one connection to a node of a cluster; None: the only node."""

    async def suspect(self, key: str, error: BaseException) -> None:
        """Note the error that broke a connection to the node of a key, or redirected it."""

    async def distrust(self, node: Node | None, error: BaseException) -> None:
        """Note the error that a node answered, or that broke a connection to it."""


class Subscription:
    """A connection to one node that listens on sharded channels and blocks.

    One thread uses it; `wake` is for any thread.
    """

    def __init__(self, broker: Opens, node: Node | None) -> None:
        self._broker, self._node = broker, node
        self._channels = Channels()
        self._client: Any = None
        self._connection: Any = None
        self._heard = 0.0
        self._asked = False
        self._bell = Bell()

    @property
    def confirmed(self) -> Collection[str]:
        """The channels whose messages arrive."""
        return self._channels.confirmed

    def open(self) -> None:
        """Connect; StoreUnavailable when that fails."""
        try:
            self._client = self._broker.client_at(self._node)
            self._connection = self._client.connection_pool.get_connection()
            self._heard, self._asked = time.monotonic(), False
        except LIBRARY_ERRORS as error:
            raise self._broke(error) from error

    def follow(self, wanted: Collection[str]) -> None:
        """Ask for messages of these channels and of no others; StoreUnavailable when it broke."""
        if commands := self._channels.commands(wanted):
            self._send(*commands)

    def read(self, seconds: float) -> Heard | None:
        """What is heard next; None after so many seconds, or when somebody called `wake`.

        Raises StoreUnavailable when the connection broke.
        """
        try:
            if not self._can_read(seconds):
                self._ask_if_idle()
                return None
            try:
                reply = self._connection.read_response()
            except failures.ResponseError as error:
                reply = error
        except LIBRARY_ERRORS as error:
            raise self._broke(error) from error
        self._heard, self._asked = time.monotonic(), False
        heard = self._channels.hear(reply)
        if heard is not None and heard.error is not None:
            self._broker.distrust(self._node, heard.error)
        return heard

    def wake(self) -> None:
        """End a read that waits, or the next one."""
        self._bell.ring()

    def _can_read(self, seconds: float) -> bool:
        sock = socket_of(self._connection)
        if sock is None:
            return bool(self._connection.can_read(timeout=max(seconds, 0.0)))
        if self._connection.can_read(timeout=0):
            return True
        self._bell.wait(sock, max(seconds, 0.0))
        return bool(self._connection.can_read(timeout=0))

    def _ask_if_idle(self) -> None:
        silent = time.monotonic() - self._heard
        if not self._asked and silent >= IDLE_S:
            self._asked = True
            self._send(self._channels.ping())
        elif silent >= IDLE_S + GRACE:
            raise failures.TimeoutError(SILENT)

    def _send(self, *commands: Command) -> None:
        try:
            self._connection.send_packed_command(packets(commands), check_health=False)
        except LIBRARY_ERRORS as error:
            raise self._broke(error) from error

    def _broke(self, error: BaseException) -> QsyncError:
        self.close()
        self._broker.distrust(self._node, error)
        return no_answer(error, self._broker.address)

    def close(self) -> None:
        """Close the connection."""
        self._bell.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        client, self._client = self._client, None
        if client is not None:
            redis_clients.close(client)


class Bell:
    """Wakes a thread that waits for a socket. Any thread may ring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)

    def ring(self) -> None:
        """End a wait, or the next one."""
        with self._lock, contextlib.suppress(OSError):  # full: it rings already; or closed
            self._rung.send(b"!")

    def wait(self, sock: socket.socket, seconds: float) -> None:
        """Wait until the socket can be read, somebody rings, or so many seconds have passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._heard, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            self._heard.recv(4096)

    def close(self) -> None:
        """Free the sockets."""
        with self._lock:
            self._heard.close()
            self._rung.close()


class BlockingPop:
    """A connection that blocks until one of its lists has an element, and takes it."""

    def __init__(self, broker: AsyncOpens, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker
        self._client: Any = None
        self._wire: RedisConnection | PlainConnection | None = None

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

    async def _open(self) -> RedisConnection | PlainConnection:
        try:
            async with _opening(self):
                self._client = await self._broker.client_for(self.keys[0])
                self._wire = wire_of(await self._client.connection_pool.get_connection())
        except LIBRARY_ERRORS as error:
            await self._broker.suspect(self.keys[0], error)
            raise no_answer(error, self._broker.address) from error
        return self._wire

    async def aclose(self) -> None:
        """Close the connection; the next wait opens another."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await redis_clients.aclose(client)


class AsyncSubscription:
    """A connection to one node that listens on sharded channels.

    One coroutine reads; another may call `follow` meanwhile.
    """

    def __init__(self, broker: AsyncOpens, node: Node | None) -> None:
        self._broker, self._node = broker, node
        self._channels = Channels()
        self._client: Any = None
        self._connection: Any = None

    @property
    def confirmed(self) -> Collection[str]:
        """The channels whose messages arrive."""
        return self._channels.confirmed

    async def open(self) -> None:
        """Connect; StoreUnavailable when that fails."""
        try:
            async with _opening(self):
                self._client = self._broker.client_at(self._node)
                self._connection = await self._client.connection_pool.get_connection()
        except LIBRARY_ERRORS as error:
            raise await self._broke(error) from error

    async def follow(self, wanted: Collection[str]) -> None:
        """Ask for messages of these channels and of no others.

        A connection that breaks meanwhile is noticed by `read`.
        """
        commands = self._channels.commands(wanted)
        if commands and self._connection is not None:
            with contextlib.suppress(*LIBRARY_ERRORS):
                await self._send(*commands)

    async def read(self) -> Heard:
        """What is heard next, however long it takes; StoreUnavailable when the connection broke."""
        try:
            asked = False
            while True:
                # None: nothing came in time, and it may be asked for again.
                try:
                    limit = GRACE if asked else IDLE_S
                    reply = await self._connection.read_response(timeout=limit)
                except failures.ResponseError as error:
                    reply = error
                if reply is not None:
                    if (heard := self._channels.hear(reply)) is not None:
                        if heard.error is not None:
                            await self._broker.distrust(self._node, heard.error)
                        return heard
                    asked = False
                elif asked:
                    raise failures.TimeoutError(SILENT)
                else:
                    await self._send(self._channels.ping())
                    asked = True
        except LIBRARY_ERRORS as error:
            raise await self._broke(error) from error

    async def _send(self, *commands: Command) -> None:
        await self._connection.send_packed_command(packets(commands), check_health=False)

    async def _broke(self, error: BaseException) -> QsyncError:
        await self.aclose()
        await self._broker.distrust(self._node, error)
        return no_answer(error, self._broker.address)

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await redis_clients.aclose(client)


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
async def _opening(connection: BlockingPop | AsyncSubscription) -> AsyncIterator[None]:
    """Within it a connection opens; what goes wrong closes it."""
    try:
        with heeding_cancellation():
            async with asyncio.timeout(redis_clients.CONNECT_TIMEOUT):
                yield
    except BaseException:
        await connection.aclose()
        raise
