"""Huey: threads; a task is popped before it is run."""

from contextlib import contextmanager

from huey import RedisHuey

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL

COLOUR = "blocking"
huey = RedisHuey("bench", url=URL, results=False)


@huey.task()
def noop(payload):
    ran(payload)


@contextmanager
def connect():
    yield huey


def enqueue(client, payload):
    noop(payload)


enqueue_many = None
find = None
