"""Tasks for RQ's worker with RateLimit, which counts queued and running tasks."""

import sys
import time

from redis import Redis
from rq import Queue
from rq.rate_limit import RateLimit

from benchmarks.peers.limited.work import HOLD, RUN_S, SLOTS, URL, note


def hold(number):
    note("start", number)
    while HOLD.exists():
        time.sleep(0.02)
    time.sleep(RUN_S)
    note("end", number)


if __name__ == "__main__":
    with Redis.from_url(URL) as connection:
        queue = Queue(connection=connection)
        for number in range(int(sys.argv[2]), int(sys.argv[3])):
            queue.enqueue(
                "benchmarks.peers.limited.rq_tasks.hold", number,
                rate_limit=RateLimit("slots", concurrency=SLOTS),
            )  # fmt: skip
