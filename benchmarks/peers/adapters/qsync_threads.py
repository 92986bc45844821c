"""qsync with thread handlers and its blocking client."""

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL
from qsync import Mux, Qsync, Task, TaskInfo, TaskNotFound

COLOUR = "blocking"
mux = Mux()
app = Qsync(URL, mux=mux)


@mux.handle("noop")
def noop(task: TaskInfo) -> None:
    ran(task.payload)


def connect():
    return app.client()


def enqueue(client, payload):
    return client.enqueue(Task("noop", payload.encode())).id


def enqueue_many(client, payloads):
    client.enqueue_many([Task("noop", payload.encode()) for payload in payloads])


def find(client, id):
    try:
        client.handle(id).info()
    except TaskNotFound:
        return False
    return True
