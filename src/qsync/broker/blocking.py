"""`Broker` runs Calls on the store and blocks; `AsyncBroker` in aio.py is its twin.

A call is sent as EVALSHA, and as EVAL if the store does not know the script. A call may run twice,
so a broker retries transient errors, with a jittered delay, until the caller's patience ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qsync import forks
from qsync.backoff import Backoff
from qsync.broker import redis_clients, redis_errors
from qsync.broker.base import DEFAULT, MAP_S, BaseBroker, Patience, ends_in, exchange_end, noop
from qsync.broker.call import Call, Durability
from qsync.broker.error_mapping import (
    Fault,
    classify,
    is_demoted,
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
from qsync.errors import QsyncError

if TYPE_CHECKING:
    import redis

    from qsync.broker.blocking_pool import Pool
    from qsync.broker.listeners import Subscription

T = TypeVar("T")

UNEXPECTED_S: Final = 1.0
"""How long a broker does not use `converse` after an unexpected reply, in seconds."""


class Broker(BaseBroker["Pool"]):
    """Runs calls on the store and blocks until they return.

    Threads may share a broker, and a forked child may use its parent's broker.
    """

    _unexpected_until = 0.0
    """Monotonic time until which the broker does not use `converse`."""

    def run(self, call: Call[T], *, patience: Patience = DEFAULT, ends: float | None = None) -> T:
        """Make one call. Retry transient errors for `patience` seconds; None means no limit.

        `ends` replaces `patience`: it is the time at which the caller gives up, as returned by
        `ends_in`. Raises StoreUnavailable or QueueFull, and ConfigError if the store refuses the
        credentials.
        """
        forks.notice()
        patience = self.patience if patience is DEFAULT else patience
        ends = ends_in(patience) if ends is None else ends
        backoff = None
        while True:
            [reply] = self._try([call], ends)
            if not isinstance(reply, BaseException):
                return call.decode(reply)
            backoff = backoff or Backoff()
            time.sleep(self._delay(reply, call, backoff, -math.inf if patience == 0 else ends))

    def run_many(
        self,
        calls: Sequence[Call[T]],
        *,
        ends: float = math.inf,
        overlap: Callable[[], None] = noop,
    ) -> list[T | QsyncError]:
        """Try each call once, and give up at `ends`.

        The calls share one round trip, except in a cluster, where each call takes its own. Calls
        with a durability wait must come last and share this wait. `overlap` runs while the store
        works on the calls; it is not called in a cluster.
        """
        forks.notice()
        return self._decode(self._try(calls, ends, overlap) if calls else [], calls)

    def run_once(self, call: Call[T], *, ends: float) -> T | QsyncError:
        """Try a call once, and give up at `ends`; return its result or the error.

        The caller must have drawn a nonce before, since drawing one detects forks.
        """
        [reply] = self._try((call,), ends)
        if isinstance(reply, BaseException):
            return self._decode_one(reply, call)
        return call.decode(reply)

    def converse(self, packet: bytes, expected: bytes) -> bool:
        """Send an encoded call once; return whether the encoded reply is `expected`.

        False means that the call was not sent, or that the expected reply did not arrive. The
        caller then repeats the call with `run_once`. The caller must have called `forks.notice`,
        and its patience must cover the read timeout.
        """
        pool = self._pools.get(None)
        if pool is None or self.flow_queues or time.monotonic() < self._unexpected_until:
            return False
        if (connection := pool.take_warm()) is None:
            return False
        try:
            is_expected = connection.converse(packet, expected)
        except BaseException:
            pool.discard(connection)
            raise
        if is_expected:
            pool.release(connection)
        elif connection.error is not None:
            pool.discard(connection)
        else:  # e.g. the store is full; keep the connection, since opening one per error costs more
            pool.drop(connection)
            self._unexpected_until = time.monotonic() + UNEXPECTED_S
        return is_expected

    def can_confirm(self, durability: Durability, key: str, *, ends: float = math.inf) -> bool:
        """Return True if the node that holds a key can confirm this durability, False if unknown.

        Raises ConfigError if the node cannot confirm it.
        """
        try:
            pool = self._pool_for(self._node_of(key, ends))
        except redis_errors.LIBRARY_ERRORS:
            return False
        return bool(self._run_exchanges(pool, probe_durability(durability, self.address), ends))

    def ping(self) -> float:
        """Measure the duration of a round trip, in seconds; raise StoreUnavailable if there is no
        reply."""
        forks.notice()
        began = time.perf_counter()
        ends = min(ends_in(self._read_timeout), ends_in(self.patience))
        with mapped_errors(self.address):
            node = None if self._slots is None else self._load_slot_map(self._slots, ends)
        [reply] = self._exchange(self._pool_for(node), [("PING",)], ends)
        if isinstance(reply, BaseException):
            raise unavailable(reply, self.address) from reply
        return time.perf_counter() - began

    def ask(self, *command: str | bytes | int, key: str = "") -> Any:
        """Run a plain command; return the raw reply, or None if the store refuses the command.

        In a cluster, the command runs on the node that holds `key`. Raises StoreUnavailable if
        there is no reply.
        """
        ends = ends_in(self._read_timeout)
        with mapped_errors(self.address):
            node = self._node_of(key, ends)
        [reply] = self._exchange(self._pool_for(node), [command], ends)
        if not isinstance(reply, BaseException):
            return reply
        if isinstance(reply, redis_errors.ResponseError) and classify(reply) is not Fault.TRANSIENT:
            return None
        raise unavailable(reply, self.address) from reply

    def subscribe(self, node: Node | None) -> Subscription:
        """Return a subscription to a node's sharded channels, on its own connection.

        None means the only node.
        """
        from qsync.broker.listeners import Subscription  # imports redis-py

        return Subscription(self, node)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        while self._pools:
            self._pools.popitem()[1].close()

    def locate(self, key: str) -> Node | None:
        """Return the node that holds a key, asking the cluster if needed; None means the only
        node."""
        with mapped_errors(self.address):
            return self._node_of(key, ends_in(redis_clients.CONNECT_TIMEOUT))

    def client_at(self, node: Node | None) -> redis.Redis:
        """Return a client with one connection to a node; None means the only node."""
        return redis_clients.node_client(
            self._address_of(node), connections=1, read_timeout=self._read_timeout
        )

    def record_node_error(self, node: Node | None, error: BaseException) -> None:
        """Record an error that a node returned, or that broke a connection to the node."""
        if self._slots is not None and node is not None:
            self._slots.redirect(error, node)
        if (pool := self._pools.get(node)) is not None and is_silence(error):
            pool.discard_idle()

    def _pool_for(self, node: Node | None) -> Pool:
        pool = self._pools.get(node)
        if pool is None:
            from qsync.broker.blocking_pool import Pool  # imports redis-py

            limit, timeout = self._connections, self._read_timeout
            client = redis_clients.node_client(
                self._address_of(node), connections=limit, read_timeout=timeout
            )
            pool = Pool(client, connections=limit, read_timeout=timeout)
            # If two threads create a pool at the same time, the second thread uses the pool of the
            # first.
            pool = self._pools.setdefault(node, pool)
        return pool

    def _try(
        self, calls: Sequence[Call[Any]], ends: float, overlap: Callable[[], None] = noop
    ) -> list[Any]:
        """Try the calls once; return one reply or error per call."""
        if self.address.clock is not None:
            calls = self._timed(calls)
        if (slots := self._slots) is not None:
            return [self._try_in_cluster(slots, call, ends) for call in calls]
        pool = self._pools.get(None) or self._pool_for(None)
        if (command := lone_command(calls, self.flow_queues)) is None:
            exchanges = send_calls(calls, self.flow_queues)
            answers: list[Any] = self._run_exchanges(pool, exchanges, ends, overlap)
            return answers
        replies = self._exchange(pool, (command,), ends, overlap)
        if isinstance(replies[0], Exception):
            exchanges = after_lone(calls, replies, self.flow_queues)
            return list(self._run_exchanges(pool, exchanges, ends))
        return replies

    def _try_in_cluster(self, slots: SlotMap, call: Call[Any], ends: float) -> Any:
        steps = in_cluster(slots, call, self.flow_queues)
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, str):
                    answer = self._holder(slots, step, ends)
                else:
                    node, exchanges = step
                    answer = self._run_exchanges(self._pool_for(node), exchanges, ends)
        except StopIteration as end:
            return end.value
        except redis_errors.LIBRARY_ERRORS as error:
            return error

    def _run_exchanges(
        self,
        pool: Pool,
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
            replies = self._exchange(pool, commands, ends, overlap)
            overlap = noop

    def _node_of(self, key: str, ends: float) -> Node | None:
        """Return the cluster node that holds a key; None when the store has only one node."""
        return None if self._slots is None else self._holder(self._slots, key, ends)

    def _holder(self, slots: SlotMap, key: str, ends: float) -> Node:
        node = slots.holder(key)
        if node is None:
            self._load_slot_map(slots, ends)
            node = slots.best_guess(key)
        return node

    def _load_slot_map(self, slots: SlotMap, ends: float) -> Node:
        """Fetch the cluster's slot map; return the node that replied.

        Each node has MAP_S to reply. If none replies, all are asked again with the whole read
        timeout.
        """
        error: Exception = redis_errors.TimeoutError("no time left to fetch the cluster's slot map")
        for limit in (MAP_S, self._read_timeout):
            for node in slots.candidates():
                node_ends = min(ends, time.monotonic() + limit)
                [reply] = self._exchange(self._pool_for(node), [ASK_MAP], node_ends)
                failed = slots.learn(reply, node)
                if failed is None:
                    return node
                error = failed
                if time.monotonic() >= ends:
                    raise error
        raise error

    def _exchange(
        self,
        pool: Pool,
        commands: Sequence[tuple[Any, ...]],
        ends: float,
        overlap: Callable[[], None] = noop,
    ) -> list[Any]:
        try:
            connection = pool.acquire(ends)
        except redis_errors.LIBRARY_ERRORS as error:
            return [error] * len(commands)
        until = exchange_end(ends, self._read_timeout, used=connection.used)
        try:
            replies = connection.request(commands, until, overlap)
        except BaseException:
            pool.discard(connection)
            raise
        if connection.error is not None or is_demoted(replies):
            pool.discard(connection)
        else:
            pool.release(connection)
        return replies
