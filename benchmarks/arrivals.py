"""A separate client process that enqueues tasks at random times, without waiting for them to run.

    python -m benchmarks.arrivals SPEC

The arrivals form a Poisson process: they are independent of each other and of the server, like
requests from many users. SPEC is a JSON object; see `run_arrivals`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.handlers import STAMPED
from benchmarks.server_process import BenchmarkError
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.client import AsyncClient
from qsync.task import Task

ROOT: Final = Path(__file__).resolve().parent.parent

SEED: Final = 7


async def run_arrivals(
    url: str, prefix: str, *, rate: float, seconds: float, uvloop: bool
) -> tuple[int, float]:
    """Enqueue `rate` tasks per second on average; return their number and the time taken.

    The payload of a task is its arrival time by the monotonic clock, in ns. Delays in the client
    therefore add to the delay that the handler records.
    """
    spec = {"url": url, "prefix": prefix, "rate": rate, "seconds": seconds, "uvloop": uvloop}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.arrivals", json.dumps(spec),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise BenchmarkError(f"the client process ended with {process.returncode}")
    sent, took = json.loads(said)
    return sent, took


def main() -> None:
    """Enqueue as the argument specifies; print the number of tasks and the time taken as JSON."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if spec["uvloop"]:
        import uvloop

        make_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        print(json.dumps(runner.run(_arrive(spec))))  # noqa: T201 - the answer


async def _arrive(spec: dict[str, Any]) -> tuple[int, float]:
    random_times = random.Random(SEED)  # noqa: S311 - arrivals, not secrets
    broker = AsyncBroker(redis_clients.parse(spec["url"]))
    async with AsyncClient(broker, prefix=spec["prefix"]) as client:
        gc.collect()
        gc.freeze()  # a full garbage collection would delay this process by 10 ms
        in_flight: set[asyncio.Task[Any]] = set()
        sent, began = 0, time.monotonic()
        due = began + random_times.expovariate(spec["rate"])
        while due < began + spec["seconds"]:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            while due <= time.monotonic():
                stamp = int(due * 1e9).to_bytes(8)
                task = asyncio.create_task(_enqueue(client, stamp))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
                sent += 1
                due += random_times.expovariate(spec["rate"])
        took = time.monotonic() - began
        await asyncio.gather(*in_flight)
    return sent, took


async def _enqueue(client: AsyncClient, stamp: bytes) -> None:
    await client.enqueue(Task(STAMPED, stamp))


if __name__ == "__main__":
    main()
