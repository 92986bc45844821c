"""Cancels calls to a real store at random moments. No reply may reach the wrong call."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import redis.asyncio

from qsync.broker import redis_clients, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.keys import GlobalKeys

CALLS = 60


def mixed_up(url: str, prefix: str, seed: int) -> str | None:
    """Make calls and cancel some of them; return the first wrong answer, or None.

    No other test may use the prefix.
    """
    return asyncio.run(_make_calls(url, random.Random(seed), f"{prefix}-{seed}"))


async def _make_calls(url: str, chance: random.Random, prefix: str) -> str | None:
    broker = AsyncBroker(redis_clients.parse(url), connections=2)
    try:
        for number in range(CALLS):
            many = chance.randint(1, 50)
            call = registry_ops.register(
                GlobalKeys(prefix), [f"{number}-{at}" for at in range(many)]
            )
            task = asyncio.ensure_future(broker.run(call, patience=1))
            if chance.random() < 0.5:
                for _ in range(chance.randrange(14)):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    continue
                except (TypeError, ValueError) as error:
                    return f"call {number} of {many} names raised {type(error).__name__}: {error}"
            else:
                try:
                    answer = await asyncio.wait_for(task, 5)
                except (QsyncError, TimeoutError, TypeError, ValueError) as error:
                    return f"call {number} of {many} names raised {type(error).__name__}: {error}"
                if answer != many:
                    return f"call {number} of {many} names returned {answer}"
    finally:
        await broker.aclose()
    return None


@contextlib.contextmanager
def connection_kept_after_a_cancel() -> Iterator[None]:
    """Mistake: a call that is cancelled between its request and the reply returns its connection to
    the pool."""
    real = redis.asyncio.Connection.disconnect

    async def disconnect(self: Any, *args: Any, **options: Any) -> None:
        if (task := asyncio.current_task()) is None or not task.cancelling():
            await real(self, *args, **options)

    redis.asyncio.Connection.disconnect = disconnect  # type: ignore[method-assign]
    try:
        yield
    finally:
        redis.asyncio.Connection.disconnect = real  # type: ignore[method-assign]
