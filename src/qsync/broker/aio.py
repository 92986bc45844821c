"""`AsyncBroker` runs Calls on the store for asyncio; `Broker` in blocking.py is its twin."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import redis_clients, redis_errors
from qsync.broker.address import Address
from qsync.broker.base import (
    DEFAULT,
    DEFAULT_PATIENCE_S,
    LINE_S,
    MAP_S,
    BaseBroker,
    Patience,
    ends_in,
    exchange_end,
    noop,
)
from qsync.broker.blocking import Broker
from qsync.broker.call import Call, Durability
from qsync.broker.error_mapping import (
    Fault,
    classify,
    is_demoted,
    is_unsupported,
    mapped_errors,
    unavailable,
)
from qsync.broker.exchanges import (
    Exchanges,
    after_lone,
    in_cluster,
    lone_command,
    probe_durability,
    send_calls,
)
from qsync.broker.slot_map import ASK_MAP, Node, SlotMap, is_silence
from qsync.broker.store_info import StoreInfo, parse_info
from qsync.errors import ConfigError, QsyncError

if TYPE_CHECKING:
    import redis.asyncio

    from qsync.broker.aio_pool import AioPool
    from qsync.broker.listeners import AsyncSubscription, BlockingPop

T = TypeVar("T")

RECONNECT_S: Final = 0.1
"""Minimum time between a refused connection and the next attempt of any caller, in seconds."""


class AsyncBroker(BaseBroker["AioPool"]):
    """Runs calls on the store from one event loop. A broker opens up to `connections`
    connections."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 8,
        read_timeout: float = redis_clients.READ_TIMEOUT,
        patience: float = DEFAULT_PATIENCE_S,
    ) -> None:
        super().__init__(
            address, connections=connections, read_timeout=read_timeout, patience=patience
        )
        self._learning: asyncio.Task[Node] | None = None
        """Task that is fetching the cluster's slot map for all waiting calls; None if no fetch is
        in flight."""
        self._refused: dict[AioPool, tuple[float, Exception]] = {}
        """Time and error of the last failed attempt to connect, by pool; empty while all pools can
        connect."""

    async def run(
        self, call: Call[T], *, patience: Patience = DEFAULT, ends: float | None = None
    ) -> T:
        patience = self.patience if patience is DEFAULT else patience
        ends = ends_in(patience) if ends is None else ends
        backoff = None
        while True:
            [reply] = await self._try([call], ends)
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            backoff = backoff or Backoff(cap=AWAY_CAP_S)
            delay = self._delay(reply, call, backoff, -math.inf if patience == 0 else ends)
            await asyncio.sleep(delay)

    async def run_many(
        self,
        calls: Sequence[Call[T]],
        *,
        ends: float = math.inf,
        overlap: Callable[[], None] = noop,
    ) -> list[T | QsyncError]:
        return self._decode(await self._try(calls, ends, overlap) if calls else [], calls)

    async def run_once(self, call: Call[T], *, ends: float) -> T | QsyncError:
        [reply] = await self._try((call,), ends)
        if isinstance(reply, BaseException):
            return self._decode_one(reply, call)
        return call.decode(reply)

    async def converse(self, packet: bytes, expected: bytes, *, seconds: float) -> bool:
        """Send an encoded call once; return whether the encoded reply is `expected`.

        False means that the call was not sent, or that the expected reply did not arrive. The
        caller then repeats the call with `run_once`. The call is not sent if the caller's remaining
        patience, `seconds`, leaves no time for another attempt.
        """
        timeout, pool = self._read_timeout, self._pools.get(None)
        if pool is None or self._refused or self.flow_queues or seconds < 1.8 * timeout:
            return False
        if (connection := pool.take()) is None:
            return False
        if not connection.takes_packets:
            pool.release(connection)
            return False
        try:
            replies = await connection.request((packet,), timeout, usual_reply=expected)
        except BaseException:
            await pool.discard(connection)
            raise
        if connection.error is None:
            pool.release(connection)
        else:
            await pool.discard(connection)
            await pool.discard_all()
        is_expected: bool = replies[0] == expected
        return is_expected

    def too_late(self) -> QsyncError:
        """Return the error for a caller whose patience ended while its call was in flight."""
        return unavailable(self._failure or TimeoutError(), self.address)

    async def can_confirm(
        self, durability: Durability, key: str, *, ends: float = math.inf
    ) -> bool:
        try:
            pool = self._pool_for(await self._node_of(key, ends))
        except redis_errors.LIBRARY_ERRORS:
            return False
        probe = probe_durability(durability, self.address)
        return bool(await self._run_exchanges(pool, probe, ends))

    async def ping(self) -> float:
        began = time.perf_counter()
        await self._execute("PING")
        return time.perf_counter() - began

    async def info(self) -> StoreInfo:
        """Read the store's version, product and settings; they are unknown if INFO is forbidden."""
        try:
            return parse_info(await self._execute("INFO"))
        except ConfigError as error:
            cause = error.__cause__
            if isinstance(cause, redis_errors.NoPermissionError) or is_unsupported(cause):
                return StoreInfo(None, "unknown", None)
            raise

    async def ask(self, *command: str | bytes | int, key: str = "") -> Any:
        """Run a plain command; return the raw reply, or None if the store refuses the command.

        In a cluster, the command runs on the node that holds `key`. Raises StoreUnavailable if
        there is no reply.
        """
        with mapped_errors(self.address):
            node = await self._node_of(key, ends_in(self._read_timeout))
        [reply] = await self._exchange(self._pool_for(node), [command])
        if not isinstance(reply, BaseException):
            return reply
        if isinstance(reply, redis_errors.ResponseError) and classify(reply) is not Fault.TRANSIENT:
            return None
        raise unavailable(reply, self.address) from reply

    async def primaries(self) -> list[Address]:
        """Return the addresses of all primaries of a cluster; without a cluster, only the broker's
        own address."""
        if self._slots is None:
            return [self.address]
        with mapped_errors(self.address):
            await self._load_slot_map(self._slots, ends_in(self._read_timeout))
        return [self._address_of(node) for node in sorted(self._slots.primaries)]

    def blocking_pops(self, keys: Sequence[str]) -> list[BlockingPop]:
        """Return connections that block on these lists: one for all lists, or in a cluster, one per
        list."""
        from qsync.broker.listeners import BlockingPop  # imports redis-py

        if self._slots is not None:
            return [BlockingPop(self, (key,)) for key in keys]
        return [BlockingPop(self, tuple(keys))]

    def subscribe(self, node: Node | None) -> AsyncSubscription:
        from qsync.broker.listeners import AsyncSubscription  # imports redis-py

        return AsyncSubscription(self, node)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        learning, self._learning = self._learning, None
        if learning is not None:
            learning.cancel()
            await asyncio.wait([learning])
        self._refused.clear()
        while self._pools:
            await self._pools.popitem()[1].aclose()

    async def locate(self, key: str) -> Node | None:
        with mapped_errors(self.address):
            return await self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT))

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """Return a client with one connection to the node that holds a key."""
        return self.client_at(await self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT)))

    def client_at(self, node: Node | None) -> redis.asyncio.Redis:
        return redis_clients.async_node_client(
            self._address_of(node), connections=1, read_timeout=self._read_timeout
        )

    async def suspect(self, key: str, error: BaseException) -> None:
        """Record a redirection or an error of a connection to the node that holds a key."""
        await self.record_node_error(self.node_of(key), error)

    async def record_node_error(self, node: Node | None, error: BaseException) -> None:
        if self._slots is not None and node is not None:
            self._slots.redirect(error, node)
        if (pool := self._pools.get(node)) is not None and is_silence(error):
            await pool.discard_all()

    def _pool_for(self, node: Node | None) -> AioPool:
        pool = self._pools.get(node)
        if pool is None:
            from qsync.broker.aio_pool import AioPool  # imports redis-py

            client = redis_clients.async_node_client(
                self._address_of(node),
                connections=self._connections,
                read_timeout=self._read_timeout,
            )
            pool = self._pools[node] = AioPool(client, self._connections)
        return pool

    async def _execute(self, *command: str) -> Any:
        """Run a plain command on any node; return the raw reply.

        Raises StoreUnavailable if there is no reply.
        """
        ends = min(ends_in(self._read_timeout), ends_in(self.patience))
        with mapped_errors(self.address):
            node = None if self._slots is None else await self._load_slot_map(self._slots, ends)
        [reply] = await self._exchange(self._pool_for(node), [command], ends)
        if isinstance(reply, BaseException):
            raise unavailable(reply, self.address) from reply
        return reply

    async def _try(
        self, calls: Sequence[Call[Any]], ends: float, overlap: Callable[[], None] = noop
    ) -> list[Any]:
        """Try the calls once; return one reply or error per call."""
        if self.address.clock is not None:
            calls = self._timed(calls)
        if (slots := self._slots) is not None:
            tries = [self._try_in_cluster(slots, call, ends) for call in calls]
            return list(await asyncio.gather(*tries))
        pool = self._pools.get(None) or self._pool_for(None)
        if (command := lone_command(calls, self.flow_queues)) is None:
            exchanges = send_calls(calls, self.flow_queues)
            answers: list[Any] = await self._run_exchanges(pool, exchanges, ends, overlap)
            return answers
        replies = await self._exchange(pool, (command,), ends, overlap)
        if isinstance(replies[0], Exception):
            exchanges = after_lone(calls, replies, self.flow_queues)
            return list(await self._run_exchanges(pool, exchanges, ends))
        return replies

    async def _try_in_cluster(self, slots: SlotMap, call: Call[Any], ends: float) -> Any:
        steps = in_cluster(slots, call, self.flow_queues)
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, str):
                    answer = await self._holder(slots, step, ends)
                else:
                    node, exchanges = step
                    answer = await self._run_exchanges(self._pool_for(node), exchanges, ends)
        except StopIteration as end:
            return end.value
        except redis_errors.LIBRARY_ERRORS as error:
            return error

    async def _run_exchanges(
        self,
        pool: AioPool,
        exchanges: Exchanges,
        ends: float,
        overlap: Callable[[], None] = noop,
    ) -> Any:
        """Run the exchanges of a generator; return the generator's return value."""
        replies: Any = None
        while True:
            try:
                commands = exchanges.send(replies)
            except StopIteration as end:
                return end.value
            replies = await self._exchange(pool, commands, ends, overlap)
            overlap = noop

    async def _node_of(self, key: str, ends: float) -> Node | None:
        """Return the cluster node that holds a key; None when the store has only one node."""
        return None if self._slots is None else await self._holder(self._slots, key, ends)

    async def _holder(self, slots: SlotMap, key: str, ends: float) -> Node:
        node = slots.holder(key)
        if node is None:
            await self._load_slot_map(slots, ends)
            node = slots.best_guess(key)
        return node

    async def _load_slot_map(self, slots: SlotMap, ends: float) -> Node:
        """Fetch the slot map, once for all concurrent callers; return the node that replied."""
        if self._learning is None:
            self._learning = asyncio.get_running_loop().create_task(self._ask_nodes(slots))
            self._learning.add_done_callback(self._on_slots_learned)
        remaining_s = min(ends - time.monotonic(), self._read_timeout)
        async with asyncio.timeout(max(remaining_s, 0.0)):
            return await asyncio.shield(self._learning)

    def _on_slots_learned(self, learning: asyncio.Task[Node]) -> None:
        if self._learning is learning:
            self._learning = None
        if not learning.cancelled():
            learning.exception()  # prevents a warning of asyncio if all callers have given up

    async def _ask_nodes(self, slots: SlotMap) -> Node:
        """Fetch the slot map; each time MAP_S passes without a reply, also ask another node."""
        error: Exception = redis_errors.TimeoutError("no node of the cluster returned the slot map")
        asked: dict[asyncio.Task[list[Any]], Node] = {}
        nodes = slots.candidates()
        try:
            while nodes or asked:
                if nodes:
                    node = nodes.pop(0)
                    question = self._exchange(self._pool_for(node), [ASK_MAP])
                    asked[asyncio.ensure_future(question)] = node
                done, _ = await asyncio.wait(
                    asked, timeout=MAP_S if nodes else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    node = asked.pop(task)
                    failed = slots.learn(task.exception() or task.result()[0], node)
                    if failed is None:
                        return node
                    error = failed
            raise error
        finally:
            for task, node in asked.items():
                task.cancel()
                slots.mark_suspect(node)
            if asked:
                await asyncio.wait(asked)

    async def _exchange(
        self,
        pool: AioPool,
        commands: Sequence[tuple[Any, ...]],
        ends: float = math.inf,
        overlap: Callable[[], None] = noop,
    ) -> list[Any]:
        if self._refused and (refusal := self._recent_refusal(pool)) is not None:
            return [refusal] * len(commands)
        if (connection := pool.take()) is None:
            queued = not pool.available
            try:
                connection = await pool.acquire(self._limit(ends))
            except redis_errors.LIBRARY_ERRORS as error:
                if not isinstance(error, TimeoutError) and not isinstance(
                    error.__cause__, TimeoutError
                ):
                    # A timeout may not mean that the store is down. All connections may have been
                    # in use.
                    self._refused[pool] = time.monotonic(), error
                return [error] * len(commands)
            if queued and pool.is_served:  # waiting for a connection has used up the time
                ends = max(ends, time.monotonic() + LINE_S)
        if self._refused:
            self._refused.pop(pool, None)
        until = exchange_end(ends, self._read_timeout, used=connection.used)
        limit = self._read_timeout if until is None else max(until - time.monotonic(), 0.0)
        try:
            replies = await connection.request(commands, limit, overlap)
        except BaseException:
            await pool.discard(connection)
            raise
        if connection.error is not None:
            await pool.discard(connection)
            await pool.discard_all()  # idle connections to the same node may be dead too
            return replies
        pool.release(connection)
        if is_demoted(replies):
            await pool.discard_all()
        return replies

    def _limit(self, ends: float) -> float:
        """Return how long a caller waits for a connection, in seconds."""
        return max(min(self._read_timeout, ends - time.monotonic()), 0.0)

    def _recent_refusal(self, pool: AioPool) -> Exception | None:
        """Return the error of a connection attempt that failed within the last RECONNECT_S.

        Callers that get this error do not connect, so there is at most one connection attempt per
        RECONNECT_S, even if many calls wait for the store.
        """
        refused, now = self._refused.get(pool), time.monotonic()
        if refused is None:
            return None
        since, error = refused
        if now - since < RECONNECT_S:
            return error
        self._refused[pool] = now, error  # this call connects; other calls raise the old error
        return None


for _name, _twin in vars(Broker).items():
    if callable(_twin) and not _name.startswith("_") and _name in vars(AsyncBroker):
        vars(AsyncBroker)[_name].__doc__ = _twin.__doc__
