"""Publishes the limits and bounds of a server's app to its queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from qsync.bounds import Bounds
from qsync.broker import bounds_ops, limit_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.broker.call import Call
from qsync.errors import QsyncError, StoreUnavailable
from qsync.keys import QueueKeys
from qsync.limit import LimitRule
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.server_parts import cancel

START_S: Final = 1.0
"""Time limit for publishing when the server starts, in seconds."""


class QueueRules:
    """Puts the rules of `app.limit` and `app.queue` into the store before the first fetch, and
    again when the store may have lost them."""

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        queues: Sequence[QueueState],
        limits: Mapping[str, LimitRule],
        bounds: Mapping[str, Bounds],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._prefix = prefix
        self._served = {queue.name: queue for queue in queues}
        self._limits = limits
        self._bounds = bounds
        self._outage = outage
        self._due: set[str] = set()
        self._again: dict[str, asyncio.Task[None]] = {}
        """asyncio tasks that publish rules in the background, one per queue, so that an unreachable
        node does not delay the other queues."""

    async def start(self) -> None:
        """Publish the rules. Raise QsyncError if the store refuses the rules.

        A queue whose node does not reply within START_S gets its rules later, in the background.
        Until then, the server fetches nothing from that queue.
        """
        queues = dict.fromkeys([*self._served, *self._bounds])
        calls = [(queue, call) for queue in queues for call in self._calls(queue)]
        answers = await self._broker.run_many([call for _, call in calls], ends=ends_in(START_S))
        away = set()
        for (name, _), answer in zip(calls, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                away.add(name)
            elif isinstance(answer, QsyncError):
                raise answer
        for name in away & self._served.keys():
            self._served[name].awaits_rules = True
        self._publish_all(away)

    async def stop(self) -> None:
        """Stop publishing."""
        await cancel([*self._again.values()])

    def publish_again(self, queue: str) -> None:
        """Publish the rules of a queue in the background, until the store has them.

        Also publish the bounds of queues that this server does not serve, since it cannot notice
        when the store loses their data.
        """
        unserved = self._bounds.keys() - self._served.keys()
        self._publish_all(unserved | ({queue} if self._has_rules(queue) else set()))

    def _publish_all(self, queues: set[str]) -> None:
        self._due |= queues
        for name in queues - self._again.keys():
            self._again[name] = asyncio.get_running_loop().create_task(self._publish(name))

    async def _publish(self, queue: str) -> None:
        state, published = self._served.get(queue), ""
        try:
            while queue in self._due:
                self._due.discard(queue)
                if state is not None and self._limits:
                    published = state.generation or ""
                for call in self._calls(queue):
                    await self._broker.run(call, patience=None)
        except QsyncError as error:
            self._outage.note(f"publish limits and bounds of queue {queue}", error)
            published = ""  # until the store has the rules, it leases no tasks with limits
        finally:
            del self._again[queue]
            if state is not None:
                state.awaits_rules = False
                state.rules_generation = published

    def _has_rules(self, queue: str) -> bool:
        return bool(self._limits) or queue in self._bounds

    def _calls(self, queue: str) -> Iterator[Call[Any]]:
        keys = QueueKeys(self._prefix, queue)
        if queue in self._bounds:
            yield bounds_ops.put_program_bounds(keys, self._bounds[queue])
        if self._limits and queue in self._served:
            yield limit_ops.put_limit_rules(keys, self._limits)
