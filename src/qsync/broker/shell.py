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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import redis
import redis.asyncio
import redis.exceptions as failures

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import connect
from qsync.broker.address import Address
from qsync.broker.at_hand import AtHand
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.durable import (
    REDIRECTIONS,
    Exchanges,
    eval_,
    evalsha,
    moved_or_gone,
    probing,
    waiting,
)  # fmt: skip
from qsync.broker.faults import LIBRARY_ERRORS, Fault, classify, moved_away, no_answer, translate
from qsync.broker.listen import AsyncSubscription, Subscription, Waiter, heeding_cancellation
from qsync.broker.wire import nothing, packets
from qsync.errors import QsyncError

T = TypeVar("T")

log = logging.getLogger("qsync.broker")

PATIENCE: Final = 10.0
"""How long a client tries again before it raises StoreUnavailable, seconds, unless told."""


RECONNECT_S: Final = 0.1
"""After a refused connection another is tried no sooner, whoever asks for it."""


class _Own(Enum):
    PATIENCE = "the broker's own"


OWN: Final = _Own.PATIENCE
"""For a call: as patient as the broker was made."""

MIN_VERSION: Final = {"redis": (7, 0), "valkey": (7, 2)}
"""The oldest releases that run the scripts."""

Patience = float | None | Literal[_Own.PATIENCE]
"""Seconds; None: for ever."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says of itself; None where it is not allowed to ask."""

    version: tuple[int, ...] | None
    product: str
    policy: str | None
    in_cluster: bool = False


def _facts(info: Mapping[str, Any]) -> Facts:
    product = "valkey" if "valkey_version" in info else "redis"
    parts = str(info.get(f"{product}_version", "")).split(".")
    version = tuple(int(part) for part in parts if part.isdigit()) or None
    in_cluster = bool(info.get("cluster_enabled"))
    return Facts(version, product, info.get("maxmemory_policy"), in_cluster)


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
        self._opened: dict[str, Any] = {}

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

    def run_many(
        self, calls: Sequence[Call[T]], *, meanwhile: Callable[[], None] = nothing
    ) -> list[T | QsyncError]:
        """Make calls in one round trip (in a cluster, one each), each tried once.

        Those with a wait come last, and wait for the same. `meanwhile` is called while the store
        works on them, if they are one exchange: not in a cluster, nor with a wait.
        """
        replies = self._try(calls, meanwhile) if calls else []
        return _settle(replies, calls, self.address)

    def waiter(self, seconds: float) -> Broker:
        """Another broker of the store, for calls whose wait makes the answer come so much later.

        What they wait on are connections of its own, so that nobody else has to.
        """
        return type(self)(
            self.address,
            connections=self._connections,
            read_timeout=self._read_timeout + seconds,
            patience=self.patience,
        )

    def can_confirm(self, durability: Durability, key: str) -> bool:
        """Whether the node that holds a key can confirm that; False when it would not say.

        Raises ConfigError when it cannot.
        """
        try:
            client = self._node_for(key)
        except LIBRARY_ERRORS:
            return False
        return bool(self._drive(client, probing(durability, self.address)))

    def ping(self) -> float:
        """The seconds that a round trip took; StoreUnavailable when there was no answer."""
        began = time.perf_counter()
        try:
            self._plain("PING")
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        return time.perf_counter() - began

    def subscribe(self, channel: str) -> Subscription:
        """Listen on a sharded channel, on a connection of its own."""
        return Subscription(self, channel)

    def close(self) -> None:
        """Close the connections; the broker may be used again and opens new ones."""
        while self._opened:
            connect.close(self._opened.popitem()[1])

    def client_for(self, key: str) -> redis.Redis:
        """A client with one connection to the node that holds a key."""
        address = self.address
        if address.kind == "cluster":
            node = self._open().get_node_from_key(key)
            address = connect.at_node(address, node.host, node.port)
        return connect.node_client(address, connections=1, read_timeout=self._read_timeout)

    def _open(self) -> Any:
        client = self._opened.get("client")
        if client is None:
            make = connect.cluster_client if self.address.kind == "cluster" else connect.node_client
            client = self._keep("client", make, self.address)
        return client

    def _keep(self, name: str, make: Callable[..., Any], address: Address) -> Any:
        """A new client; of two threads that come here at once, one gets the other's."""
        made = make(address, connections=self._connections, read_timeout=self._read_timeout)
        kept = self._opened.setdefault(name, made)
        if kept is not made:
            connect.close(made)
        return kept

    def _plain(self, *command: str) -> Any:
        options = {"target_nodes": "random"} if self.address.kind == "cluster" else {}
        return self._open().execute_command(*command, **options)

    def _try(
        self, calls: Sequence[Call[Any]], meanwhile: Callable[[], None] = nothing
    ) -> list[Any]:
        """One reply a call, or the error that took its place."""
        try:
            client = self._open()
        except LIBRARY_ERRORS as error:
            return [error] * len(calls)
        if self.address.kind == "cluster":
            return [self._try_in_cluster(client, call) for call in calls]
        if (wait := calls[-1].wait) is not None:
            return list(self._drive(client, waiting(calls, wait)))
        replies = self._exchange(client, [evalsha(call) for call in calls], meanwhile)
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = self._exchange(client, [eval_(calls[at]) for at in missing])
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    def _try_in_cluster(self, client: Any, call: Call[Any]) -> Any:
        if call.wait is not None:
            return self._wait_in_cluster(client, call, call.wait)
        try:
            try:
                return client.execute_command(*evalsha(call))
            except failures.NoScriptError:
                return client.execute_command(*eval_(call))
        except LIBRARY_ERRORS as error:
            return error

    def _wait_in_cluster(self, cluster: Any, call: Call[Any], wait: Wait) -> Any:
        """Make the call, and wait for it, at the node that has its keys by the time."""
        reply: Any = None
        try:
            for _ in range(REDIRECTIONS):
                client = self._node_for(call.keys[0])
                [reply] = self._drive(client, waiting([call], wait))
                if moved_or_gone(reply):
                    cluster.nodes_manager.initialize()
                if not isinstance(reply, failures.MovedError):
                    break
        except LIBRARY_ERRORS as error:
            return error
        return reply

    def _node_for(self, key: str) -> Any:
        """The client by which to wait at the node that holds a key."""
        client = self._open()
        if self.address.kind != "cluster":
            return client
        node = client.get_node_from_key(key)
        name, address = (
            f"{node.host}:{node.port}",
            connect.at_node(self.address, node.host, node.port),
        )
        return self._opened.get(name) or self._keep(name, connect.node_client, address)

    def _drive(self, client: Any, exchanges: Exchanges) -> Any:
        """Make the exchanges of a generator; returns what it does."""
        replies: Any = None
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                return end.value
            replies = self._exchange(client, commands)

    def _exchange(
        self,
        client: redis.Redis,
        commands: Sequence[tuple[Any, ...]],
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        pool: Any = client.connection_pool
        replies: list[Any] = []
        connection = None
        try:
            connection = pool.get_connection()
            connection.send_packed_command(packets(commands), check_health=False)
            meanwhile()
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except failures.ResponseError as error:
                    replies.append(error)
        except LIBRARY_ERRORS as error:
            if connection is not None:
                connection.disconnect()
            replies += [error] * (len(commands) - len(replies))
        except BaseException:
            if connection is not None:
                connection.disconnect()
            raise
        finally:
            if connection is not None:
                if any(moved_away(reply) for reply in replies):
                    connection.disconnect()
                    pool.disconnect(inuse_connections=False)
                pool.release(connection)
        return replies


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
        self._nodes: dict[tuple[str, int], Any] = {}
        self._failed_node: str | None = None
        self._learning = asyncio.Lock()
        self._at_hand: dict[Any, AtHand] = {}
        """By pool."""
        self._turns: dict[str, asyncio.Semaphore] = {}
        """For each node of a cluster: who may use a connection of redis-py, which lets nobody
        wait for one."""
        self._refused: dict[Any, tuple[float, Exception]] = {}
        """Pools whose node refuses connections or breaks new ones: since when, and how."""

    async def run(self, call: Call[T], *, patience: Patience = OWN) -> T:
        """Make one call. Transient errors are tried again for `patience` seconds, None: for ever.

        Raises StoreUnavailable, QueueFull, or ConfigError when the store refuses the credentials.
        """
        backoff = Backoff(cap=AWAY_CAP_S)
        ends = _ends(self.patience if patience is OWN else patience)
        while True:
            [reply] = await self._try([call])
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            delay = backoff.next()
            if classify(reply) is not Fault.TRANSIENT or time.monotonic() + delay > ends:
                raise translate(reply, call, self.address) from reply
            await asyncio.sleep(delay)

    async def run_many(
        self, calls: Sequence[Call[T]], *, meanwhile: Callable[[], None] = nothing
    ) -> list[T | QsyncError]:
        """Make calls in one round trip (in a cluster, one each, at once), each tried once.

        Those with a wait come last, and wait for the same. `meanwhile` is called while the store
        works on them, if they are one exchange: not in a cluster, nor with a wait.
        """
        replies = await self._try(calls, meanwhile) if calls else []
        return _settle(replies, calls, self.address)

    def waiter(self, seconds: float) -> AsyncBroker:
        """Another broker of the store, for calls whose wait makes the answer come so much later.

        What they wait on are connections of its own, so that nobody else has to.
        """
        return type(self)(
            self.address,
            connections=self._connections,
            read_timeout=self._read_timeout + seconds,
            patience=self.patience,
        )

    async def can_confirm(self, durability: Durability, key: str) -> bool:
        """Whether the node that holds a key can confirm that; False when it would not say.

        Raises ConfigError when it cannot.
        """
        try:
            client = await self._node_for(key)
        except LIBRARY_ERRORS:
            return False
        return bool(await self._drive(client, probing(durability, self.address)))

    async def ping(self) -> float:
        """The seconds that a round trip took; StoreUnavailable when there was no answer."""
        began = time.perf_counter()
        try:
            await self._plain("PING")
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        return time.perf_counter() - began

    async def facts(self) -> Facts:
        """What the store says of itself; unknown where INFO is forbidden."""
        try:
            return _facts(await self._plain("INFO"))
        except failures.ResponseError as error:
            if classify(error) is Fault.DENIED:
                return Facts(None, "unknown", None)
            raise no_answer(error, self.address) from error
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error

    async def ask(self, *command: str | bytes | int, key: str = "") -> Any:
        """The raw reply to a plain command; None when the store refuses or does not know it.

        In a cluster the node that holds `key` is asked. StoreUnavailable without an answer.
        """
        try:
            client = await self._node_for(key)
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        [reply] = await self._exchange(client, [command])
        if not isinstance(reply, BaseException):
            return reply
        if isinstance(reply, failures.ResponseError) and classify(reply) is not Fault.TRANSIENT:
            return None
        raise no_answer(reply, self.address) from reply

    async def primaries(self) -> list[Address]:
        """The nodes that take writes: the address itself, or the nodes of a cluster."""
        client = self._open()
        if self.address.kind != "cluster":
            return [self.address]
        try:
            await self._learn_map(client)
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        nodes = sorted((node.host, int(node.port)) for node in client.get_primaries())
        return [connect.at_node(self.address, *node) for node in nodes]

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
        self._at_hand.clear()
        self._refused.clear()
        if client is not None:
            await connect.aclose(client)
        while self._nodes:
            await connect.aclose(self._nodes.popitem()[1])

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """A client with one connection to the node that holds a key."""
        address = self.address
        if address.kind == "cluster":
            cluster = self._open()
            await self._learn_map(cluster)
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
        with heeding_cancellation():
            async with asyncio.timeout(self._read_timeout):
                if self.address.kind == "cluster":
                    await self._learn_map(client)
                    return await client.get_random_node().execute_command(*command)
                async with self._hand(client.connection_pool).left_in_pool():
                    return await client.execute_command(*command)

    async def _try(
        self, calls: Sequence[Call[Any]], meanwhile: Callable[[], None] = nothing
    ) -> list[Any]:
        """One reply a call, or the error that took its place."""
        client = self._open()
        if self.address.kind == "cluster":
            with heeding_cancellation():
                try:
                    # Before any call: calls that each find it to do break each other's connections.
                    await self._learn_map(client)
                except LIBRARY_ERRORS as error:
                    return [error] * len(calls)
                tries = [self._try_in_cluster(client, call) for call in calls]
                return list(await asyncio.gather(*tries))
        if (wait := calls[-1].wait) is not None:
            return list(await self._drive(client, waiting(calls, wait)))
        replies = await self._exchange(client, [evalsha(call) for call in calls], meanwhile)
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = await self._exchange(client, [eval_(calls[at]) for at in missing])
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    async def _learn_map(self, cluster: Any) -> None:
        async with self._learning:
            self._failed_node = await connect.learn_map(cluster, self._failed_node)

    async def _try_in_cluster(self, client: Any, call: Call[Any]) -> Any:
        if call.wait is not None:
            return await self._wait_in_cluster(client, call, call.wait)
        try:
            async with self._turn(client, call.keys[0]):
                try:
                    return await client.execute_command(*evalsha(call))
                except failures.NoScriptError:
                    return await client.execute_command(*eval_(call))
        except LIBRARY_ERRORS as error:
            self._failed_node = getattr(error, "last_failed_node_name", self._failed_node)
            return error
        except AttributeError as error:
            # When a node says that the cluster is down, redis-py closes all connections, those too
            # that are just being opened for others, and there it trips over what is gone.
            return failures.ConnectionError(str(error))

    @contextlib.asynccontextmanager
    async def _turn(self, cluster: Any, key: str) -> AsyncIterator[None]:
        """As many calls to a node at a time as there may be connections; TimeoutError when none
        of them ends in time."""
        try:
            name = cluster.get_node_from_key(key).name
        except failures.RedisClusterException:
            name = ""  # a slot that nobody has: redis-py looks again, or says so
        turn = self._turns.setdefault(name, asyncio.Semaphore(self._connections))
        if turn.locked():
            async with asyncio.timeout(self._read_timeout):
                await turn.acquire()
        else:
            await turn.acquire()
        try:
            yield
        finally:
            turn.release()

    async def _wait_in_cluster(self, cluster: Any, call: Call[Any], wait: Wait) -> Any:
        """Make the call, and wait for it, at the node that has its keys by the time."""
        reply: Any = None
        try:
            for _ in range(REDIRECTIONS):
                client = await self._node_for(call.keys[0])
                [reply] = await self._drive(client, waiting([call], wait))
                if moved_or_gone(reply):
                    await cluster.nodes_manager.initialize()
                if not isinstance(reply, failures.MovedError):
                    break
        except LIBRARY_ERRORS as error:
            return error
        return reply

    async def _node_for(self, key: str) -> Any:
        """The client by which to wait at the node that holds a key."""
        client = self._open()
        if self.address.kind != "cluster":
            return client
        await self._learn_map(client)
        found = client.get_node_from_key(key)
        node = found.host, found.port
        if node not in self._nodes:
            self._nodes[node] = connect.async_node_client(
                connect.at_node(self.address, *node),
                connections=self._connections,
                read_timeout=self._read_timeout,
            )
        return self._nodes[node]

    async def _drive(self, client: Any, exchanges: Exchanges) -> Any:
        """Make the exchanges of a generator; returns what it does."""
        replies: Any = None
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                return end.value
            replies = await self._exchange(client, commands)

    async def _exchange(
        self,
        client: redis.asyncio.Redis,
        commands: Sequence[tuple[Any, ...]],
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        pool: Any = client.connection_pool
        if self._refused and (error := self._just_refused(pool)) is not None:
            return [error] * len(commands)
        at_hand = self._hand(pool)
        try:
            wire = await at_hand.take(self._read_timeout)
        except LIBRARY_ERRORS as error:
            if not isinstance(error.__cause__, TimeoutError):  # that says: all are in use
                self._refused[pool] = time.monotonic(), error
            return [error] * len(commands)
        if self._refused:
            self._refused.pop(pool, None)
        try:
            replies = await wire.exchange(commands, self._read_timeout, meanwhile)
        except BaseException:
            await at_hand.drop(wire)
            raise
        if wire.broken is not None:
            await at_hand.drop(wire)
            return replies
        await at_hand.give_back(wire)
        if any(moved_away(reply) for reply in replies):
            await at_hand.drop_all()
        return replies

    def _hand(self, pool: Any) -> AtHand:
        found = self._at_hand.get(pool)
        return self._at_hand.setdefault(pool, AtHand(pool)) if found is None else found

    def _just_refused(self, pool: Any) -> Exception | None:
        """The error of an attempt to connect that failed a moment ago: so that however many calls
        wait for the store's return, it is not tried more than ten times a second."""
        refused, now = self._refused.get(pool), time.monotonic()
        if refused is None:
            return None
        since, error = refused
        if now - since < RECONNECT_S:
            return error
        self._refused[pool] = now, error  # this call tries; the others hear how it went
        return None


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
