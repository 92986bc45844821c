"""Calls of many queues that are made together, where one pipeline reaches all of them.

A queue with little to say costs as much of a round trip as one with a lot. So what the settlers of
a server ask for while one exchange is in flight goes together in the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from qsync.broker.call import Call
from qsync.broker.shell import AsyncBroker

FEW: Final = 8
"""For so many queues calls of their own are quicker: the broker has as many connections."""

MOST: Final = 100
"""Calls in one exchange."""

Errand = tuple[Sequence[Call[Any]], asyncio.Future[list[Any]]]


class Together:
    """Makes calls together with those of others."""

    def __init__(self, broker: AsyncBroker, queues: int) -> None:
        self._broker = broker
        self._alone = queues <= FEW or broker.address.kind == "cluster"
        self._waiting: deque[Errand] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """As the broker does."""
        if self._alone:
            return await self._broker.run_many(calls)
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((calls, answers))
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        return await answers

    async def _send(self) -> None:
        while self._waiting:
            some: list[Errand] = []
            while self._waiting and len(some) < MOST:
                some.append(self._waiting.popleft())
            try:
                answers = await self._broker.run_many([call for calls, _ in some for call in calls])
            except Exception as error:  # a mistake of ours, which each of them is to see
                for _, asked in some:
                    if not asked.done():
                        asked.set_exception(error)
                continue
            at = 0
            for calls, asked in some:
                if not asked.done():
                    asked.set_result(answers[at : at + len(calls)])
                at += len(calls)
