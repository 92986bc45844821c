"""A client, a server and a task in ten lines. The program needs a store at QSYNC_URL."""

import asyncio

from qsync import Mux, Qsync, Task, TaskInfo

mux = Mux()


@mux.handle("reindex-file")  # a def function also works
async def reindex(task: TaskInfo) -> str:
    print(task.id, task.payload)
    return f"{len(task.payload)} bytes"


async def main() -> None:
    queue = Qsync(prefix="hello")  # or Qsync("redis://localhost:6379")
    async with queue.async_client() as client, queue.server(mux, concurrency=100):
        handle = await client.enqueue(
            Task("reindex-file", b"task payload", retry=3, delay=0.5, retention=60)
        )
        print(await handle.result(timeout=10))


asyncio.run(main())
