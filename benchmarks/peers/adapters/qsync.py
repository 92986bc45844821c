"""qsync with coroutine handlers and its async client."""

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL
from qsync import Mux, Qsync, Task, TaskInfo, TaskNotFound

COLOUR = "async"
mux = Mux()
app = Qsync(URL, mux=mux)


@mux.handle("noop")
async def noop(task: TaskInfo) -> None:
    ran(task.payload)


def connect():
    return app.async_client()


async def enqueue(client, payload):
    handle = await client.enqueue(Task("noop", payload.encode()))
    return handle.id


async def enqueue_many(client, payloads):
    await client.enqueue_many([Task("noop", payload.encode()) for payload in payloads])


async def find(client, id):
    try:
        await client.handle(id).info()
    except TaskNotFound:
        return False
    return True
