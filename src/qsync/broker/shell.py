"""The only code that talks to the store: `Broker` blocks, `AsyncBroker` is awaited.

They run Calls by EVALSHA, and by EVAL of the same text where the store does not have the script.
A call may be run twice, so whatever is transient is tried again, with a jittered delay between
tries, for as long as the caller's patience lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import hiredis
import redis
import redis.asyncio
import redis.exceptions as failures

from qsync.backoff import Backoff
from qsync.broker import connect
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.errors import ConfigError, QsyncError, QueueFull, StoreUnavailable

T = TypeVar("T")

log = logging.getLogger("qsync.broker")

PATIENCE: Final = 10.0
"""How long a client tries again before it raises StoreUnavailable, seconds, unless told."""


class _Own(Enum):
    PATIENCE = "the broker's own"


OWN: Final = _Own.PATIENCE
"""For a call: as patient as the broker was made."""

Patience = float | None | Literal[_Own.PATIENCE]
"""Seconds; None: for ever."""

GRACE: Final = 2.0
"""How much later than asked for a blocking read may answer before its connection counts as dead."""


class Fault(Enum):
    """What an error of the store means for who made the call."""

    TRANSIENT = "try again"
    FULL = "out of memory"
    DENIED = "credentials or rights"
    BUG = "ours"


_TRANSIENT_CODES: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "MISCONF", "NOREPLICAS",
    "TRYAGAIN", "UNKILLABLE", "MOVED", "ASK", "NOSCRIPT", "NOQUORUM", "INPROG", "UNBLOCKED",
)  # fmt: skip


def classify(error: BaseException) -> Fault:
    """Sort an error of redis-py, or of the store, by what can be done about it."""
    text = str(error)
    if isinstance(error, failures.OutOfMemoryError) or text.startswith("OOM"):
        return Fault.FULL
    denied = (
        failures.AuthenticationError,
        failures.AuthorizationError,
        failures.NoPermissionError,
        failures.AuthenticationWrongNumberOfArgsError,
    )
    if isinstance(error, denied) or text.startswith(("NOPERM", "NOAUTH", "WRONGPASS")):
        return Fault.DENIED
    transient = (
        failures.ConnectionError, failures.TimeoutError, failures.ReadOnlyError,
        failures.ClusterError, failures.TryAgainError, failures.AskError, failures.NoScriptError,
        failures.RedisClusterException, OSError, TimeoutError, EOFError,
    )  # fmt: skip
    if isinstance(error, transient) or text.startswith(_TRANSIENT_CODES):
        return Fault.TRANSIENT
    if "max number of clients" in text or "Script killed" in text or "ACL failure" in text:
        return Fault.DENIED if "ACL failure" in text else Fault.TRANSIENT
    return Fault.BUG


def translate(error: BaseException, call: Call[Any], address: Address) -> QsyncError:
    """The exception of ours for an error of the store."""
    name = call.script.name
    match classify(error):
        case Fault.FULL:
            return QueueFull(f"{name}: the store at {address} is out of memory: {error}")
        case Fault.DENIED:
            return ConfigError(f"{name}: the store at {address} refuses: {error}")
        case Fault.TRANSIENT:
            shown = str(error) or type(error).__name__
            return StoreUnavailable(f"{name}: the store at {address} is not available: {shown}")
        case Fault.BUG:
            return QsyncError(f"{name}: the store at {address} answered {error}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says of itself; None where it is not allowed to ask."""

    version: tuple[int, ...] | None
    product: str
    policy: str | None


def _evalsha(call: Call[Any]) -> tuple[Any, ...]:
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def _eval(call: Call[Any]) -> tuple[Any, ...]:
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.args)


def _pack(commands: Sequence[tuple[Any, ...]]) -> list[bytes]:
    return [hiredis.pack_command(command) for command in commands]


def _facts(info: Mapping[str, Any]) -> Facts:
    product = "valkey" if "valkey_version" in info else "redis"
    parts = str(info.get(f"{product}_version", "")).split(".")
    version = tuple(int(part) for part in parts if part.isdigit()) or None
    return Facts(version, product, info.get("maxmemory_policy"))


class Broker:
    """Runs calls on the store and blocks meanwhile. Safe to share between threads and to fork."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 64,
        read_timeout: float = connect.READ_TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        self.address = address
        self.patience = patience
        self._connections = connections
        self._read_timeout = read_timeout
        self._client: Any = None

    def run(self, call: Call[T], *, patience: Patience = OWN) -> T:
        """Make one call. Transient errors are tried again for `patience` seconds, None: for ever.

        Raises StoreUnavailable, QueueFull, or ConfigError when the store refuses the credentials.
        """
        backoff, ends = Backoff(), _ends(self.patience if patience is OWN else patience)
        while True:
            [reply] = self._try([call])
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            delay = backoff.next()
            if classify(reply) is not Fault.TRANSIENT or time.monotonic() + delay > ends:
                raise translate(reply, call, self.address) from reply
            time.sleep(delay)

    def run_many(self, calls: Sequence[Call[T]]) -> list[T | QsyncError]:
        """Make calls in one round trip (in a cluster, one each), each tried once."""
        replies = self._try(calls) if calls else []
        return _settle(replies, calls, self.address)

    def ping(self) -> float:
        """The seconds that a round trip took; StoreUnavailable when there was no answer."""
        began = time.perf_counter()
        try:
            self._plain("PING")
        except _LIBRARY_ERRORS as error:
            raise _no_answer(error, self.address) from error
        return time.perf_counter() - began

    def subscribe(self, channel: str) -> Subscription:
        """Listen on a sharded channel, on a connection of its own."""
        return Subscription(self, channel)

    def close(self) -> None:
        """Close the connections; the broker may be used again and opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            connect.close(client)

    def client_for(self, key: str) -> redis.Redis:
        """A client with one connection to the node that holds a key."""
        address = self.address
        if address.kind == "cluster":
            node = self._open().get_node_from_key(key)
            address = connect.at_node(address, node.host, node.port)
        return connect.node_client(address, connections=1, read_timeout=self._read_timeout)

    def _open(self) -> Any:
        if self._client is None:
            make = connect.cluster_client if self.address.kind == "cluster" else connect.node_client
            self._client = make(
                self.address, connections=self._connections, read_timeout=self._read_timeout
            )
        return self._client

    def _plain(self, *command: str) -> Any:
        options = {"target_nodes": "random"} if self.address.kind == "cluster" else {}
        return self._open().execute_command(*command, **options)

    def _try(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """One reply a call, or the error that took its place."""
        try:
            client = self._open()
        except _LIBRARY_ERRORS as error:
            return [error] * len(calls)
        if self.address.kind == "cluster":
            return [self._try_in_cluster(client, call) for call in calls]
        replies = self._exchange(client, [_evalsha(call) for call in calls])
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = self._exchange(client, [_eval(calls[at]) for at in missing])
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    def _try_in_cluster(self, client: Any, call: Call[Any]) -> Any:
        try:
            try:
                return client.execute_command(*_evalsha(call))
            except failures.NoScriptError:
                return client.execute_command(*_eval(call))
        except _LIBRARY_ERRORS as error:
            return error

    def _exchange(self, client: redis.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pool: Any = client.connection_pool
        replies: list[Any] = []
        connection = None
        try:
            connection = pool.get_connection()
            connection.send_packed_command(_pack(commands), check_health=False)
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except failures.ResponseError as error:
                    replies.append(error)
        except _LIBRARY_ERRORS as error:
            if connection is not None:
                connection.disconnect()
            replies += [error] * (len(commands) - len(replies))
        except BaseException:
            if connection is not None:
                connection.disconnect()
            raise
        finally:
            if connection is not None:
                if any(_moved_away(reply) for reply in replies):
                    connection.disconnect()
                    pool.disconnect(inuse_connections=False)
                pool.release(connection)
        return replies


class Subscription:
    """A connection that listens on one sharded channel and blocks."""

    def __init__(self, broker: Broker, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._client: Any = None
        self._connection: Any = None

    def open(self) -> None:
        """Connect and subscribe; StoreUnavailable when that fails."""
        try:
            self._client = self._broker.client_for(self._channel)
            self._connection = self._client.connection_pool.get_connection()
            self._connection.send_command("SSUBSCRIBE", self._channel)
            self._connection.read_response()
        except _LIBRARY_ERRORS as error:
            self.close()
            raise _no_answer(error, self._broker.address) from error

    def read(self, seconds: float) -> str | None:
        """The next message, or None after so many seconds; StoreUnavailable when it broke."""
        try:
            if not self._connection.can_read(timeout=max(seconds, 0.0)):
                return None
            reply = self._connection.read_response()
        except _LIBRARY_ERRORS as error:
            self.close()
            raise _no_answer(error, self._broker.address) from error
        return _message(reply)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        client, self._client = self._client, None
        if client is not None:
            connect.close(client)


class AsyncBroker:
    """Runs calls on the store from one event loop. Calls made at the same time do not wait."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 8,
        read_timeout: float = connect.READ_TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        self.address = address
        self.patience = patience
        self._connections = connections
        self._read_timeout = read_timeout
        self._client: Any = None

    async def run(self, call: Call[T], *, patience: Patience = OWN) -> T:
        """Make one call. Transient errors are tried again for `patience` seconds, None: for ever.

        Raises StoreUnavailable, QueueFull, or ConfigError when the store refuses the credentials.
        """
        backoff, ends = Backoff(), _ends(self.patience if patience is OWN else patience)
        while True:
            [reply] = await self._try([call])
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            delay = backoff.next()
            if classify(reply) is not Fault.TRANSIENT or time.monotonic() + delay > ends:
                raise translate(reply, call, self.address) from reply
            await asyncio.sleep(delay)

    async def run_many(self, calls: Sequence[Call[T]]) -> list[T | QsyncError]:
        """Make calls in one round trip (in a cluster, one each, at once), each tried once."""
        replies = await self._try(calls) if calls else []
        return _settle(replies, calls, self.address)

    async def ping(self) -> float:
        """The seconds that a round trip took; StoreUnavailable when there was no answer."""
        began = time.perf_counter()
        try:
            await self._plain("PING")
        except _LIBRARY_ERRORS as error:
            raise _no_answer(error, self.address) from error
        return time.perf_counter() - began

    async def facts(self) -> Facts:
        """What the store says of itself; unknown where INFO is forbidden."""
        try:
            return _facts(await self._plain("INFO"))
        except failures.ResponseError as error:
            if classify(error) is Fault.DENIED:
                return Facts(None, "unknown", None)
            raise _no_answer(error, self.address) from error
        except _LIBRARY_ERRORS as error:
            raise _no_answer(error, self.address) from error

    def waiters(self, keys: Sequence[str]) -> list[Waiter]:
        """What it takes to block on these lists: one connection, in a cluster one for each."""
        if self.address.kind == "cluster":
            return [Waiter(self, (key,)) for key in keys]
        return [Waiter(self, tuple(keys))]

    def subscribe(self, channel: str) -> AsyncSubscription:
        """Listen on a sharded channel, on a connection of its own."""
        return AsyncSubscription(self, channel)

    async def aclose(self) -> None:
        """Close the connections; the broker may be used again and opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await connect.aclose(client)

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """A client with one connection to the node that holds a key."""
        address = self.address
        if address.kind == "cluster":
            cluster = self._open()
            await cluster.initialize()
            node = cluster.get_node_from_key(key)
            address = connect.at_node(address, node.host, node.port)
        return connect.async_node_client(address, connections=1, read_timeout=self._read_timeout)

    def _open(self) -> Any:
        if self._client is None:
            make = (
                connect.async_cluster_client
                if self.address.kind == "cluster"
                else connect.async_node_client
            )
            self._client = make(
                self.address, connections=self._connections, read_timeout=self._read_timeout
            )
        return self._client

    async def _plain(self, *command: str) -> Any:
        client = self._open()
        with _heeding_cancellation():
            if self.address.kind == "cluster":
                await client.initialize()
                return await client.get_random_node().execute_command(*command)
            return await client.execute_command(*command)

    async def _try(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """One reply a call, or the error that took its place."""
        client = self._open()
        if self.address.kind == "cluster":
            tries = [self._try_in_cluster(client, call) for call in calls]
            with _heeding_cancellation():
                return list(await asyncio.gather(*tries))
        replies = await self._exchange(client, [_evalsha(call) for call in calls])
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = await self._exchange(client, [_eval(calls[at]) for at in missing])
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    async def _try_in_cluster(self, client: Any, call: Call[Any]) -> Any:
        try:
            try:
                return await client.execute_command(*_evalsha(call))
            except failures.NoScriptError:
                return await client.execute_command(*_eval(call))
        except _LIBRARY_ERRORS as error:
            return error

    async def _exchange(
        self, client: redis.asyncio.Redis, commands: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        pool: Any = client.connection_pool
        replies: list[Any] = []
        connection = None
        try:
            with _heeding_cancellation():
                connection = await pool.get_connection()
                await connection.send_packed_command(_pack(commands), check_health=False)
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except failures.ResponseError as error:
                    replies.append(error)
        except _LIBRARY_ERRORS as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
            replies += [error] * (len(commands) - len(replies))
        except BaseException:
            # Cancelled between request and reply: the connection must not be used again.
            if connection is not None:
                await connection.disconnect(nowait=True)
            raise
        finally:
            if connection is not None:
                if any(_moved_away(reply) for reply in replies):
                    await connection.disconnect(nowait=True)
                    await pool.disconnect(inuse_connections=False)
                await pool.release(connection)
        return replies


class Waiter:
    """A connection that blocks until one of its lists has an element, and takes it."""

    def __init__(self, broker: AsyncBroker, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._broker = broker
        self._client: Any = None
        self._connection: Any = None

    async def wait(self, seconds: float) -> tuple[str, bytes] | None:
        """Take an element: the key of its list and its value; None after so many seconds.

        Raises StoreUnavailable, and what was taken meanwhile may be lost.
        """
        try:
            command = ("BLPOP", *self.keys, f"{max(seconds, 0.001):.3f}")
            with _heeding_cancellation():
                if self._connection is None:
                    self._client = await self._broker.client_for(self.keys[0])
                    self._connection = await self._client.connection_pool.get_connection()
                await self._connection.send_packed_command(_pack([command]), check_health=False)
            reply = await self._connection.read_response(timeout=seconds + GRACE)
        except _LIBRARY_ERRORS as error:
            await self.aclose()
            raise _no_answer(error, self._broker.address) from error
        except BaseException:
            await self.aclose()
            raise
        return None if reply is None else (reply[0].decode(), reply[1])

    async def aclose(self) -> None:
        """Close the connection; the next wait opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await connect.aclose(client)


class AsyncSubscription:
    """A connection that listens on one sharded channel."""

    def __init__(self, broker: AsyncBroker, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._client: Any = None
        self._connection: Any = None

    async def open(self) -> None:
        """Connect and subscribe; StoreUnavailable when that fails."""
        try:
            with _heeding_cancellation():
                self._client = await self._broker.client_for(self._channel)
                self._connection = await self._client.connection_pool.get_connection()
                await self._connection.send_command("SSUBSCRIBE", self._channel)
                await self._connection.read_response()
        except _LIBRARY_ERRORS as error:
            await self.aclose()
            raise _no_answer(error, self._broker.address) from error
        except BaseException:
            await self.aclose()
            raise

    async def read(self) -> str:
        """The next message, however long it takes; StoreUnavailable when the connection broke."""
        try:
            return _message(await self._connection.read_response(timeout=math.inf))
        except _LIBRARY_ERRORS as error:
            await self.aclose()
            raise _no_answer(error, self._broker.address) from error

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
        client, self._client = self._client, None
        if client is not None:
            await connect.aclose(client)


_LIBRARY_ERRORS: Final = (failures.RedisError, OSError, TimeoutError, EOFError, ValueError)
"""What redis-py raises; ValueError is how asyncio reports a reply over its buffer."""


@contextlib.contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """A cancellation that came meanwhile is heeded afterwards, at the latest.

    redis-py sends by way of `asyncio.wait_for`, which in Python 3.11 forgets a cancellation that
    comes when what it waits for has just been done.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _ends(patience: float | None) -> float:
    return math.inf if patience is None else time.monotonic() + patience


def _settle(
    replies: Sequence[Any], calls: Sequence[Call[T]], address: Address
) -> list[T | QsyncError]:
    """The decoded replies, with errors of ours in the places of the store's."""
    settled: list[T | QsyncError] = []
    for reply, call in zip(replies, calls, strict=True):
        if isinstance(reply, BaseException):
            error = translate(reply, call, address)
            error.__cause__ = reply
            settled.append(error)
        else:
            settled.append(call.decode(reply))
    return settled


def _no_answer(error: BaseException, address: Address) -> QsyncError:
    shown = str(error) or type(error).__name__
    if classify(error) is Fault.DENIED:
        return ConfigError(f"the store at {address} refuses: {shown}")
    return StoreUnavailable(f"the store at {address} is not available: {shown}")


def _moved_away(reply: Any) -> bool:
    """The node answers but is not the one to ask any more: look the address up again."""
    return isinstance(reply, failures.ReadOnlyError | failures.MasterDownError) or (
        isinstance(reply, failures.ResponseError) and str(reply).startswith("READONLY")
    )


def _message(reply: Any) -> str:
    return bytes(reply[-1]).decode() if isinstance(reply[-1], bytes) else ""
