"""taskiq with the streams broker of taskiq-redis: coroutines."""

from contextlib import asynccontextmanager

from taskiq_redis import RedisStreamBroker

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL

COLOUR = "async"
# With consumer_id 0, the group also gets tasks that were enqueued before its first server started.
broker = RedisStreamBroker(url=URL, consumer_id="0")


@broker.task
async def noop(payload: str) -> None:
    ran(payload)


@asynccontextmanager
async def connect():
    await broker.startup()
    yield broker
    await broker.shutdown()


async def enqueue(client, payload):
    task = await noop.kiq(payload)
    return task.task_id


enqueue_many = None
find = None
