"""Dramatiq: threads; the worker polls."""

from contextlib import contextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL

COLOUR = "blocking"
broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(payload):
    ran(payload)


@contextmanager
def connect():
    yield broker


def enqueue(client, payload):
    return noop.send(payload).message_id


enqueue_many = None
find = None
