"""Brokers run Calls on the store: `Broker` blocks, `AsyncBroker` is awaited.

A call is sent as EVALSHA, and as EVAL if the store does not know the script. A call may run twice,
so a broker retries transient errors, with a jittered delay, until the caller's patience ends.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import redis
import redis.asyncio
import redis.exceptions as failures

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import redis_clients
from qsync.broker.address import Address
from qsync.broker.aio_pool import LINE_S, AioPool
from qsync.broker.blocking_pool import Pool, limit_socket
from qsync.broker.call import Call, Durability
from qsync.broker.error_mapping import (
    LIBRARY_ERRORS,
    Fault,
    classify,
    moved_away,
    no_answer,
    translate,
)
from qsync.broker.exchanges import Exchanges, eval_, evalsha, making, probing, waiting
from qsync.broker.listeners import AsyncSubscription, BlockingPop, Subscription
from qsync.broker.protocol import nothing, packets
from qsync.broker.slot_map import ASK_MAP, REDIRECTIONS, Node, SlotMap, is_silence, name_of
from qsync.errors import ConfigError, QsyncError

T = TypeVar("T")

PATIENCE: Final = 10.0
"""Default time that a client tries a call before it raises StoreUnavailable, in seconds."""

ONE_TRY_S: Final = 2.0
"""Time limit of a call with a patience of 0, which is tried once, in seconds."""

MAP_S: Final = 0.5
"""Time without a reply after which another cluster node is asked for the slot map, in seconds."""

RECONNECT_S: Final = 0.1
"""Minimum time between a refused connection and the next attempt, for all callers, in seconds."""


class _Own(Enum):
    PATIENCE = "the broker's own"


OWN: Final = _Own.PATIENCE
"""Default of `patience` for a call: the patience of the broker."""

MIN_VERSION: Final = {"redis": (7, 0), "valkey": (7, 2)}
"""Oldest releases that can run the scripts, by product."""

Patience = float | None | Literal[_Own.PATIENCE]
"""Time that a call is retried, in seconds; None: without limit."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The store's version, product and settings; None where INFO is forbidden or does not say."""

    version: tuple[int, ...] | None
    product: str
    policy: str | None
    in_cluster: bool = False


def evicts_tasks(policy: str) -> bool:
    """Return whether a full store with this maxmemory-policy deletes tasks.

    The volatile policies delete only keys with a time to live. No key of a queue has one. Server
    records have one, and servers write them again within seconds. Server inboxes have one too; an
    order that is lost with an inbox has to be given again.
    """
    return policy != "noeviction" and not policy.startswith("volatile-")


def _facts(reply: bytes) -> StoreInfo:
    lines = re.findall(r"^(\w+):(.*?)\r?$", reply.decode(errors="replace"), re.MULTILINE)
    info = dict(lines)
    product = "valkey" if "valkey_version" in info else "redis"
    parts = info.get(f"{product}_version", "").split(".")
    version = tuple(int(part) for part in parts if part.isdigit()) or None
    in_cluster = info.get("cluster_enabled") == "1"
    return StoreInfo(version, product, info.get("maxmemory_policy"), in_cluster)


class Broker:
    """Runs calls on the store and blocks until they return. Safe for threads and across forks."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 64,
        read_timeout: float = redis_clients.READ_TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        self.address = address
        self.patience = patience
        self._connections = connections
        self._read_timeout = read_timeout
        self._slots = SlotMap.of(address)
        self._pools: dict[Node | None, Pool] = {}
        """Pools by cluster node; the key is None for a store with one node."""

    def run(self, call: Call[T], *, patience: Patience = OWN, ends: float | None = None) -> T:
        """Make one call. Retry transient errors for `patience` seconds, None: without limit.

        `ends` replaces `patience`: the time at which the caller gives up, as `ends_in` returns it.
        Raises StoreUnavailable, QueueFull, or ConfigError when the store refuses the credentials.
        """
        backoff = Backoff()
        patience = self.patience if patience is OWN else patience
        ends = ends_in(patience) if ends is None else ends
        while True:
            [reply] = self._try([call], ends)
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            delay = backoff.next()
            too_late = patience == 0 or time.monotonic() + delay > ends
            if too_late or classify(reply) is not Fault.TRANSIENT:
                raise translate(reply, call, self.address) from reply
            time.sleep(delay)

    def run_many(
        self,
        calls: Sequence[Call[T]],
        *,
        ends: float = math.inf,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[T | QsyncError]:
        """Try each call once, until `ends`: all in one round trip, in a cluster one for each.

        Calls with a wait must come last and share the same wait. `meanwhile` runs while the store
        works on the calls; it is not called in a cluster, nor with a wait.
        """
        replies = self._try(calls, ends, meanwhile) if calls else []
        return _settle(replies, calls, self.address)

    def waiter(self, seconds: float) -> Broker:
        """Return a broker of the same store for calls whose wait delays the reply by `seconds`.

        It has connections of its own, so that other calls are not held up.
        """
        return type(self)(
            self.address,
            connections=self._connections,
            read_timeout=self._read_timeout + seconds,
            patience=self.patience,
        )

    def can_confirm(self, durability: Durability, key: str, *, ends: float = math.inf) -> bool:
        """Return whether the node that holds a key can confirm this durability; False: unknown.

        Raises ConfigError when it cannot.
        """
        try:
            pool = self._pool(self._node_of(key, ends))
        except LIBRARY_ERRORS:
            return False
        return bool(self._drive(pool, probing(durability, self.address), ends))

    def ping(self) -> float:
        """Measure a round trip, in seconds; raises StoreUnavailable without a reply."""
        began = time.perf_counter()
        try:
            ends = min(ends_in(self._read_timeout), ends_in(self.patience))
            node = None if self._slots is None else self._learn(self._slots, ends)
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        [reply] = self._exchange(self._pool(node), [("PING",)], ends)
        if isinstance(reply, BaseException):
            raise no_answer(reply, self.address) from reply
        return time.perf_counter() - began

    def subscribe(self, node: Node | None) -> Subscription:
        """Return a subscription to a node's sharded channels, on a connection of its own.

        None: the only node.
        """
        return Subscription(self, node)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        while self._pools:
            self._pools.popitem()[1].close()

    def node_name(self, key: str) -> str:
        """Return the `host:port` of the node that holds a key, without I/O; "" if not known."""
        return _name_of(self._slots, key)

    def node_of(self, key: str) -> Node | None:
        """Return the node that holds a key, without I/O; None: the only node, or not known."""
        return _guess(self._slots, key)

    def locate(self, key: str) -> Node | None:
        """Return the node that holds a key, asking the cluster if needed; None: the only node."""
        try:
            return self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT))
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error

    def client_at(self, node: Node | None) -> redis.Redis:
        """Return a client with one connection to a node; None: the only node."""
        return redis_clients.node_client(
            _at(self.address, node), connections=1, read_timeout=self._read_timeout
        )

    def distrust(self, node: Node | None, error: BaseException) -> None:
        """Record an error that a node returned or that broke a connection to it."""
        if self._slots is not None and node is not None:
            self._slots.redirect(error, node)
        if (pool := self._pools.get(node)) is not None and is_silence(error):
            pool.drop_idle()

    def _pool(self, node: Node | None) -> Pool:
        pool = self._pools.get(node)
        if pool is None:
            most, timeout = self._connections, self._read_timeout
            client = redis_clients.node_client(
                _at(self.address, node), connections=most, read_timeout=timeout
            )
            pool = Pool(client, connections=most, read_timeout=timeout)
            # If two threads get here at the same time, the second one uses the pool of the first.
            pool = self._pools.setdefault(node, pool)
        return pool

    def _try(
        self, calls: Sequence[Call[Any]], ends: float, meanwhile: Callable[[], None] = nothing
    ) -> list[Any]:
        """Try the calls once; return for each its reply or the error."""
        if self._slots is not None:
            return [self._try_in_cluster(self._slots, call, ends) for call in calls]
        pool = self._pool(None)
        if (wait := calls[-1].wait) is not None:
            return list(self._drive(pool, waiting(calls, wait), ends))
        replies = self._exchange(pool, [evalsha(call) for call in calls], ends, meanwhile)
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = self._exchange(pool, [eval_(calls[at]) for at in missing], ends)
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    def _try_in_cluster(self, slots: SlotMap, call: Call[Any], ends: float) -> Any:
        """Make the call on the node that holds its keys, following redirections."""
        reply: Any = None
        node: Node | None = None
        try:
            for _ in range(REDIRECTIONS):
                asking = isinstance(reply, failures.AskError)
                asked = node or self._holder(slots, call.keys[0], ends)
                reply = self._drive(self._pool(asked), making(call, asking=asking), ends)
                node = slots.redirect(reply, asked)
                if node is None or (call.wait is not None and isinstance(reply, failures.AskError)):
                    break
        except LIBRARY_ERRORS as error:
            return error
        return reply

    def _node_of(self, key: str, ends: float) -> Node | None:
        """Return the cluster node that holds a key; None when the store has only one node."""
        return None if self._slots is None else self._holder(self._slots, key, ends)

    def _holder(self, slots: SlotMap, key: str, ends: float) -> Node:
        node = slots.holder(key)
        if node is None:
            self._learn(slots, ends)
            node = slots.best_guess(key)
        return node

    def _learn(self, slots: SlotMap, ends: float) -> Node:
        """Fetch the cluster's slot map; return the node that replied.

        Each node gets MAP_S to reply; if all fail, each gets the whole read timeout.
        """
        failed: Exception = failures.TimeoutError("no time to ask for the map of the cluster")
        for limit in (MAP_S, self._read_timeout):
            for node in slots.candidates():
                [reply] = self._exchange(
                    self._pool(node), [ASK_MAP], min(ends, time.monotonic() + limit)
                )
                try:
                    slots.learn(reply, node)
                except LIBRARY_ERRORS as error:
                    failed = error
                    slots.doubt(node)
                else:
                    return node
                if time.monotonic() >= ends:
                    raise failed
        raise failed

    def _drive(self, pool: Pool, exchanges: Exchanges, ends: float) -> Any:
        """Run the exchanges of a generator; return the generator's return value."""
        replies: Any = None
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                return end.value
            replies = self._exchange(pool, commands, ends)

    def _exchange(
        self,
        pool: Pool,
        commands: Sequence[tuple[Any, ...]],
        ends: float,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        replies: list[Any] = []
        connection = None
        try:
            connection, used = pool.take(ends)
            until = _cut(ends, self._read_timeout, used=used)
            if until is not None:
                limit_socket(connection, until - time.monotonic())
            connection.send_packed_command(packets(commands), check_health=False)
            meanwhile()
            for _ in commands:
                if until is not None:
                    limit_socket(connection, until - time.monotonic())
                try:
                    replies.append(connection.read_response())
                except failures.ResponseError as error:
                    replies.append(error)
            if until is not None:
                limit_socket(connection, self._read_timeout)
        except LIBRARY_ERRORS as error:
            replies += [error] * (len(commands) - len(replies))
            if connection is not None:
                pool.drop(connection)
            return replies
        except BaseException:
            if connection is not None:
                pool.drop(connection)
            raise
        if any(moved_away(reply) for reply in replies):
            pool.drop(connection)
        else:
            pool.give_back(connection)
        return replies


class AsyncBroker:
    """Runs calls on the store from one event loop. Concurrent calls use up to `connections`."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 8,
        read_timeout: float = redis_clients.READ_TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        self.address = address
        self.patience = patience
        self._connections = connections
        self._read_timeout = read_timeout
        self._slots = SlotMap.of(address)
        self._at_hand: dict[Node | None, AioPool] = {}
        """Pools by cluster node; the key is None for a store with one node."""
        self._learning: asyncio.Task[Node] | None = None
        """Task that fetches the cluster's slot map for all waiting calls; None: not in flight."""
        self._refused: dict[AioPool, tuple[float, Exception]] = {}
        """Time and error of the last failed attempt to connect, by pool; empty while all work."""
        self._failure: BaseException | None = None
        """Last error that was retried."""

    async def run(self, call: Call[T], *, patience: Patience = OWN, ends: float | None = None) -> T:
        """Make one call. Retry transient errors for `patience` seconds, None: without limit.

        `ends` replaces `patience`: the time at which the caller gives up, as `ends_in` returns it.
        Raises StoreUnavailable, QueueFull, or ConfigError when the store refuses the credentials.
        """
        backoff = Backoff(cap=AWAY_CAP_S)
        patience = self.patience if patience is OWN else patience
        ends = ends_in(patience) if ends is None else ends
        while True:
            [reply] = await self._try([call], ends)
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            delay = backoff.next()
            too_late = patience == 0 or time.monotonic() + delay > ends
            if too_late or classify(reply) is not Fault.TRANSIENT:
                raise translate(reply, call, self.address) from reply
            self._failure = reply
            await asyncio.sleep(delay)

    async def run_many(
        self,
        calls: Sequence[Call[T]],
        *,
        ends: float = math.inf,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[T | QsyncError]:
        """Try each call once, until `ends`: all in one round trip, in a cluster one for each.

        In a cluster the round trips run concurrently. Calls with a wait must come last and share
        the same wait. `meanwhile` runs while the store works on the calls; it is not called in a
        cluster, nor with a wait.
        """
        replies = await self._try(calls, ends, meanwhile) if calls else []
        return _settle(replies, calls, self.address)

    def too_late(self) -> QsyncError:
        """Return the error for a caller whose patience ended while its call was in flight."""
        return no_answer(self._failure or TimeoutError(), self.address)

    def waiter(self, seconds: float) -> AsyncBroker:
        """Return a broker of the same store for calls whose wait delays the reply by `seconds`.

        It has connections of its own, so that other calls are not held up.
        """
        return type(self)(
            self.address,
            connections=self._connections,
            read_timeout=self._read_timeout + seconds,
            patience=self.patience,
        )

    async def can_confirm(
        self, durability: Durability, key: str, *, ends: float = math.inf
    ) -> bool:
        """Return whether the node that holds a key can confirm this durability; False: unknown.

        Raises ConfigError when it cannot.
        """
        try:
            hand = self._hand(await self._node_of(key, ends))
        except LIBRARY_ERRORS:
            return False
        return bool(await self._drive(hand, probing(durability, self.address), ends))

    async def ping(self) -> float:
        """Measure a round trip, in seconds; raises StoreUnavailable without a reply."""
        began = time.perf_counter()
        await self._plain("PING")
        return time.perf_counter() - began

    async def facts(self) -> StoreInfo:
        """Read the store's version, product and settings; unknown where INFO is forbidden."""
        try:
            return _facts(await self._plain("INFO"))
        except ConfigError as error:
            if isinstance(error.__cause__, failures.NoPermissionError):
                return StoreInfo(None, "unknown", None)
            raise

    async def ask(self, *command: str | bytes | int, key: str = "") -> Any:
        """Run a plain command; return the raw reply, or None if the store refuses the command.

        In a cluster it runs on the node that holds `key`. Raises StoreUnavailable without a reply.
        """
        try:
            hand = self._hand(await self._node_of(key, ends_in(self._read_timeout)))
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        [reply] = await self._exchange(hand, [command])
        if not isinstance(reply, BaseException):
            return reply
        if isinstance(reply, failures.ResponseError) and classify(reply) is not Fault.TRANSIENT:
            return None
        raise no_answer(reply, self.address) from reply

    async def primaries(self) -> list[Address]:
        """Return the addresses of the primaries: the broker's own, or those of the cluster."""
        if self._slots is None:
            return [self.address]
        try:
            await self._learn(self._slots, ends_in(self._read_timeout))
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        return [_at(self.address, node) for node in sorted(self._slots.primaries)]

    def waiters(self, keys: Sequence[str]) -> list[BlockingPop]:
        """Return connections that block on these lists: one for all, in a cluster one per list."""
        if self._slots is not None:
            return [BlockingPop(self, (key,)) for key in keys]
        return [BlockingPop(self, tuple(keys))]

    def subscribe(self, node: Node | None) -> AsyncSubscription:
        """Return a subscription to a node's sharded channels, on a connection of its own.

        None: the only node.
        """
        return AsyncSubscription(self, node)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        learning, self._learning = self._learning, None
        if learning is not None:
            learning.cancel()
            await asyncio.wait([learning])
        self._refused.clear()
        while self._at_hand:
            await self._at_hand.popitem()[1].aclose()

    def node_name(self, key: str) -> str:
        """Return the `host:port` of the node that holds a key, without I/O; "" if not known."""
        return _name_of(self._slots, key)

    def node_of(self, key: str) -> Node | None:
        """Return the node that holds a key, without I/O; None: the only node, or not known."""
        return _guess(self._slots, key)

    async def locate(self, key: str) -> Node | None:
        """Return the node that holds a key, asking the cluster if needed; None: the only node."""
        try:
            return await self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT))
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """Return a client with one connection to the node that holds a key."""
        return self.client_at(await self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT)))

    def client_at(self, node: Node | None) -> redis.asyncio.Redis:
        """Return a client with one connection to a node; None: the only node."""
        return redis_clients.async_node_client(
            _at(self.address, node), connections=1, read_timeout=self._read_timeout
        )

    async def suspect(self, key: str, error: BaseException) -> None:
        """Record an error that broke a connection to the node of a key, or a redirection."""
        await self.distrust(self.node_of(key), error)

    async def distrust(self, node: Node | None, error: BaseException) -> None:
        """Record an error that a node returned or that broke a connection to it."""
        if self._slots is not None and node is not None:
            self._slots.redirect(error, node)
        if (hand := self._at_hand.get(node)) is not None and is_silence(error):
            await hand.drop_all()

    def _hand(self, node: Node | None) -> AioPool:
        hand = self._at_hand.get(node)
        if hand is None:
            client = redis_clients.async_node_client(
                _at(self.address, node),
                connections=self._connections,
                read_timeout=self._read_timeout,
            )
            hand = self._at_hand[node] = AioPool(client, self._connections)
        return hand

    async def _plain(self, *command: str) -> Any:
        """Run a plain command on any node; return the raw reply.

        Raises StoreUnavailable without a reply.
        """
        ends = min(ends_in(self._read_timeout), ends_in(self.patience))
        try:
            node = None if self._slots is None else await self._learn(self._slots, ends)
        except LIBRARY_ERRORS as error:
            raise no_answer(error, self.address) from error
        [reply] = await self._exchange(self._hand(node), [command], ends)
        if isinstance(reply, BaseException):
            raise no_answer(reply, self.address) from reply
        return reply

    async def _try(
        self, calls: Sequence[Call[Any]], ends: float, meanwhile: Callable[[], None] = nothing
    ) -> list[Any]:
        """Try the calls once; return for each its reply or the error."""
        if (slots := self._slots) is not None:
            tries = [self._try_in_cluster(slots, call, ends) for call in calls]
            return list(await asyncio.gather(*tries))
        hand = self._hand(None)
        if (wait := calls[-1].wait) is not None:
            return list(await self._drive(hand, waiting(calls, wait), ends))
        replies = await self._exchange(hand, [evalsha(call) for call in calls], ends, meanwhile)
        missing = [
            at for at, reply in enumerate(replies) if isinstance(reply, failures.NoScriptError)
        ]
        if missing:
            again = await self._exchange(hand, [eval_(calls[at]) for at in missing], ends)
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        return replies

    async def _try_in_cluster(self, slots: SlotMap, call: Call[Any], ends: float) -> Any:
        """Make the call on the node that holds its keys, following redirections."""
        reply: Any = None
        node: Node | None = None
        try:
            for _ in range(REDIRECTIONS):
                asking = isinstance(reply, failures.AskError)
                asked = node or await self._holder(slots, call.keys[0], ends)
                reply = await self._drive(self._hand(asked), making(call, asking=asking), ends)
                node = slots.redirect(reply, asked)
                if node is None or (call.wait is not None and isinstance(reply, failures.AskError)):
                    break
        except LIBRARY_ERRORS as error:
            return error
        return reply

    async def _node_of(self, key: str, ends: float) -> Node | None:
        """Return the cluster node that holds a key; None when the store has only one node."""
        return None if self._slots is None else await self._holder(self._slots, key, ends)

    async def _holder(self, slots: SlotMap, key: str, ends: float) -> Node:
        node = slots.holder(key)
        if node is None:
            await self._learn(slots, ends)
            node = slots.best_guess(key)
        return node

    async def _learn(self, slots: SlotMap, ends: float) -> Node:
        """Fetch the slot map, once for all concurrent callers; return the node that replied."""
        if self._learning is None:
            self._learning = asyncio.get_running_loop().create_task(self._ask_for_map(slots))
            self._learning.add_done_callback(self._learned)
        left = min(ends - time.monotonic(), self._read_timeout)
        async with asyncio.timeout(max(left, 0.0)):
            return await asyncio.shield(self._learning)

    def _learned(self, learning: asyncio.Task[Node]) -> None:
        if self._learning is learning:
            self._learning = None
        if not learning.cancelled():
            learning.exception()  # mark it as retrieved: all callers may have given up

    async def _ask_for_map(self, slots: SlotMap) -> Node:
        """Fetch the slot map; ask another node as well each time MAP_S passes without a reply."""
        failed: BaseException = failures.TimeoutError("no node of the cluster has told its map")
        asked: dict[asyncio.Task[list[Any]], Node] = {}
        nodes = slots.candidates()
        try:
            while nodes or asked:
                if nodes:
                    node = nodes.pop(0)
                    question = self._exchange(self._hand(node), [ASK_MAP])
                    asked[asyncio.ensure_future(question)] = node
                done, _ = await asyncio.wait(
                    asked, timeout=MAP_S if nodes else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    node = asked.pop(task)
                    try:
                        slots.learn(task.result()[0], node)
                    except LIBRARY_ERRORS as error:
                        failed = error
                        slots.doubt(node)
                    else:
                        return node
            raise failed
        finally:
            for task, node in asked.items():
                task.cancel()
                slots.doubt(node)
            if asked:
                await asyncio.wait(asked)

    async def _drive(self, hand: AioPool, exchanges: Exchanges, ends: float) -> Any:
        """Run the exchanges of a generator; return the generator's return value."""
        replies: Any = None
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                return end.value
            replies = await self._exchange(hand, commands, ends)

    async def _exchange(
        self,
        hand: AioPool,
        commands: Sequence[tuple[Any, ...]],
        ends: float = math.inf,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        if self._refused and (error := self._just_refused(hand)) is not None:
            return [error] * len(commands)
        limit = self._read_timeout
        if ends != math.inf:
            limit = max(min(limit, ends - time.monotonic()), 0.0)
        is_line = hand.is_line
        try:
            wire = await hand.take(limit)
        except LIBRARY_ERRORS as error:
            if not isinstance(error, TimeoutError) and not isinstance(
                error.__cause__, TimeoutError
            ):
                # A timeout may only mean that all connections are in use: the store may be well.
                self._refused[hand] = time.monotonic(), error
            return [error] * len(commands)
        if self._refused:
            self._refused.pop(hand, None)
        if is_line and hand.moves:  # the store replies, the caller only had to queue for long
            ends = max(ends, time.monotonic() + LINE_S)
        until = _cut(ends, self._read_timeout, used=wire.used)
        limit = self._read_timeout if until is None else max(until - time.monotonic(), 0.0)
        try:
            replies = await wire.exchange(commands, limit, meanwhile)
        except BaseException:
            await hand.drop(wire)
            raise
        if wire.broken is not None:
            await hand.drop(wire)
            await hand.drop_all()  # idle connections to the same node may be dead as well
            return replies
        hand.give_back(wire)
        if any(moved_away(reply) for reply in replies):
            await hand.drop_all()
        return replies

    def _just_refused(self, hand: AioPool) -> Exception | None:
        """Return the error of an attempt to connect that failed within the last RECONNECT_S.

        This limits the attempts to one per RECONNECT_S, however many calls wait for the store.
        """
        refused, now = self._refused.get(hand), time.monotonic()
        if refused is None:
            return None
        since, error = refused
        if now - since < RECONNECT_S:
            return error
        self._refused[hand] = now, error  # this call connects; the others get the old error
        return None


def ends_in(patience: float | None) -> float:
    """Return the monotonic time at which a caller that starts now gives up; None: never."""
    return math.inf if patience is None else time.monotonic() + (patience or ONE_TRY_S)


def _cut(ends: float, read_timeout: float, *, used: bool) -> float | None:
    """Return the time at which an exchange times out; None when the read timeout suffices.

    A used connection may have died while idle, so it gets half of the time that is left: the other
    half is for another attempt.
    """
    if ends == math.inf:
        return None
    now = time.monotonic()
    share = (ends - now) / 2 if used else ends - now
    return None if share >= 0.9 * read_timeout else now + share


def _at(address: Address, node: Node | None) -> Address:
    return address if node is None else redis_clients.at_node(address, *node)


def _name_of(slots: SlotMap | None, key: str) -> str:
    return "" if slots is None else name_of(slots.holder(key))


def _guess(slots: SlotMap | None, key: str) -> Node | None:
    """Return the node that holds a key, suspect or not; None: the only node, or not known."""
    try:
        return None if slots is None else slots.best_guess(key)
    except LIBRARY_ERRORS:
        return None


def _settle(
    replies: Sequence[Any], calls: Sequence[Call[T]], address: Address
) -> list[T | QsyncError]:
    """Decode the replies and translate the store's errors into qsync's."""
    settled: list[T | QsyncError] = []
    for reply, call in zip(replies, calls, strict=True):
        if isinstance(reply, BaseException):
            error = translate(reply, call, address)
            error.__cause__ = reply
            settled.append(error)
        else:
            settled.append(call.decode(reply))
    return settled
