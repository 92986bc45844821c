"""The parts that both brokers share: settings, deadlines, and every decision that needs no I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Generic, Literal, Self, TypeVar

from qsync.backoff import Backoff
from qsync.broker import redis_clients, redis_errors
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.broker.error_mapping import Fault, classify, translate
from qsync.broker.slot_map import Node, SlotMap, name_of
from qsync.errors import ConfigError, QsyncError
from qsync.value_text import class_name

T = TypeVar("T")
PoolT = TypeVar("PoolT")

DEFAULT_PATIENCE_S: Final = 10.0
"""How long a client tries a call by default before it raises StoreUnavailable, in seconds."""

ONE_TRY_S: Final = 2.0
"""Time limit of a call whose patience is 0, in seconds; such a call is tried once."""

MAP_S: Final = 0.5
"""Time without a reply, in seconds, after which another cluster node is asked for the slot map."""


LINE_S: Final = 1.0
"""Time after each reply of the store during which waiting callers do not time out, in seconds."""

LOOP_BLOCKED_S: Final = 0.1
"""Minimum delay of a timer from which a broker infers that the event loop was blocked, in
seconds."""


class _Default(Enum):
    PATIENCE = "the broker's own"


DEFAULT: Final = _Default.PATIENCE
"""Default for a call's `patience`: the patience of the broker."""

Patience = float | None | Literal[_Default.PATIENCE]
"""How long a call is retried, in seconds; None means no limit."""


class BaseBroker(Generic[PoolT]):
    """The part of Broker and AsyncBroker that does no I/O."""

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 64,
        read_timeout: float = redis_clients.READ_TIMEOUT,
        patience: float = DEFAULT_PATIENCE_S,
    ) -> None:
        import redis  # noqa: F401 - here, so that the import takes no time of a call's time limit

        self.address = address
        self.patience = patience
        self._connections = connections
        self._read_timeout = read_timeout
        self._slots = SlotMap.of(address)
        self._pools: dict[Node | None, PoolT] = {}
        """Pools by cluster node; the key is None for a store with one node."""
        self.flow_queues: set[str] = set()
        """Hash tags of queues that are known to use flow control. Calls to these queues use the
        flow variants of scripts without trying the plain variants first."""
        self._failure: BaseException | None = None
        """Last error after which a call was retried."""

    @property
    def sends_packets(self) -> bool:
        """Whether calls may be sent encoded, with `converse`.

        Calls that carry the time of a test's clock cannot be sent in this way. The patience must
        also leave time for another attempt after the read timeout, since `converse` has no other
        time limit.
        """
        ends = ends_in(self.patience or ONE_TRY_S)
        is_patient = exchange_end(ends, self._read_timeout, used=True) is None
        return is_patient and self.address.clock is None

    def with_longer_timeout(self, seconds: float) -> Self:
        """Return a broker for the same store whose calls may wait for a reply `seconds` longer.

        The new broker has separate connections, so that its calls do not delay other calls.
        """
        return type(self)(
            self.address,
            connections=self._connections,
            read_timeout=self._read_timeout + seconds,
            patience=self.patience,
        )

    def node_name(self, key: str) -> str:
        """Return the `host:port` of the node that holds a key, without I/O; "" if unknown."""
        return "" if self._slots is None else name_of(self._slots.holder(key))

    def node_of(self, key: str) -> Node | None:
        """Return the node that holds a key, without I/O; None means the only node, or an unknown
        one."""
        try:
            return None if self._slots is None else self._slots.best_guess(key)
        except redis_errors.LIBRARY_ERRORS:
            return None

    def _timed(self, calls: Sequence[Call[T]]) -> Sequence[Call[T]]:
        """Return the calls with the time of the address's clock, if it has a clock."""
        if (clock := self.address.clock) is None:
            return calls
        now_us = clock()
        return [call.at(now_us) for call in calls]

    def _address_of(self, node: Node | None) -> Address:
        return self.address if node is None else redis_clients.at_node(self.address, *node)

    def _delay(self, error: BaseException, call: Call[Any], backoff: Backoff, ends: float) -> float:
        """Return the delay before the next attempt; raise qsync's exception if the caller must give
        up."""
        delay = backoff.next()
        if time.monotonic() + delay > ends or classify(error) is not Fault.TRANSIENT:
            raise translate(error, call, self.address) from error
        self._failure = error
        return delay

    def _decode(self, replies: Sequence[Any], calls: Sequence[Call[T]]) -> list[T | QsyncError]:
        """Decode the replies, and translate the store's errors into qsync's exceptions."""
        decoded: list[Any] = [
            self._decode_one(reply, call) for reply, call in zip(replies, calls, strict=True)
        ]
        return decoded

    def _decode_one(self, reply: Any, call: Call[T]) -> T | QsyncError:
        if not isinstance(reply, BaseException):
            return call.decode(reply)
        error = translate(reply, call, self.address)
        error.__cause__ = reply
        return error


def check_broker(broker: object, maker: str) -> None:
    """Raise ConfigError if this is not a broker; the message recommends `maker`, which takes a URL.

    The message does not show the URL, which may contain a password.
    """
    if not isinstance(broker, BaseBroker):
        raise ConfigError(
            f"broker: {class_name(broker)} is not a broker; {maker} connects to a URL"
        )


def noop() -> None:
    """Do nothing: the default for `overlap`."""


def ends_in(patience: float | None) -> float:
    """Return the monotonic time at which a caller that starts now gives up; None means never."""
    return math.inf if patience is None else time.monotonic() + (patience or ONE_TRY_S)


def exchange_end(ends: float, read_timeout: float, *, used: bool) -> float | None:
    """Return the time at which an exchange times out; None if the read timeout ends it soon enough.

    A used connection may have died while idle, so it gets half of the remaining time; the other
    half is for another attempt.
    """
    if ends == math.inf:
        return None
    now = time.monotonic()
    share = (ends - now) / 2 if used else ends - now
    return None if share >= 0.9 * read_timeout else now + share
