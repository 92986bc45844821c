import asyncio

from qsync import CRITICAL, DEFAULT, LOWER, Mux, Qsync, Task, TaskInfo

mux = Mux()
app = Qsync(prefix="shop", mux=mux, queues={CRITICAL: 5, DEFAULT: 3, LOWER: 1})


@mux.handle("charge")
async def charge(task: TaskInfo) -> str:
    if task.attempt == 1:
        raise ConnectionError("the bank does not answer")
    return f"order {task.payload.decode()} paid on attempt {task.attempt}"


async def main() -> None:
    async with app.async_client() as client:
        task = Task("charge", b"7", retry=5, retry_delay=1, delay=1, retention=3600)
        handle = await client.enqueue(task, queue=CRITICAL)
        print(await handle.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
