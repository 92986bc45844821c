"""Base class of `Client` and `AsyncClient`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from qsync.broker import ops, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ONE_TRY_S
from qsync.broker.blocking import Broker
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.enqueue_options import has_options
from qsync.broker.enqueue_packet import pack_enqueue
from qsync.broker.views import QueueNames
from qsync.bulk_enqueue import BulkEnqueue, Lookahead, RoundTrip
from qsync.declared_limits import DeclaredLimits
from qsync.enqueueing import (
    check_confirm_timeout,
    check_durability,
    check_payload_limit,
    check_remember_ids,
    validated,
)  # fmt: skip
from qsync.errors import QsyncError
from qsync.idempotency import CallSequences
from qsync.keys import GlobalKeys, QueueKeys, check_id, queue_keys
from qsync.new_task import NewTask
from qsync.queue_announcer import QueueAnnouncer
from qsync.task_lookup import Search
from qsync.times import Duration

T = TypeVar("T")

CALLS_AT_ONCE: Final = 8
CALLS_A_WAIT: Final = 16
"""Number of calls in one round trip to a single-node store, without and with a wait for
confirmation. With eight calls per round trip, client and store work at the same time. A wait takes
far longer than a call, so a round trip with a wait carries more calls.
"""


class ClientBase:
    """Base class of `Client` and `AsyncClient`."""

    def __init__(
        self,
        broker: Broker | AsyncBroker,
        prefix: str,
        payload_limit: int,
        durability: Durability | None,
        confirm_timeout: float,
        remember_ids: Duration,
    ) -> None:
        self._broker: Any = broker
        self._sends_packets = broker.sends_packets
        self._registrations: Any
        self._address = broker.address
        self._global_keys = GlobalKeys(prefix)
        self._payload_limit = check_payload_limit(payload_limit)
        self._remember_us = check_remember_ids(remember_ids)
        self._durability = check_durability(durability)
        self._confirm_timeout = check_confirm_timeout(confirm_timeout)
        self._confirmed_stores: set[tuple[Durability, str]] = set()
        self._announcer = QueueAnnouncer()
        self._call_sequences = CallSequences()
        self.borrowed = False
        """True while the client belongs to a server, which closes it; `close` then does nothing."""
        self.declared: DeclaredLimits | None = None
        """The limits that the client's app declares, each with the queue to which it applies."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self._global_keys.prefix!r} at {self._address}>"

    def _durability_of(self, durability: Durability | None) -> Durability | None:
        """Return the durability of a call; None means the client's own."""
        return self._durability if durability is None else check_durability(durability)

    def _keys(self, queue: str) -> QueueKeys:
        return queue_keys(self._global_keys.prefix, queue)

    def _wait(self, keys: QueueKeys, durability: Durability | None) -> Wait | None:
        """Return how to wait until an enqueue to the queue is durable; None without durability."""
        if durability is None:
            return None
        return ops.wait(keys, durability, timeout_ms=round(self._confirm_timeout * 1000))

    def _allowance(self, wait: Wait | None) -> float:
        """Return the longest time, in seconds, that a caller waits for the previous call and its
        own call."""
        patience = self._broker.patience or ONE_TRY_S
        return patience if wait is None else patience + 2 * self._confirm_timeout

    def _calls(self, wait: Wait | None) -> int:
        """Return the number of calls per round trip."""
        if self._address.kind == "cluster":
            return 1
        return CALLS_AT_ONCE if wait is None else CALLS_A_WAIT

    @contextmanager
    def _round_trips(
        self,
        bulk: BulkEnqueue[T],
        durability: Durability | None,
        queue: str,
        indices: Sequence[int],
    ) -> Iterator[tuple[QueueKeys, Lookahead[RoundTrip]]]:
        """Yield the queue's key names, and the round trips for these tasks; the call ids are valid
        only within the `with` block."""
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        leased = self._call_sequences.acquire(0)
        with leased:
            calls = self._calls(wait)
            yield keys, Lookahead(bulk.round_trips(keys, indices, leased, wait, calls=calls))

    def _store(self, wait: Wait) -> tuple[Durability, str]:
        """Return a key that identifies the confirming store, which in a cluster depends on the
        queue."""
        [key] = wait.mark.keys
        return wait.durability, key if self._address.kind == "cluster" else ""

    def _ready(self, task: object, queue: str | None) -> NewTask:
        return validated(
            task,
            queue=queue,
            payload_limit=self._payload_limit,
            remember_us=self._remember_us,
            declared=self.declared,
        )

    def _packet(self, keys: QueueKeys, task: NewTask, call_id: tuple[str, int]) -> bytes | None:
        """Return the encoded call that enqueues a task; None if the task must be sent as a
        `Call`."""
        if not self._sends_packets or has_options(task) or self._announcer.is_due(keys.queue):
            return None
        return pack_enqueue(keys, task, *call_id)

    def _registration(self, queue: str) -> Call[Any] | None:
        """Return the call that registers the queue in the store, to be sent with its tasks.

        Return None if no registration is due. In a cluster, always return None and send the call in
        the background, since the set of queues may be on another node.
        """
        if not self._announcer.due(queue):
            return None
        call = registry_ops.register(self._global_keys, [queue], in_full_store=False)
        if self._address.kind != "cluster":
            return call
        self._registrations.add(queue, call)
        return None

    def _note_registered(self, queue: str, reply: Any) -> None:
        """Record the reply to a registration; a failed registration is retried later and does not
        fail the enqueue."""
        if isinstance(reply, QsyncError):
            self._announcer.failed(queue)
        else:
            self._announcer.registered(queue)

    def _search(self, id: str, listed: QueueNames) -> Search:
        """Return a search of the queues that the store lists.

        Include queues that this client has used but that are not yet listed, since in a cluster a
        new queue is listed with a delay.
        """
        names = {*listed.names, *self._announcer.unconfirmed}
        return Search(check_id(id), self._global_keys.prefix, names, total=listed.more)
