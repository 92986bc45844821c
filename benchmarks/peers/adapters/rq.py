"""RQ: one task at a time, in the process of its SimpleWorker."""

from contextlib import contextmanager

from redis import Redis
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job

from benchmarks.peers.counting import ran
from benchmarks.peers.shared import URL

COLOUR = "blocking"
# With Retry, the tasks of a dead server run again. Results are not kept.
OPTIONS = {"result_ttl": 0, "retry": Retry(max=3)}


def noop(payload):
    ran(payload)


@contextmanager
def connect():
    with Redis.from_url(URL) as connection:
        yield Queue(connection=connection)


def enqueue(queue, payload):
    return queue.enqueue(noop, payload, **OPTIONS).id


def enqueue_many(queue, payloads):
    queue.enqueue_many([Queue.prepare_data(noop, (payload,), **OPTIONS) for payload in payloads])


def find(queue, id):
    try:
        Job.fetch(id, connection=queue.connection)
    except NoSuchJobError:
        return False
    return True
