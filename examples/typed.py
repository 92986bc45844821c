"""Typed tasks: `qsync worker typed:app` in one terminal, `python typed.py` in another."""

import asyncio
from dataclasses import dataclass

from qsync import Qsync, TaskInfo

app = Qsync(prefix="typed")


@dataclass
class Invoice:
    number: int
    cents: int


@app.task(retry=5, retention=60)
async def send(task: TaskInfo, invoice: Invoice, *, copy: bool = False) -> str:
    return f"invoice {invoice.number} sent at attempt {task.attempt}"


@app.task(executor="process", retention=60)  # a process of its own: it can use a whole core
def digest(data: bytes, rounds: int) -> str:
    import hashlib

    for _ in range(rounds):
        data = hashlib.sha256(data).digest()
    return data.hex()


@app.periodic(cron="0 9 * * mon-fri", tz="Europe/Moscow")
async def report() -> None:
    print("good morning")


async def main() -> None:
    async with app:
        sent = await send.enqueue(Invoice(7, 125_00), copy=True)
        hashed = await digest.options(queue="lower", timeout=10).enqueue(b"seed", rounds=1000)
        print(await sent.result(timeout=30))
        print(await hashed.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
