"""Enqueues tasks for one peer, in the peer's environment, and writes the measurements to a file.

    python -m benchmarks.peers.producer PEER enqueue|fill|memory|latency OPTIONS REPORT

OPTIONS is a JSON object of sizes; see the functions.
"""

import asyncio
import importlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.memory import used_memory
from benchmarks.peers.shared import CALLERS, PAYLOAD, REPORT, URL, first_run_mark, stamp

WARM_UP = 100
SETTLED = 2.0
"""Time for the store to allocate the buffers of new connections, in seconds."""
BULK_AT_ONCE = 10_000
"""Number of tasks per bulk call."""


class Peer:
    """Gives the client of any peer the same awaitable methods."""

    def __init__(self, module: ModuleType, client: Any) -> None:
        self._module = module
        self._client = client
        self.is_async = module.COLOUR == "async"
        self.has_bulk = module.enqueue_many is not None

    async def _call(self, name: str, *args: Any) -> Any:
        answer = getattr(self._module, name)(self._client, *args)
        return await answer if self.is_async else answer

    async def one_by_one(self, count: int) -> None:
        enqueue, client = self._module.enqueue, self._client
        if self.is_async:
            for _ in range(count):
                await enqueue(client, PAYLOAD)
        else:
            for _ in range(count):
                enqueue(client, PAYLOAD)

    async def concurrently(self, count: int) -> None:
        await asyncio.gather(*(self.one_by_one(count // CALLERS) for _ in range(CALLERS)))

    async def bulk(self, count: int) -> None:
        for at in range(0, count, BULK_AT_ONCE):
            await self._call("enqueue_many", [PAYLOAD] * min(BULK_AT_ONCE, count - at))

    async def many(self, count: int) -> None:
        """Enqueue tasks in the fastest way that the peer offers."""
        if self.has_bulk:
            await self.bulk(count)
        elif self.is_async:
            await self.concurrently(count)
        else:
            await self.one_by_one(count)

    async def send(self, payload: str) -> Any:
        return await self._call("enqueue", payload)

    async def found(self) -> bool:
        """Return whether the peer finds a waiting task by its id and reports an unknown id as
        missing."""
        if self._module.find is None:
            return False
        id = await self.send(PAYLOAD)
        return await self._call("find", id) and not await self._call("find", f"{id}-no-such")


async def _rate(work: Callable[[int], Awaitable[None]], count: int) -> float:
    began = time.perf_counter()
    await work(count)
    return count / (time.perf_counter() - began)


async def enqueue(peer: Peer, one: int, concurrent: int) -> dict[str, Any]:
    """Measure the enqueues per second of one caller and of many callers, and check whether a task
    can be looked up."""
    await peer.one_by_one(WARM_UP)
    measured: dict[str, Any] = {"find": await peer.found()}
    measured["one"] = await _rate(peer.one_by_one, one)
    if peer.is_async:
        await peer.concurrently(CALLERS)
        measured["concurrent"] = await _rate(peer.concurrently, concurrent)
    return measured


async def fill(peer: Peer, count: int) -> dict[str, Any]:
    """Enqueue `count` tasks that nothing runs yet; return the rate if the peer has a bulk call."""
    await peer.many(WARM_UP)
    rate = await _rate(peer.many, count - WARM_UP)
    return {"bulk": rate} if peer.has_bulk else {}


async def memory(peer: Peer, count: int) -> dict[str, Any]:
    """Measure the mean bytes per task while the number of tasks doubles, because the store's tables
    grow in jumps."""
    await peer.many(WARM_UP)
    await asyncio.sleep(SETTLED)
    before = used_memory(URL)
    await peer.many(count // 2)
    there, each = count // 2, []
    while there < count:
        await peer.many(count // 20)
        there += count // 20
        each.append((used_memory(URL) - before) / there)
    return {"bytes": fmean(each), "bytes_range": [min(each), max(each)]}


async def latency(peer: Peer, count: int) -> dict[str, Any]:
    """Send tasks to an idle server, one at a time; each carries its enqueue time."""
    await peer.send(PAYLOAD)
    end = time.monotonic() + 30
    while not first_run_mark(REPORT).exists():
        if time.monotonic() > end:
            raise TimeoutError("the server ran no task within 30 s")
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    dice = random.Random(count)  # noqa: S311 - so that no poll of a peer keeps step with it
    for _ in range(count):
        await asyncio.sleep(dice.uniform(0.012, 0.024))
        await peer.send(stamp(time.monotonic_ns()))
    return {}


ACTIONS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "enqueue": enqueue, "fill": fill, "memory": memory, "latency": latency,
}  # fmt: skip


async def _produce(module: ModuleType, action: str, options: dict[str, int]) -> dict[str, Any]:
    if module.COLOUR == "async":
        async with module.connect() as client:
            return await ACTIONS[action](Peer(module, client), **options)
    with module.connect() as client:
        return await ACTIONS[action](Peer(module, client), **options)


def main() -> None:
    peer, action, options, report = sys.argv[1:]
    use_uvloop()
    module = importlib.import_module(f"benchmarks.peers.adapters.{peer}")
    measured = asyncio.run(_produce(module, action, json.loads(options)))
    Path(report).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
