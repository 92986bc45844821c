import contextlib
from collections.abc import AsyncIterator

from qsync import Qsync, Retry, TaskInfo, current


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, str]]:
    # Each process enqueues a report at startup, but at most one may wait or run.
    await report.options(unique=True, on_duplicate="skip").enqueue()
    yield {"bank": "a connection to the bank"}


app = Qsync(prefix="shop", lifespan=lifespan, timeout=30)  # QSYNC_URL names the store


@app.task(retry=4, retry_for=(), retention=3600)  # only Retry causes another attempt
async def charge(task: TaskInfo, order: int, cents: int) -> str:
    if task.attempt == 1:
        raise Retry("the bank does not answer", delay=1)
    await mail.enqueue(order, f"{cents} cents paid")
    return f"order {order} paid on attempt {task.attempt} by {current().state['bank']}"


@app.task
async def mail(order: int, text: str) -> None:
    print(f"mail: order {order}: {text}")


@app.task
async def remind(order: int) -> None:
    print(f"reminder: order {order}")


@app.periodic(cron="* * * * * *")  # seconds first
async def report() -> None:
    print("report")
