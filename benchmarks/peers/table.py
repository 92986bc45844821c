"""The peers: their packages, server commands and settings, and the amounts of work.

The amounts are chosen so that each part of a round takes a few seconds for each peer; only tasks
per second are compared.
"""

from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.shared import CONCURRENCY, ROOT

HIREDIS = "hiredis==3.5.0"
UVLOOP = "uvloop==0.23.0"
REDIS = "redis==8.1.0"

PYTHON = "python"
"""Name of the interpreter in a peer's environment."""

QSYNC = "qsync"
QSYNC_THREADS = "qsync_threads"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A queue and how it is measured.

    name          name of the file in peers/adapters/
    title         usual name of the queue
    requirements  pinned packages for pip; the first is the peer itself
    handlers      kind of handlers in a server process
    server        command of one server process, as in the docs of the queue; the first word is a
                  program of the environment; {url} and {threads} are filled in
    threads       numbers of threads to drain with, of which the fastest counts; latency is
                  measured with the first
    settings      settings that differ from the defaults, in words
    delivery      fate of a task whose server dies
    docs          page of the docs about these settings
    drain         number of tasks to drain
    one           number of tasks that a single caller enqueues
    concurrent    number of tasks that concurrent callers enqueue
    environment   folder in .bench, if it shares that of another peer
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    handlers: Literal["coroutine", "thread", "in turn"]
    server: tuple[str, ...]
    threads: tuple[int, ...] = ()
    settings: str
    delivery: str
    docs: str
    drain: int
    one: int
    concurrent: int = 0
    environment: str = ""

    @property
    def folder(self) -> str:
        """Folder in .bench that holds the peer's environment."""
        return self.environment or self.name

    @property
    def baseline(self) -> str:
        """Row of qsync with which the peer is compared: coroutines if the peer uses coroutines,
        else threads."""
        return QSYNC if self.handlers == "coroutine" else QSYNC_THREADS


AT_LEAST_ONCE = "at least once"
THREADS = (8, 16, CONCURRENCY)

PEERS = (
    Peer(
        name=QSYNC,
        title="qsync",
        requirements=(f"{ROOT}[fast]", HIREDIS, REDIS, UVLOOP),
        handlers="coroutine",
        server=("qsync", "worker", "benchmarks.peers.adapters.qsync:app", "--log-level", "warning"),
        settings="defaults; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://pypi.org/project/qsync-py/",
        drain=150_000,
        one=5_000,
        concurrent=50_000,
    ),
    Peer(
        name=QSYNC_THREADS,
        title="qsync, threads",
        environment=QSYNC,
        requirements=(f"{ROOT}[fast]", HIREDIS, REDIS, UVLOOP),
        handlers="thread",
        server=(
            "qsync", "worker", "benchmarks.peers.adapters.qsync_threads:app",
            "--log-level", "warning",
        ),
        settings="defaults; uvloop; blocking client",
        delivery=AT_LEAST_ONCE,
        docs="https://pypi.org/project/qsync-py/",
        drain=40_000,
        one=5_000,
    ),
    Peer(
        name="arq",
        title="arq",
        requirements=("arq==0.28.0", "redis==5.3.1", HIREDIS, UVLOOP),
        handlers="coroutine",
        server=(
            "arq", "benchmarks.peers.adapters.arq.Worker",
            "--custom-log-dict", "benchmarks.peers.adapters.arq.QUIET",
        ),
        settings="max_jobs=100, poll_delay=0.01 (its default, 0.5, adds up to 0.5 s per task), "
        "keep_result=0; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://arq-docs.helpmanuals.io/",
        drain=4_000,
        one=1_500,
        concurrent=3_000,
    ),
    Peer(
        name="saq",
        title="SAQ",
        # The package imports typing-extensions without requiring it.
        requirements=("saq[redis]==0.26.4", "redis==7.4.1", "typing-extensions==4.16.0",
                      HIREDIS, UVLOOP),
        handlers="coroutine",
        server=("saq", "benchmarks.peers.adapters.saq.settings"),
        settings="concurrency=100, ttl=-1, retries=3; uvloop",
        delivery="at least once if `retries` exceeds 1: a sweep finds tasks that took too long",
        docs="https://saq-py.readthedocs.io/en/latest/",
        drain=4_000,
        one=1_500,
        concurrent=3_000,
    ),
    Peer(
        name="taskiq",
        title="taskiq, streams",
        requirements=("taskiq[uvloop]==0.13.0", "taskiq-redis==1.2.4", REDIS, HIREDIS, UVLOOP),
        handlers="coroutine",
        server=(
            "taskiq", "worker", "benchmarks.peers.adapters.taskiq:broker", "--workers", "1",
            "--max-async-tasks", str(CONCURRENCY), "--log-level", "WARNING",
        ),
        settings="RedisStreamBroker, max-async-tasks=100, no result backend; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://github.com/taskiq-python/taskiq-redis",
        drain=8_000,
        one=2_500,
        concurrent=4_000,
    ),
    Peer(
        name="streaq",
        title="streaQ",
        requirements=("streaq==7.2.0", "coredis==6.9.0", HIREDIS, UVLOOP),
        handlers="coroutine",
        server=("streaq", "run", "benchmarks.peers.adapters.streaq:worker"),
        settings="concurrency=100, ttl=0, silent=True; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://streaq.readthedocs.io/en/latest/worker.html",
        drain=2_500,
        one=2_000,
        concurrent=4_000,
    ),
    Peer(
        name="docket",
        title="docket",
        requirements=("pydocket==0.27.0", REDIS, HIREDIS, UVLOOP),
        handlers="coroutine",
        server=(PYTHON, "-m", "benchmarks.peers.adapters.docket"),
        settings="concurrency=100, execution_ttl=0 (fire and forget), max_connections=200; "
        "uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://github.com/chrisguidry/docket/blob/main/docs/production.md",
        drain=5_000,
        one=1_500,
        concurrent=3_000,
    ),
    Peer(
        name="ardiq",
        title="ardiq",
        requirements=("ardiq==1.2.0", HIREDIS, UVLOOP),
        handlers="coroutine",
        server=("ardiq", "run", "benchmarks.peers.adapters.ardiq:app", "--quiet"),
        settings="concurrency=100, result_ttl_ms=0; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://github.com/17tayyy/ardiq/blob/main/docs/src/content/docs/reference/"
        "configuration.md",
        drain=30_000,
        one=5_000,
        concurrent=20_000,
    ),
    Peer(
        name="blitzq",
        title="blitzq, reliable",
        requirements=("blitzq==1.1.0", REDIS, HIREDIS, UVLOOP),
        handlers="coroutine",
        server=(
            "blitzq", "worker", "benchmarks.peers.adapters.blitzq:queue",
            "--concurrency", str(CONCURRENCY), "--log-level", "WARNING",
        ),
        settings="mode=reliable, concurrency=100, store_results=False; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://github.com/ainest-labs/BlitzQ/blob/main/docs/performance_tuning.md",
        drain=50_000,
        one=3_000,
        concurrent=6_000,
    ),
    Peer(
        name="bullmq",
        title="BullMQ for Python",
        requirements=("bullmq==3.4.4", REDIS, HIREDIS, UVLOOP),
        handlers="coroutine",
        server=(PYTHON, "-m", "benchmarks.peers.adapters.bullmq"),
        settings="concurrency=100, removeOnComplete; uvloop",
        delivery=AT_LEAST_ONCE,
        docs="https://docs.bullmq.io/python/workers",
        drain=4_000,
        one=2_000,
        concurrent=4_000,
    ),
    Peer(
        name="dramatiq",
        title="Dramatiq",
        requirements=("dramatiq[redis]==2.2.1", REDIS, HIREDIS, UVLOOP),
        handlers="thread",
        server=(
            "dramatiq", "benchmarks.peers.adapters.dramatiq",
            "--processes", "1", "--threads", "{threads}",
        ),
        threads=THREADS,
        settings="the fastest of 8 (its default), 16 and 100 threads",
        delivery=AT_LEAST_ONCE,
        docs="https://dramatiq.io/reference.html",
        drain=4_000,
        one=3_000,
    ),
    Peer(
        name="huey",
        title="Huey",
        requirements=("huey[redis]==3.5.4", REDIS, HIREDIS, UVLOOP),
        handlers="thread",
        server=(
            "huey_consumer", "benchmarks.peers.adapters.huey.huey",
            "--worker-type", "thread", "--workers", "{threads}", "--quiet",
        ),
        threads=THREADS,
        settings="the fastest of 8, 16 and 100 threads; results=False",
        delivery="at most once (the only mode): tasks that ran when a server died are lost",
        docs="https://huey.readthedocs.io/en/latest/consumer.html",
        drain=4_000,
        one=5_000,
    ),
    Peer(
        name="celery",
        title="Celery, acks late",
        requirements=("celery[redis]==5.7.0", REDIS, HIREDIS, UVLOOP),
        handlers="thread",
        server=(
            "celery", "-A", "benchmarks.peers.adapters.celery", "worker", "--pool", "threads",
            "--concurrency", "{threads}", "--loglevel", "WARNING",
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ),
        threads=THREADS,
        settings="the fastest of 8, 16 and 100 threads; acks late, prefetch multiplier 64, "
        "results ignored, rate limits off, no gossip, mingle, heartbeat",
        delivery=AT_LEAST_ONCE,
        docs="https://docs.celeryq.dev/en/stable/userguide/optimizing.html",
        drain=1_500,
        one=800,
    ),
    Peer(
        name="rq",
        title="RQ",
        requirements=("rq==2.12.0", REDIS, HIREDIS, UVLOOP),
        handlers="in turn",
        server=(
            "rq", "worker", "--url", "{url}", "--quiet",
            "--worker-class", "rq.worker.SimpleWorker",
        ),
        settings="SimpleWorker (no fork for each task), result_ttl=0, Retry(3)",
        delivery="at least once, with Retry",
        docs="https://github.com/rq/rq/blob/master/docs/benchmark.md",
        drain=1_200,
        one=1_000,
    ),
)  # fmt: skip

BY_NAME = {peer.name: peer for peer in PEERS}
