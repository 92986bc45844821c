"""streaQ: coroutines, streams, coredis."""

from streaq import TaskStatus, Worker

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import CONCURRENCY, URL

COLOUR = "async"
worker = Worker(redis_url=URL, concurrency=CONCURRENCY, anyio_kwargs={"use_uvloop": True})


@worker.task(silent=True, ttl=0)
async def noop(payload: str) -> None:
    ran(payload)


def connect():
    return worker


async def enqueue(client, payload):
    task = await noop.enqueue(payload)
    return task.id


async def enqueue_many(client, payloads):
    await client.enqueue_many([noop.enqueue(payload) for payload in payloads])


async def find(client, id):
    return await client.status_by_id(id) is not TaskStatus.NOT_FOUND
