"""Typed tasks; run `qsync worker shop:app --queues default=3,lower=1` in this folder."""

import hashlib
from dataclasses import dataclass

from qsync import Qsync, TaskInfo

app = Qsync(prefix="shop")  # QSYNC_URL names the store


@dataclass
class Invoice:
    number: int
    cents: int


@app.task(retry=5, retention=60)
async def send(task: TaskInfo, invoice: Invoice, *, copy: bool = False) -> str:
    return f"invoice {invoice.number} sent on attempt {task.attempt}"


@app.task(executor="process", retention=60)  # runs in its own process, so it can use a whole core
def digest(data: bytes, rounds: int) -> str:
    for _ in range(rounds):
        data = hashlib.sha256(data).digest()
    return data.hex()


@app.periodic(cron="0 9 * * mon-fri", tz="Europe/Moscow")
async def report() -> None:
    print("good morning")
