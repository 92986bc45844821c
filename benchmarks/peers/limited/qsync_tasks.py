"""Tasks for `qsync worker` with `app.limit`."""

import asyncio
import sys

from benchmarks.peers.limited.work import HOLD, RATE, RUN_S, SLOTS, URL, note
from qsync import Qsync

app = Qsync(URL)
app.limit("slots", concurrency=SLOTS)
app.limit("pace", rate=RATE, per=1, burst=1)


@app.task(limits=["slots"])
async def hold(number: int) -> None:
    note("start", number)
    while HOLD.exists():  # noqa: ASYNC110 - another process removes the file
        await asyncio.sleep(0.02)
    await asyncio.sleep(RUN_S)
    note("end", number)


@app.task(limits=["pace"])
async def pace(number: int) -> None:
    note("start", number)
    note("end", number)


if __name__ == "__main__":
    task = {"hold": hold, "pace": pace}[sys.argv[1]]
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        task.enqueue_sync(number)
    app.close()
