"""Prometheus metrics of servers and of the queues in the store. Needs `prometheus-client`.

    from qsync.contrib import prometheus
    prometheus.instrument(app)                    the servers of this process
    REGISTRY.register(StoreCollector(app))        all queues, from the store; in one process only

`qsync worker --health-port` serves the metrics of servers at /metrics without any code. Labels are
queues, types that have a handler, states and outcomes, never ids or payloads.
"""

from __future__ import annotations

import asyncio
import platform
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Final

from qsync.app import Qsync
from qsync.errors import QsyncError
from qsync.inspector import Inspector, LimitInfo, Overview, QueueInfo, QueueSample
from qsync.instrumentation import Extension, missing
from qsync.keys import COUNTERS
from qsync.limit import limit_name
from qsync.server.health import ServerHealth
from qsync.server.metrics import BOUNDS, OTHER, OUTCOMES, MetricRow, closed, merged
from qsync.server.run_metrics import RunMetrics
from qsync.server.server import Server
from qsync.state import TaskState
from qsync.version import __version__

try:
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _error:
    raise missing(_error, "prometheus") from None

__all__ = [
    "CONTENT_TYPE", "StoreCollector", "StoreMetrics", "instrument", "render", "server_metrics",
    "worker_metrics",
]  # fmt: skip

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

LABELLED_QUEUES: Final = 500
"""Maximum number of queues that have their own label; further queues share one label."""

LABELLED_LIMITS: Final = 500
"""Maximum number of (queue, limit name) pairs that have their own label."""

LIMITS_READ: Final = 1000
"""Approximate maximum number of limits in use to read per queue. Each value of a limit counts
separately."""

LABELLED_TYPES: Final = 1000
"""Maximum number of (queue, type) pairs that have their own label."""

LABELLED_SCHEDULES: Final = 500
"""Maximum number of schedules whose last runs are shown."""

CACHE_S: Final = 5.0
"""How long a reading of the store is reused, in seconds."""

STORE_TIMEOUT_S: Final = 5.0

COUNTER_HELP: Final[Mapping[str, str]] = {
    "enqueued": "Tasks enqueued.",
    "completed": "Tasks completed.",
    "failed": "Attempts that failed.",
    "retried": "Failed attempts that are retried.",
    "crashed": "Times that a server died while running a task.",
    "dead": "Tasks that died.",
    "cancelled": "Tasks cancelled.",
    "trimmed": "Dead tasks deleted because of their number or age.",
    "lost": "Tasks whose message the store lost.",
    "dropped": "Tasks dropped from a full queue because of its bounds.",
    "bytes": "Bytes of the enqueued messages.",
}


# Servers.


def instrument(app: Qsync, *, registry: CollectorRegistry = REGISTRY) -> None:
    """Count the runs of all servers that the app creates in this process from now on."""
    collector = _Servers()
    registry.register(collector)
    app.extend(Extension(server=collector.add))


class _Servers(Collector):
    """Metrics of the servers in this process; the counts of stopped servers are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: list[tuple[weakref.ref[Server], RunMetrics]] = []
        self._past: list[MetricRow] = []

    def add(self, server: Server) -> None:
        server.run_metrics = server.run_metrics or RunMetrics(server.mux.types)
        with self._lock:
            self._servers.append((weakref.ref(server), server.run_metrics))

    def describe(self) -> Iterable[Metric]:
        return server_metrics([], [])

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            rows, conditions, alive = [], [], []
            for reference, run_metrics in self._servers:
                server = reference()
                if server is None:
                    self._past = merged([*self._past, *closed(run_metrics.rows())])
                    continue
                alive.append((reference, run_metrics))
                rows += run_metrics.rows()
                conditions.append(server.condition())
            self._servers = alive
            return server_metrics([*self._past, *rows], conditions)


def server_metrics(rows: Iterable[MetricRow], conditions: Sequence[ServerHealth]) -> list[Metric]:
    """Return the metrics of servers, from their counts and their health."""
    rows = merged(rows)
    by_type = ["queue", "type"]
    wait = HistogramMetricFamily(
        "qsync_task_wait_seconds",
        "Time that a task waited to start; retries and recovered tasks are not counted.",
        labels=by_type,
    )
    run = HistogramMetricFamily("qsync_task_run_seconds", "Duration of a run.", labels=by_type)
    runs = CounterMetricFamily(
        "qsync_task_runs", "Finished runs, by outcome.", labels=[*by_type, "outcome"]
    )
    running = GaugeMetricFamily("qsync_tasks_running", "Running tasks.", labels=by_type)
    oldest = GaugeMetricFamily(
        "qsync_oldest_running_seconds",
        "Seconds since the start of the longest current run; 0 if nothing runs.",
        labels=by_type,
    )
    now = time.monotonic()
    for row in rows:
        labels = [row.queue, row.type]
        wait.add_metric(labels, _cumulated(row.waits), row.wait_s)
        run.add_metric(labels, _cumulated(row.runs), row.run_s)
        running.add_metric(labels, row.running)
        oldest.add_metric(labels, max(0.0, now - row.oldest_began) if row.oldest_began else 0.0)
        for outcome, count in zip(OUTCOMES, row.outcomes, strict=True):
            runs.add_metric([*labels, outcome], count)
    started = [server for server in conditions if server.started]
    slots = sum(server.concurrency for server in started)
    blocked_s = max((server.blocked_s for server in started), default=0.0)
    blocked_help = "Seconds the event loop has currently been blocked."
    return [
        wait, run, runs, running, oldest, *_by_queue(rows),
        _gauge("qsync_servers_running", "Worker processes started (per worker).", len(started)),
        _gauge("qsync_slots", "Tasks that can run concurrently.", slots),
        _gauge("qsync_event_loop_blocked_seconds", blocked_help, blocked_s),
        _build({server.app_version for server in started} or {""}),
    ]  # fmt: skip


def _by_queue(rows: Sequence[MetricRow]) -> list[Metric]:
    unknown = CounterMetricFamily(
        "qsync_tasks_without_handler",
        "Tasks returned to the queue because the server has no handler for the type.",
        labels=["queue"],
    )
    dropped = CounterMetricFamily(
        "qsync_type_statistics_dropped",
        "Runs missing from the statistics by type because the store refused them.",
        labels=["queue"],
    )
    for queue in {row.queue: None for row in rows}:
        of_queue = [row for row in rows if row.queue == queue]
        unknown.add_metric([queue], sum(row.unknown for row in of_queue))
        dropped.add_metric([queue], sum(row.dropped for row in of_queue))
    return [unknown, dropped]


def worker_metrics(restarts: int) -> list[Metric]:
    """Return the metrics of a `qsync worker` itself, not those of its servers."""
    return [
        CounterMetricFamily(
            "qsync_worker_restarts",
            "Processes that ended unexpectedly and were replaced.",
            value=restarts,
        )
    ]


def _cumulated(buckets: Sequence[int]) -> list[tuple[str, int]]:
    bounds = [*(f"{bound:g}" if bound < 1 else str(bound) for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(buckets), strict=True))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _optional_gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """Return a gauge; it has no sample if the value is None."""
    return GaugeMetricFamily(name, text) if value is None else _gauge(name, text, value)


def _build(app_versions: Iterable[str]) -> GaugeMetricFamily:
    build = GaugeMetricFamily(
        "qsync_build_info",
        "Always 1; the labels are the versions of qsync, of Python and of the program.",
        labels=["version", "python", "app_version"],
    )
    for app_version in sorted(app_versions):
        build.add_metric([__version__, platform.python_version(), app_version], 1)
    return build


# The store.


class StoreMetrics:
    """The metrics of all queues; requests within CACHE_S seconds share a reading."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._read_at = -CACHE_S
        self._last: list[Metric] = []
        self._lock = asyncio.Lock()

    async def render(self) -> bytes:
        """Return the metrics in Prometheus text format, of type CONTENT_TYPE."""
        return render(await self.metrics())

    async def metrics(self) -> list[Metric]:
        """Return the metrics; if the store does not answer, `qsync_store_up` is 0."""
        async with self._lock:
            if time.monotonic() - self._read_at >= CACHE_S:
                self._last = await _read(self._inspector)
                self._read_at = time.monotonic()
            return self._last


class StoreCollector(Collector):
    """Collects the metrics of all the app's queues for a registry.

    Every process would report the same values, so register the collector in only one process, e.g.
    beside the dashboard. The collector reads the store in a separate thread, and closes its
    connection afterwards; scrapes within CACHE_S seconds share a reading.
    """

    def __init__(self, app: Qsync) -> None:
        self._app = app
        self._read_at = -CACHE_S
        self._last: list[Metric] = []
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, so that registering reads nothing."""
        return store_metrics(None)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; if the store does not answer, `qsync_store_up` is 0."""
        with self._lock:
            if time.monotonic() - self._read_at >= CACHE_S:
                # Use another thread, because this one may have a running event loop.
                with ThreadPoolExecutor(1, "qsync-metrics") as thread:
                    self._last = thread.submit(asyncio.run, self._read()).result()
                self._read_at = time.monotonic()
            return self._last

    async def _read(self) -> list[Metric]:
        async with self._app.inspector() as inspector:
            return await _read(inspector)


async def _read(inspector: Inspector) -> list[Metric]:
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            latency = await inspector.ping()
            overview = await inspector.overview()
            names = [info.name for info in overview.queues[:LABELLED_QUEUES]]
            pages = await inspector.limits_of(names, count=LIMITS_READ)
            limits = [info for page in pages for info in page.limits]
            return store_metrics(overview, limits, latency, await inspector.samples(names))
    except (QsyncError, TimeoutError):
        return store_metrics(None)


def store_metrics(
    overview: Overview | None,
    limits: Sequence[LimitInfo] = (),
    latency: float | None = None,
    samples: Sequence[QueueSample] = (),
) -> list[Metric]:
    """Return the metrics of all queues; an `overview` of None means that the store is down."""
    tasks = GaugeMetricFamily(
        "qsync_queue_tasks", "Tasks in the queue, by state.", labels=["queue", "state"]
    )
    oldest = _queue_gauge(
        "oldest_pending_seconds", "Age of the oldest runnable task since it last became runnable."
    )
    paused = _queue_gauge("paused", "1 while the queue is paused.")
    memory = _queue_gauge(
        "memory_bytes", "Approximate memory of the queue in the store, if the store reports it."
    )
    counters = {
        name: CounterMetricFamily(f"qsync_queue_{name}", COUNTER_HELP[name], labels=["queue"])
        for name in COUNTERS
    }
    for name, infos in _by_label(overview.queues if overview else ()):
        for state in TaskState:
            tasks.add_metric([name, state], sum(info.states.get(state, 0) for info in infos))
        oldest.add_metric([name], max(info.latency for info in infos))
        paused.add_metric([name], int(any(info.paused for info in infos)))
        sizes = [info.bytes for info in infos if info.bytes is not None]
        if sizes:
            memory.add_metric([name], sum(sizes))
        for counter, family in counters.items():
            family.add_metric([name], sum(info.counters.get(counter, 0) for info in infos))
    return [
        _gauge("qsync_store_up", "1 while the store answers.", int(overview is not None)),
        _optional_gauge(
            "qsync_servers", "Live worker processes (per store).",
            len(overview.servers) if overview else None,
        ),
        _optional_gauge(
            "qsync_store_latency_seconds", "Duration of a round trip to the store.", latency
        ),
        tasks, oldest, paused, memory, *_type_metrics(samples), *_schedule_metrics(samples),
        *_limit_metrics(limits), *counters.values(),
    ]  # fmt: skip


def _queue_gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"qsync_queue_{name}", text, labels=["queue"])


def _type_metrics(samples: Sequence[QueueSample]) -> list[Metric]:
    """Return the tasks by type; the most frequent types have their own labels."""
    tasks = GaugeMetricFamily(
        "qsync_type_tasks",
        "Pending and dead tasks by type; an estimate if a state has more than 200 tasks.",
        labels=["queue", "type", "state"],
    )
    paused = GaugeMetricFamily(
        "qsync_type_paused", "1 while the type is paused.", labels=["queue", "type"]
    )
    counts = sorted(
        ((count, sample.queue, type, state)
         for sample in samples
         for state, shares in ((TaskState.PENDING, sample.pending), (TaskState.DEAD, sample.dead))
         for type, count in shares.types.items()),
        reverse=True,
    )  # fmt: skip
    labelled: set[tuple[str, str]] = set()
    sums: dict[tuple[str, str, str], int] = {}
    for count, queue, type, state in counts:
        if (queue, type) not in labelled and len(labelled) >= LABELLED_TYPES:
            queue = type = OTHER
        else:
            labelled.add((queue, type))
        sums[queue, type, state] = sums.get((queue, type, state), 0) + count
    for labels, number in sums.items():
        tasks.add_metric(labels, number)
    pauses = [(sample.queue, type) for sample in samples for type in sample.paused_types]
    for pause in pauses[:LABELLED_TYPES]:
        paused.add_metric(pause, 1)
    return [tasks, paused]


def _schedule_metrics(samples: Sequence[QueueSample]) -> list[Metric]:
    """Return when each schedule last succeeded and failed; the number of schedules is bounded."""
    labels = ["queue", "schedule"]
    success = GaugeMetricFamily(
        "qsync_schedule_last_success_timestamp_seconds",
        "End of the last completed run among the schedule's last 20 runs.", labels=labels,
    )  # fmt: skip
    failure = GaugeMetricFamily(
        "qsync_schedule_last_failure_timestamp_seconds",
        "End of the last failed run or missed tick among the schedule's last 20 runs.",
        labels=labels,
    )
    runs = [(sample.queue, run) for sample in samples for run in sample.schedules]
    for queue, run in runs[:LABELLED_SCHEDULES]:
        for family, at in ((success, run.succeeded_at), (failure, run.failed_at)):
            if at is not None:
                family.add_metric([queue, run.schedule], at.timestamp())
    return [success, failure]


def _limit_metrics(limits: Sequence[LimitInfo]) -> list[Metric]:
    """Return how many tasks hold each limit or wait for it.

    All values of a limit share the label with the limit's name; the number of labels is bounded.
    """
    labels = ["queue", "limit"]
    in_use = GaugeMetricFamily(
        "qsync_limit_in_use", "Active tasks that hold the limit, over all its values.",
        labels=labels,
    )  # fmt: skip
    waiting = GaugeMetricFamily(
        "qsync_limit_waiting", "Tasks that wait for the limit, over all its values.",
        labels=labels,
    )  # fmt: skip
    sums: dict[tuple[str, str], list[int]] = {}
    for info in limits:
        label = (info.queue, limit_name(info.limit))
        if label not in sums and len(sums) >= LABELLED_LIMITS:
            label = (OTHER, OTHER)
        counts = sums.setdefault(label, [0, 0])
        counts[0] += info.in_use
        counts[1] += info.waiting
    for label, (used, waits) in sums.items():
        in_use.add_metric(label, used)
        waiting.add_metric(label, waits)
    return [in_use, waiting]


def _by_label(queues: Sequence[QueueInfo]) -> list[tuple[str, list[QueueInfo]]]:
    """Group the queues by label; the number of labels is bounded."""
    groups: dict[str, list[QueueInfo]] = {}
    for index, info in enumerate(queues):
        groups.setdefault(info.name if index < LABELLED_QUEUES else OTHER, []).append(info)
    return list(groups.items())


def render(metrics: Iterable[Metric]) -> bytes:
    """Return the metrics in Prometheus text format, of type CONTENT_TYPE."""
    registry: Any = _FixedMetrics(metrics)
    return generate_latest(registry)


class _FixedMetrics(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
