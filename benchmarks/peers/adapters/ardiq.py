"""ardiq: coroutines, streams, and a core in Rust."""

from contextlib import asynccontextmanager

from ardiq import Ardiq

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import CONCURRENCY, URL

use_uvloop()

COLOUR = "async"
app = Ardiq(redis_url=URL, concurrency=CONCURRENCY, result_ttl_ms=0)


@app.task
async def noop(payload: str) -> None:
    ran(payload)


@asynccontextmanager
async def connect():
    yield app


async def enqueue(client, payload):
    job = await noop.enqueue(payload)
    return job.id


async def enqueue_many(client, payloads):
    await client.enqueue_many([noop.prepare(payload) for payload in payloads])


async def find(client, id):
    return await client.status(id) != "not_found"
