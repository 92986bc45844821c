"""Keep a queue from growing: refuse new tasks, or drop the oldest tasks."""

from qsync import Qsync, QueueFull

app = Qsync()
app.queue("mail", max_tasks=100_000, max_bytes=2**30)
app.queue("positions", max_tasks=1_000, when_full="drop_oldest")


@app.task(queue="mail")
async def send(customer: int) -> None:
    print(f"mail to customer {customer}")


@app.task(queue="positions")
async def move(car: int, at: tuple[float, float]) -> None:
    print(f"car {car} is at {at}")


async def order(customer: int) -> str:
    try:
        await send.enqueue(customer)
    except QueueFull as full:
        return f"try again later: {full.bound} of queue {full.queue} is {full.limit}"
    return "sent"


async def newsletter(customers: list[int]) -> list[int]:
    """Enqueue as many tasks as the queue has room for; return the remaining customers."""
    async with app.async_client() as client:
        try:
            await client.enqueue_many([send.build(customer) for customer in customers])
        except QueueFull as full:
            return customers[len(full.handles) :]
    return []
