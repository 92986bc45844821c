"""SAQ: coroutines; each slot waits in its own blocking pop."""

from contextlib import asynccontextmanager

from saq import Job, Queue

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import CONCURRENCY, URL

use_uvloop()

COLOUR = "async"
QUEUE = Queue.from_url(URL)


async def noop(context, *, payload):
    ran(payload)


settings = {"queue": QUEUE, "functions": [noop], "concurrency": CONCURRENCY}


@asynccontextmanager
async def connect():
    await QUEUE.connect()
    yield QUEUE
    await QUEUE.disconnect()


async def enqueue(queue, payload):
    # With ttl -1, results are not kept. With retries 3, the tasks of a dead server run again.
    job = await queue.enqueue(Job("noop", {"payload": payload}, ttl=-1, retries=3))
    return job.key


enqueue_many = None


async def find(queue, id):
    return await queue.job(id) is not None
