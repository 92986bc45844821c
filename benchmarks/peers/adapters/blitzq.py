"""blitzq in its reliable mode: coroutines, streams."""

from blitzq import Queue

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import URL

use_uvloop()

COLOUR = "async"
queue = Queue("bench", redis_url=URL, mode="reliable", store_results=False)


@queue.task(name="noop")
async def noop(payload: str) -> None:
    ran(payload)


def connect():
    return queue


async def enqueue(client, payload):
    handle = await noop.enqueue(payload)
    return handle.id


async def enqueue_many(client, payloads):
    await noop.enqueue_many([(payload,) for payload in payloads])


async def find(client, id):
    return await client.inspect(id) is not None
