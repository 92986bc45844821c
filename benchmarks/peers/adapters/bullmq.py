"""BullMQ for Python: coroutines."""

import asyncio
from contextlib import asynccontextmanager

from bullmq import Queue, Worker

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import CONCURRENCY, URL

COLOUR = "async"
NAME = "bench"
DONE = {"removeOnComplete": True}


@asynccontextmanager
async def connect():
    queue = Queue(NAME, {"connection": URL})
    yield queue
    await queue.close()


async def enqueue(queue, payload):
    job = await queue.add("noop", {"payload": payload}, DONE)
    return job.id


async def enqueue_many(queue, payloads):
    await queue.addBulk(
        [{"name": "noop", "data": {"payload": payload}, "opts": DONE} for payload in payloads]
    )


async def find(queue, id):
    return await queue.getJob(id) is not None


async def noop(job, token):
    ran(job.data["payload"])


async def serve():
    Worker(NAME, noop, {"connection": URL, "concurrency": CONCURRENCY})
    await asyncio.Event().wait()


if __name__ == "__main__":
    use_uvloop()
    asyncio.run(serve())
