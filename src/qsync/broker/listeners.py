"""Connections that block on wake lists, or that subscribe to channels.

Each object uses its own connection, without retries, and closes it if a reply is more than
BLOCKING_READ_GRACE_S late.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import redis.exceptions as failures

from qsync.broker import redis_clients, redis_errors
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.broker.channels import ChannelEvent, Channels
from qsync.broker.error_mapping import mapped_errors, opening, translate, unavailable
from qsync.broker.exchanges import Command, send_calls
from qsync.broker.protocol import PlainConnection, RedisConnection, pack_commands, wrap_connection
from qsync.broker.redis_internals import socket_of
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError

T = TypeVar("T")

SILENT_TEXT: Final = "a listening connection no longer gets replies"

BLOCKING_READ_GRACE_S: Final = 2.0
"""How late the reply to a blocking read may be before its connection counts as dead, in seconds."""

IDLE_S: Final = 5.0
"""How long a subscription waits for messages before it pings the store, in seconds."""


class Source(Protocol):
    """The part of Broker that this module uses."""

    address: Address

    def client_at(self, node: Node | None) -> Any:
        """Return a client with one connection to a node; None means the only node."""

    def record_node_error(self, node: Node | None, error: BaseException) -> None:
        """Record an error that a node returned, or that broke a connection to the node."""


class AsyncSource(Protocol):
    """The part of AsyncBroker that this module uses."""

    address: Address
    flow_queues: set[str]

    async def run_many(self, calls: Sequence[Call[T]]) -> list[T | QsyncError]:
        """Try each call once."""

    async def client_for(self, key: str) -> Any:
        """Return a client with one connection to the node that holds a key."""

    def client_at(self, node: Node | None) -> Any:
        """Return a client with one connection to a node; None means the only node."""

    async def suspect(self, key: str, error: BaseException) -> None:
        """Record a redirection or an error of a connection to the node that holds a key."""

    async def record_node_error(self, node: Node | None, error: BaseException) -> None:
        """Record an error that a node returned, or that broke a connection to the node."""


class Subscription:
    """A blocking subscription to sharded channels of one node.

    One thread uses it; any thread may call `wake`.
    """

    def __init__(self, broker: Source, node: Node | None) -> None:
        self._broker, self._node = broker, node
        self._channels = Channels()
        self._client: Any = None
        self._connection: Any = None
        self._heard = 0.0
        self._asked = False
        self._waker = SocketWaker()

    @property
    def confirmed(self) -> Collection[str]:
        """Return the channels whose subscription the store has confirmed."""
        return self._channels.confirmed

    def open(self) -> None:
        """Connect; raise StoreUnavailable if that fails."""
        with mapped_errors(self._broker.address, self._on_broken_connection), opening():
            self._client = self._broker.client_at(self._node)
            self._connection = self._client.connection_pool.get_connection()
            self._heard, self._asked = time.monotonic(), False

    def follow(self, channels: Collection[str]) -> None:
        """Subscribe to exactly these channels; raise StoreUnavailable if the connection broke."""
        if commands := self._channels.commands(channels):
            self._send(*commands)

    def read(self, seconds: float) -> ChannelEvent | None:
        """Return the next event; None after `seconds` or a call to `wake`.

        Raises StoreUnavailable if the connection broke.
        """
        try:
            if not self._can_read(seconds):
                self._ask_if_idle()
                return None
            try:
                reply = self._connection.read_response()
            except failures.ResponseError as error:
                reply = error
        except redis_errors.LIBRARY_ERRORS as error:  # cheaper per event than mapped_errors
            self._on_broken_connection(error)
            raise unavailable(error, self._broker.address) from error
        self._heard, self._asked = time.monotonic(), False
        event = self._channels.parse(reply)
        if event is not None and event.error is not None:
            self._broker.record_node_error(self._node, event.error)
        return event

    def wake(self) -> None:
        """End the current `read`, or the next one."""
        self._waker.ring()

    def _can_read(self, seconds: float) -> bool:
        sock = socket_of(self._connection)
        if sock is None:
            return bool(self._connection.can_read(timeout=max(seconds, 0.0)))
        if self._connection.can_read(timeout=0):
            return True
        self._waker.wait(sock, max(seconds, 0.0))
        return bool(self._connection.can_read(timeout=0))

    def _ask_if_idle(self) -> None:
        silent = time.monotonic() - self._heard
        if not self._asked and silent >= IDLE_S:
            self._asked = True
            self._send(self._channels.ping())
        elif silent >= IDLE_S + BLOCKING_READ_GRACE_S:
            raise failures.TimeoutError(SILENT_TEXT)

    def _send(self, *commands: Command) -> None:
        with mapped_errors(self._broker.address, self._on_broken_connection):
            self._connection.send_packed_command(pack_commands(commands), check_health=False)

    def _on_broken_connection(self, error: BaseException) -> None:
        self.close()
        self._broker.record_node_error(self._node, error)

    def close(self) -> None:
        """Close the connection."""
        self._waker.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        client, self._client = self._client, None
        if client is not None:
            redis_clients.close(client)


class SocketWaker:
    """Wakes a thread that waits for a socket. Any thread may call `ring`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)

    def ring(self) -> None:
        """End the current `wait`, or the next one."""
        with self._lock, contextlib.suppress(OSError):  # the buffer is full, so a ring is pending
            self._rung.send(b"!")

    def wait(self, sock: socket.socket, seconds: float) -> None:
        """Wait until the socket is readable, `ring` is called or `seconds` have passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._heard, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            self._heard.recv(4096)

    def close(self) -> None:
        """Close the socket pair."""
        with self._lock:
            self._heard.close()
            self._rung.close()


class BlockingPop:
    """A connection that waits until one of its lists has an element, and pops this element."""

    def __init__(self, broker: AsyncSource, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker
        self._client: Any = None
        self._connection: RedisConnection | PlainConnection | None = None

    async def pop(
        self, seconds: float, keys: Sequence[str] | None = None
    ) -> tuple[str, bytes] | None:
        """Pop an element; return the key of its list and its value, or None after `seconds`.

        `keys` is a subset of the connection's keys; None means all of them.
        Raises StoreUnavailable; a popped element may then be lost.
        """
        [reply] = await self._exchange(seconds + BLOCKING_READ_GRACE_S, self._blpop(seconds, keys))
        if isinstance(reply, Exception):
            raise await self._failed(reply) from reply
        return None if reply is None else (reply[0].decode(), reply[1])

    async def pop_then_run(self, seconds: float, call: Call[T]) -> T | QsyncError | None:
        """Wait up to `seconds` for an element, then make a call, in one round trip.

        The call is sent together with the wait, and the store runs it when the wait ends. Returns
        None if the store did not reply in time. Raises StoreUnavailable; the call may have run.
        """
        if self._broker.address.clock is not None:  # the call needs the time after the wait
            await self.pop(seconds)
            [answer] = await self._broker.run_many([call])
            return answer
        exchanges = send_calls([call], self._broker.flow_queues)
        commands = next(exchanges)
        woken, *replies = await self._exchange(
            seconds + BLOCKING_READ_GRACE_S, self._blpop(seconds), *commands
        )
        if isinstance(woken, Exception):
            raise await self._failed(woken) from woken
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                [reply] = end.value
                break
            replies = await self._exchange(BLOCKING_READ_GRACE_S, *commands)
        if isinstance(reply, failures.ResponseError):
            return translate(reply, call, self._broker.address)
        return None if reply is None else call.decode(reply)

    def _blpop(self, seconds: float, keys: Sequence[str] | None = None) -> Command:
        return ("BLPOP", *(keys or self.keys), f"{max(seconds, 0.001):.3f}")

    async def _exchange(self, seconds: float, *commands: Command) -> list[Any]:
        """Send commands; return their replies, or None for each that did not arrive in time.

        A timeout closes the connection but raises nothing, since a handler that blocks the loop can
        cause a timeout although the store is reachable. If the store is down, the next exchange
        fails.
        """
        connection = self._connection or await self._open()
        try:
            replies = await connection.request(commands, seconds)
        except BaseException:
            await self.aclose()
            raise
        if (error := connection.error) is None:
            return replies
        failure = await self._failed(error)
        if isinstance(error, TimeoutError):
            return [None if reply is error else reply for reply in replies]
        raise failure from error

    async def _failed(self, error: Exception) -> QsyncError:
        """Close the connection; return qsync's exception for the error."""
        await self.aclose()
        await self._broker.suspect(self.keys[0], error)
        return unavailable(error, self._broker.address)

    async def _open(self) -> RedisConnection | PlainConnection:
        suspect = partial(self._broker.suspect, self.keys[0])
        async with mapped_errors(self._broker.address, suspect), _connecting(self):
            self._client = await self._broker.client_for(self.keys[0])
            raw = await self._client.connection_pool.get_connection()
            connection = self._connection = wrap_connection(raw)
        return connection

    async def aclose(self) -> None:
        """Close the connection; the next wait opens another connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.raw.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await redis_clients.aclose(client)


class AsyncSubscription:
    """An asyncio subscription to sharded channels of one node.

    One coroutine reads; another may call `follow` at the same time.
    """

    def __init__(self, broker: AsyncSource, node: Node | None) -> None:
        self._broker, self._node = broker, node
        self._channels = Channels()
        self._client: Any = None
        self._connection: Any = None

    @property
    def confirmed(self) -> Collection[str]:
        """Return the channels whose subscription the store has confirmed."""
        return self._channels.confirmed

    async def open(self) -> None:
        """Connect; raise StoreUnavailable if that fails."""
        async with (
            mapped_errors(self._broker.address, self._on_broken_connection),
            _connecting(self),
        ):
            self._client = self._broker.client_at(self._node)
            self._connection = await self._client.connection_pool.get_connection()

    async def follow(self, channels: Collection[str]) -> None:
        """Subscribe to exactly these channels.

        If the connection breaks, this method does not raise; the next `read` does.
        """
        commands = self._channels.commands(channels)
        if commands and self._connection is not None:
            with contextlib.suppress(*redis_errors.LIBRARY_ERRORS):
                await self._send(*commands)

    async def read(self) -> ChannelEvent:
        """Wait for the next event, without a time limit.

        Raises StoreUnavailable if the connection broke.
        """
        try:
            asked = False
            while True:
                # None if no message arrived in time; the read can be repeated
                try:
                    limit = BLOCKING_READ_GRACE_S if asked else IDLE_S
                    reply = await self._connection.read_response(timeout=limit)
                except failures.ResponseError as error:
                    reply = error
                if reply is not None:
                    if (event := self._channels.parse(reply)) is not None:
                        if event.error is not None:
                            await self._broker.record_node_error(self._node, event.error)
                        return event
                    asked = False
                elif asked:
                    raise failures.TimeoutError(SILENT_TEXT)
                else:
                    await self._send(self._channels.ping())
                    asked = True
        except redis_errors.LIBRARY_ERRORS as error:  # cheaper per event than mapped_errors
            await self._on_broken_connection(error)
            raise unavailable(error, self._broker.address) from error

    async def _send(self, *commands: Command) -> None:
        await self._connection.send_packed_command(pack_commands(commands), check_health=False)

    async def _on_broken_connection(self, error: BaseException) -> None:
        await self.aclose()
        await self._broker.record_node_error(self._node, error)

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
    """Raise CancelledError at the end of the block if the task was cancelled within it.

    redis-py sends through `asyncio.wait_for`, which in Python 3.11 loses a cancellation that
    arrives just when the awaited operation has finished.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


@contextlib.asynccontextmanager
async def _connecting(connection: BlockingPop | AsyncSubscription) -> AsyncIterator[None]:
    """Limit the opening of a connection to CONNECT_TIMEOUT; on an error, close it."""
    try:
        with opening(), heeding_cancellation():
            async with asyncio.timeout(redis_clients.CONNECT_TIMEOUT):
                yield
    except BaseException:
        await connection.aclose()
        raise
