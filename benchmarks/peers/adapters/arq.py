"""arq: coroutines; the worker polls a sorted set."""

from contextlib import asynccontextmanager

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.jobs import Job, JobStatus

from benchmarks.peers.counting import ran
from benchmarks.peers.loops import use_uvloop
from benchmarks.peers.shared import CONCURRENCY, URL

use_uvloop()

COLOUR = "async"
QUIET = {"version": 1, "root": {"level": "WARNING"}}
SETTINGS = RedisSettings.from_dsn(URL)


async def noop(context, payload):
    ran(payload)


class Worker:
    functions = (func(noop, keep_result=0),)
    redis_settings = SETTINGS
    max_jobs = CONCURRENCY
    poll_delay = 0.01


@asynccontextmanager
async def connect():
    pool = await create_pool(SETTINGS)
    yield pool
    await pool.aclose()


async def enqueue(pool, payload):
    job = await pool.enqueue_job("noop", payload)
    return job.job_id


enqueue_many = None


async def find(pool, id):
    return await Job(id, pool).status() is not JobStatus.not_found
