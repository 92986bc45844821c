"""docket: coroutines, streams."""

import asyncio
from datetime import timedelta

from docket import Docket, Worker

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import CONCURRENCY, URL

COLOUR = "async"
# The docs of docket recommend more connections than concurrent tasks; redis-py's default maximum is
# 100.
STORE = f"{URL}?max_connections={2 * CONCURRENCY}"


async def noop(payload: str) -> None:
    ran(payload)


def connect():
    # Do not keep records of completed tasks (docket's "fire and forget").
    docket = Docket(name="bench", url=STORE, execution_ttl=timedelta(0))
    docket.register(noop)
    return docket


async def enqueue(docket, payload):
    execution = await docket.add(noop)(payload)
    return execution.key


async def enqueue_many(docket, payloads):
    await docket.add_many([docket.call(noop)(payload) for payload in payloads])


async def find(docket, id):
    return await docket.get_execution(id) is not None


async def serve():
    async with connect() as docket, Worker(docket, concurrency=CONCURRENCY) as worker:
        await worker.run_forever()


if __name__ == "__main__":
    use_uvloop()
    asyncio.run(serve())
