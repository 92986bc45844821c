import asyncio
from dataclasses import dataclass

from qsync import CRITICAL, Mux, Qsync, Task, TaskInfo, current


@dataclass
class Order:
    number: int
    cents: int


mux = Mux()
app = Qsync(
    prefix="shop",
    mux=mux,
    concurrency=10,
    queues={"critical": 3, "default": 1},
    retry_delay=1,
)  # QSYNC_URL names the store


@mux.handle("charge")
async def charge(task: TaskInfo) -> str:
    order = task.value(Order)  # if the payload does not match, the task dies without a retry
    if task.attempt == 1:
        raise ConnectionError("the bank does not answer")
    await current().client.enqueue(Task("mail", order, queue=CRITICAL))
    return f"order {order.number} paid on attempt {task.attempt}"


@mux.handle("mail")
async def mail(task: TaskInfo) -> None:
    order = task.value(Order)
    print(f"mail: order {order.number}: {order.cents} cents paid")


async def main() -> None:
    order = Order(7, 12500)
    async with app.async_client() as client:
        task = Task("charge", order, retry=5, timeout=30, retention=3600, unique=60)
        handle = await client.enqueue(task)
        print(await handle.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
