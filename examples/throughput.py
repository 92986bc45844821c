"""Measures throughput on this machine, with a store that this program starts itself.

    python examples/throughput.py [TASKS]

The program measures how fast clients enqueue, in bulk and from concurrent callers, and how fast one
server process drains no-op tasks.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from qsync import Mux, Qsync, Task, TaskInfo

TASKS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000


async def timed(what: str, work: Callable[[], Awaitable[object]]) -> None:
    began = time.perf_counter()
    await work()
    seconds = time.perf_counter() - began
    print(f"{what:<44}{TASKS / seconds:>12,.0f} tasks/s")


async def main(folder: str) -> None:
    mux, left, done = Mux(), 2 * TASKS, asyncio.Event()

    @mux.handle("no-op")
    async def no_op(task: TaskInfo) -> None:
        nonlocal left
        left -= 1
        if left % TASKS == 0:
            done.set()

    payload = b"x" * 32
    async with Qsync(f"embedded://{folder}") as queue, queue.async_client() as client:

        async def concurrently() -> None:
            async def caller() -> None:
                for _ in range(TASKS // 500):
                    await client.enqueue(Task("no-op", payload))

            await asyncio.gather(*(caller() for _ in range(500)))

        async def drain() -> None:
            done.clear()
            async with queue.server(mux, concurrency=100):
                await done.wait()

        await timed("enqueue_many", lambda: client.enqueue_many([Task("no-op", payload)] * TASKS))
        await timed("drain by one process, concurrency 100", drain)
        await timed("enqueue by 500 concurrent callers", concurrently)
        await timed("drain by one process, concurrency 100", drain)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
