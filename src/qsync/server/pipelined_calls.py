"""Sends calls of many queues in one pipeline, if all queues are on one node.

A round trip with many calls costs about as much as one with few calls. So the calls that a server's
settlers make while an exchange is in flight share the next exchange.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call

FEW: Final = 8
"""Maximum number of queues for which separate calls are faster, since the broker has that many
connections."""

MAX_REQUESTS: Final = 100
"""Maximum number of `run_many` requests in one exchange."""

Request = tuple[Sequence[Call[Any]], asyncio.Future[list[Any]]]


class CallPipeline:
    """Sends the calls of several callers together."""

    def __init__(self, broker: AsyncBroker, queues: int) -> None:
        self._broker = broker
        self._alone = queues <= FEW or broker.address.kind == "cluster"
        self._waiting: deque[Request] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Make calls as `AsyncBroker.run_many` does."""
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
            requests: list[Request] = []
            while self._waiting and len(requests) < MAX_REQUESTS:
                requests.append(self._waiting.popleft())
            try:
                answers = await self._broker.run_many(
                    [call for calls, _ in requests for call in calls]
                )
            except Exception as error:  # must be a bug, since store errors are among the replies
                for _, asked in requests:
                    if not asked.done():
                        asked.set_exception(error)
                continue
            start = 0
            for calls, asked in requests:
                if not asked.done():
                    asked.set_result(answers[start : start + len(calls)])
                start += len(calls)
