"""Celery: threads, acknowledged late."""

from contextlib import contextmanager

from celery import Celery

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL

COLOUR = "blocking"
app = Celery("bench", broker=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_disable_rate_limits=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(payload):
    ran(payload)


@contextmanager
def connect():
    with app:
        yield app


def enqueue(client, payload):
    return noop.delay(payload).id


enqueue_many = None
find = None
