"""Tasks for docket's worker with ConcurrencyLimit and RateLimit."""

import asyncio
import sys
from datetime import timedelta

from docket import ConcurrencyLimit, Docket, RateLimit

from benchmarks.peers.limited.work import HOLD, RATE, RUN_S, SLOTS, URL, note

SLOTS_LIMIT = ConcurrencyLimit(max_concurrent=SLOTS)
PACE_LIMIT = RateLimit(RATE, per=timedelta(seconds=1))


async def hold(number: int, limit: ConcurrencyLimit = SLOTS_LIMIT) -> None:
    note("start", number)
    while HOLD.exists():  # noqa: ASYNC110 - another process removes the file
        await asyncio.sleep(0.02)
    await asyncio.sleep(RUN_S)
    note("end", number)


async def pace(number: int, limit: RateLimit = PACE_LIMIT) -> None:
    note("start", number)
    note("end", number)


tasks = [hold, pace]


async def enqueue() -> None:
    task = {"hold": hold, "pace": pace}[sys.argv[1]]
    async with Docket(name="limited", url=URL) as docket:
        for number in range(int(sys.argv[2]), int(sys.argv[3])):
            await docket.add(task)(number)


if __name__ == "__main__":
    asyncio.run(enqueue())
