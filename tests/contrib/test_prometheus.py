"""Metrics count correctly, and the number of series is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import platform
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

import qsync
from qsync import Mux, Qsync, Retry, SkipRetry, Task, TaskInfo
from qsync.broker import limit_ops, ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.op_values import Completion, FetchPolicy
from qsync.contrib import prometheus
from qsync.contrib.prometheus import StoreCollector, StoreMetrics
from qsync.inspector import LimitInfo, Overview, QueueInfo
from qsync.keys import COUNTERS, QueueKeys
from qsync.limit import LimitRule
from qsync.message import NO_FAILURE, Message
from qsync.server.health import ServerHealth
from qsync.server.metrics import OUTCOMES, MetricRow, closed, merged
from qsync.server.queue_state import LeasedTask, QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.state import TaskState
from tests.support.server import until
from tests.support.stores import Store, wait_until_async

SERVER = {"lease": 2.0, "sweep": 0.2, "shutdown_timeout": 2.0}


def series(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """Return the values by name and labels, parsed from the text that the exporter writes."""
    text = prometheus.render(metrics).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def handlers() -> Mux:
    mux = Mux()

    @mux.handle("good")
    async def good(task: TaskInfo) -> None:
        pass

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise Retry(delay=0)

    @mux.handle("hopeless")
    def hopeless(task: TaskInfo) -> None:
        raise SkipRetry

    return mux


def test_runs_are_counted_by_queue_type_and_outcome(valkey: Store, prefix: str) -> None:
    app, registry = Qsync(valkey.url, prefix=prefix, mux=handlers()), CollectorRegistry()
    prometheus.instrument(app, registry=registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    async def work() -> None:
        server = app.server(queues=["default", "other-queue"], **SERVER)
        async with app, app.async_client() as client, server:
            await client.enqueue_many([Task("good", b"") for _ in range(5)])
            await client.enqueue(Task("good", b"", queue="other-queue"))
            await client.enqueue(Task("bad", b"", retry=2))
            await client.enqueue(Task("hopeless", b""))
            dead = {"queue": "default", "type": "bad", "outcome": "dead"}
            await until(lambda: value("qsync_task_runs_total", **dead) == 1)
            hopeless = {**dead, "type": "hopeless"}
            await until(lambda: value("qsync_task_runs_total", **hopeless) == 1)
            good = {"queue": "default", "type": "good", "outcome": "completed"}
            await until(lambda: value("qsync_task_runs_total", **good) == 5)
            assert value("qsync_servers_running") == 1
            assert value("qsync_slots") == 100

    asyncio.run(work())
    runs = {
        (queue, type, outcome): value(
            "qsync_task_runs_total", queue=queue, type=type, outcome=outcome
        )
        for queue, type in [("default", "good"), ("default", "bad"), ("other-queue", "good")]
        for outcome in OUTCOMES
    }
    assert {key: count for key, count in runs.items() if count} == {
        ("default", "good", "completed"): 5,
        ("other-queue", "good", "completed"): 1,
        ("default", "bad", "retried"): 2,
        ("default", "bad", "dead"): 1,
    }
    bad = {"queue": "default", "type": "bad"}
    assert value("qsync_task_run_seconds_count", **bad) == 3
    assert value("qsync_task_wait_seconds_count", **bad) == 1  # without the retries
    assert value("qsync_tasks_running", **bad) == 0


def test_tasks_in_progress_counts_running_tasks(valkey: Store, prefix: str) -> None:
    mux, go = Mux(), asyncio.Event()

    @mux.handle("wait")
    async def wait(task: TaskInfo) -> None:
        await go.wait()

    async def work() -> None:
        app = Qsync(valkey.url, prefix=prefix, mux=mux)
        async with app, app.async_client() as client:
            server = app.server(concurrency=3, **SERVER)
            server.run_metrics = run_metrics = RunMetrics(server.mux.types)
            async with server:
                await client.enqueue_many([Task("wait", b"") for _ in range(5)])
                await until(lambda: [row.running for row in run_metrics.rows()] == [3])
                [row] = run_metrics.rows()
                oldest = min(leased.began for leased in held(run_metrics))
                assert row.oldest_began == oldest > 0
                younger = MetricRow("default", "wait", running=1, oldest_began=oldest + 5)
                found = series(prometheus.server_metrics([younger, row, younger], []))
                age = found["qsync_oldest_running_seconds", "default", "wait"]
                assert 0 <= age <= monotonic() - oldest
                go.set()
                await until(lambda: sum(row.outcomes[0] for row in run_metrics.rows()) == 5)
                assert [(row.running, row.oldest_began) for row in run_metrics.rows()] == [(0, 0.0)]
                assert closed([row])[0].oldest_began == 0.0

    asyncio.run(work())


def held(run_metrics: RunMetrics) -> list[LeasedTask]:
    return [
        one
        for metrics in run_metrics._by_queue.values()
        for one in metrics.queue.held.values()
        if one.row
    ]


def test_wait_counts_from_the_due_time_of_a_delayed_task(valkey: Store, prefix: str) -> None:
    """The waiting time of a delayed task begins when the task is due."""

    async def work() -> list[MetricRow]:
        app = Qsync(valkey.url, prefix=prefix, mux=handlers())
        async with app, app.async_client() as client:
            soon = datetime.now(UTC) + timedelta(seconds=3)
            await client.enqueue(Task("good", b"", delay=3))
            await client.enqueue(Task("good", b"", process_at=soon))
            server = app.server(**SERVER)
            server.run_metrics = run_metrics = RunMetrics(server.mux.types)
            async with server:
                await until(lambda: sum(row.outcomes[0] for row in run_metrics.rows()) == 2)
            return run_metrics.rows()

    [row] = asyncio.run(work())
    assert sum(row.waits) == 2
    assert row.wait_s < 3.0  # counted from the enqueue, each of the two waits would be 3 s


def test_a_wait_counts_from_the_enqueue_of_a_task_without_delay(valkey: Store, prefix: str) -> None:
    async def work() -> list[MetricRow]:
        app = Qsync(valkey.url, prefix=prefix, mux=handlers())
        async with app, app.async_client() as client:
            await client.enqueue(Task("good", b""))
            enqueued = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > enqueued + 0.6)
            server = app.server(**SERVER)
            server.run_metrics = run_metrics = RunMetrics(server.mux.types)
            async with server:
                await until(lambda: sum(row.outcomes[0] for row in run_metrics.rows()) == 1)
            return run_metrics.rows()

    [row] = asyncio.run(work())
    assert 0.3 <= row.wait_s < 30
    assert sum(row.waits[:7]) == 0  # no task waited for 0.25 s or less


def test_a_hundred_thousand_ids_and_types_create_no_series(valkey: Store, prefix: str) -> None:
    app, registry = Qsync(valkey.url, prefix=prefix, mux=handlers()), CollectorRegistry()
    prometheus.instrument(app, registry=registry)

    def lines() -> int:
        return len(prometheus.render(registry.collect()).splitlines())

    async def work() -> tuple[int, int]:
        async with app, app.async_client() as client, app.server(**SERVER):

            def done() -> float:
                labels = {"queue": "default", "type": "good", "outcome": "completed"}
                return registry.get_sample_value("qsync_task_runs_total", labels) or 0

            await client.enqueue(Task("good", b""))
            await until(lambda: done() == 1)
            before = lines()
            for part in range(20):
                await client.enqueue_many(
                    Task("good", b"%d" % at, id=f"user-{part}-{at}") for at in range(5000)
                )
            await client.enqueue_many(Task(f"nobody-knows-{at}", b"") for at in range(1000))
            await until(lambda: done() == 100_001, timeout=60)
            return before, lines()

    before, after = asyncio.run(work())
    assert before == after


def test_types_and_queues_beyond_the_limit_share_one_label() -> None:
    types = [f"type-{at}" for at in range(1000)]
    run_metrics, queue = RunMetrics(types, limit=2), QueueState(QueueKeys("p", "default"))
    for type in types:
        message = Message(1, 0, b"", type, b"", False, 3)
        leased = LeasedTask(queue, "id", "token", message, NO_FAILURE, 0, 0.0, 0.0)
        run_metrics.started(leased)
        run_metrics.finished(leased)
        run_metrics.settled(leased, Completion("id", "token"))
    counted = {row.type: row.outcomes[0] for row in run_metrics.rows()}
    assert counted == {"type-0": 1, "type-1": 1, "other": 998}

    overview = Overview(
        at=datetime.now(UTC), servers=[], queues=[_info(f"q{at}") for at in range(1000)]
    )
    found = series(prometheus.store_metrics(overview))
    names = {key[1] for key in found if key[0] == "qsync_queue_paused"}
    assert len(names) == prometheus.LABELLED_QUEUES + 1
    assert found["qsync_queue_tasks", "other", "pending"] == 1000 - prometheus.LABELLED_QUEUES


def _info(name: str) -> Any:
    return QueueInfo(
        name=name, states={TaskState.PENDING: 1}, latency=0.0, bytes=None, paused=None,
        counters={}, today={}, days=[], rate=None,
    )  # fmt: skip


def test_counts_of_a_server_remain_after_its_end(valkey: Store, prefix: str) -> None:
    """Counters never decrease, since a decrease would look like a restart."""
    app, registry = Qsync(valkey.url, prefix=prefix, mux=handlers()), CollectorRegistry()
    prometheus.instrument(app, registry=registry)
    labels = {"queue": "default", "type": "good", "outcome": "completed"}

    def done() -> float:
        return registry.get_sample_value("qsync_task_runs_total", labels) or 0

    async def work(total: int) -> None:
        async with app, app.async_client() as client, app.server(**SERVER):
            await client.enqueue(Task("good", b""))
            await until(lambda: done() == total)

    for number in (1, 2, 3):
        asyncio.run(work(number))
        gc.collect()
        assert done() == number
    assert registry.get_sample_value("qsync_servers_running") == 0


def test_store_metrics_report_the_queues(valkey: Store, prefix: str) -> None:
    async def work() -> tuple[dict[tuple[str, ...], float], ...]:
        app = Qsync(valkey.url, prefix=prefix, mux=handlers())
        async with app, app.async_client() as client, app.inspector() as inspector:
            await client.enqueue_many([Task("good", b"12") for _ in range(3)])
            keys, policy = QueueKeys(prefix, "limited"), FetchPolicy(60 * 10**6, 3, 10, 10**12)
            async with contextlib.aclosing(AsyncBroker(redis_clients.parse(valkey.url))) as broker:
                rules = {"customer": LimitRule(concurrency=1), "quiet": LimitRule(concurrency=1)}
                await broker.run(limit_ops.put_limit_rules(keys, rules))
                for limit in ("customer:1", "customer:1", "customer:2"):
                    await client.enqueue(Task("good", queue="limited", limits=[limit]))
                await broker.run(ops.fetch(keys, server="s", number=1, wanted=9, policy=policy))
            await client.enqueue(Task("good", b"", delay=3600))
            await client.enqueue(Task("hopeless", b"", queue="sad"))
            async with app.server(queues=["sad"], **SERVER):

                async def died() -> bool:
                    info = await inspector.queue("sad")
                    return info is not None and info.counters.get("dead") == 1

                await wait_until_async(died, message="nothing died")
                await inspector.pause("sad", by="test")
                metrics = StoreMetrics(inspector)
                first = series(await metrics.metrics())
            await client.enqueue(Task("good", b""))
            again = series(await metrics.metrics())
            fresh = series(await StoreMetrics(inspector).metrics())
            return first, again, fresh

    first, again, fresh = asyncio.run(work())
    assert first["qsync_store_up",] == 1
    assert first["qsync_servers",] == 1
    assert first["qsync_queue_tasks", "default", "pending"] == 3
    assert first["qsync_queue_tasks", "default", "scheduled"] == 1
    assert first["qsync_queue_enqueued_total", "default"] == 4
    assert first["qsync_queue_bytes_total", "default"] > 0
    assert first["qsync_queue_tasks", "sad", "dead"] == 1
    assert first["qsync_queue_dead_total", "sad"] == 1
    assert first["qsync_queue_paused", "sad"] == 1
    assert first["qsync_queue_paused", "default"] == 0
    assert first["qsync_queue_oldest_pending_seconds", "default"] > 0
    assert first["qsync_queue_memory_bytes", "default"] > 0
    assert 0 < first["qsync_store_latency_seconds",] < 5
    used = {key[1:]: value for key, value in first.items() if key[0] == "qsync_limit_in_use"}
    assert used == {("customer", "limited"): 2, ("quiet", "limited"): 0}
    assert first["qsync_limit_waiting", "customer", "limited"] == 1
    assert again == first, "recent values are reported again"
    assert fresh["qsync_queue_enqueued_total", "default"] == 5
    assert fresh["qsync_servers",] == 0


def test_registry_reads_the_store_when_scraped_even_on_a_loop(valkey: Store, prefix: str) -> None:
    app, registry = Qsync(valkey.url, prefix=prefix), CollectorRegistry()
    registry.register(StoreCollector(app))
    with app.client() as client:
        client.enqueue(Task("good", b""))

    async def scrape() -> float | None:
        labels = {"queue": "default"}
        return registry.get_sample_value("qsync_queue_enqueued_total", labels)

    assert asyncio.run(scrape()) == 1
    app.close()


def test_unreachable_store_is_reported_as_a_metric(prefix: str) -> None:
    app, registry = Qsync("redis://127.0.0.1:1", prefix=prefix, patience=0.1), CollectorRegistry()
    registry.register(StoreCollector(app))
    assert registry.get_sample_value("qsync_store_up") == 0
    assert registry.get_sample_value("qsync_servers") is None, "the number is not known"
    app.close()


def test_every_counter_of_the_store_has_a_metric_that_is_explained() -> None:
    assert set(prometheus.COUNTER_HELP) == set(COUNTERS)


def test_metric_names_follow_the_prometheus_conventions() -> None:
    """Names have units, counters end in _total, and each name is unique."""
    metrics = [
        *prometheus.server_metrics([MetricRow("q", "t")], [ServerHealth(started=True)]),
        *prometheus.worker_metrics(0),
        *prometheus.store_metrics(None),
    ]
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names)
    assert all(name.startswith("qsync_") for name in names)
    assert all(metric.documentation.endswith(".") for metric in metrics)
    text = prometheus.render(metrics).decode()
    assert all(f"{m.name}_total" in text for m in metrics if m.type == "counter" and m.samples)


def test_limits_beyond_the_bound_share_a_label_and_build_info_is_exported() -> None:
    many = prometheus.LABELLED_LIMITS + 50
    infos = [
        LimitInfo(
            queue="q",
            limit=f"name{at}:{value}",
            rule=None,
            source=None,
            program=None,
            operator=None,
            in_use=1,
            waiting=2,
        )
        for at in range(many)
        for value in range(2)
    ]
    found = series(prometheus.store_metrics(None, infos))
    of_limits = [key for key in found if key[0] == "qsync_limit_in_use"]
    assert len(of_limits) == prometheus.LABELLED_LIMITS + 1
    assert found["qsync_limit_in_use", "name7", "q"] == 2
    assert found["qsync_limit_waiting", "other", "other"] == 50 * 2 * 2
    versions = (platform.python_version(), qsync.__version__)
    assert series(prometheus.server_metrics([], []))["qsync_build_info", "", *versions] == 1
    of_program = [ServerHealth(started=True, app_version=text) for text in ("1.4", "1.5", "1.5")]
    build = series(prometheus.server_metrics([], [*of_program, ServerHealth()]))
    assert {key[1] for key in build if key[0] == "qsync_build_info"} == {"1.4", "1.5"}


def test_histograms_are_cumulative_and_add_up() -> None:
    row = MetricRow("q", "t")
    row.runs[0], row.runs[3], row.runs[-1], row.run_s = 2, 3, 1, 4.5
    found = series(prometheus.server_metrics([row, row], []))
    name = "qsync_task_run_seconds_bucket"
    assert found[name, "0.001", "q", "t"] == 4
    assert found[name, "0.01", "q", "t"] == 10
    assert found[name, "1800.0", "q", "t"] == 10
    assert found[name, "+Inf", "q", "t"] == 12
    assert found["qsync_task_run_seconds_count", "q", "t"] == 12
    assert found["qsync_task_run_seconds_sum", "q", "t"] == 9.0
    assert merged([row])[0] is not row


def test_docs_list_every_metric() -> None:
    metrics: list[Any] = [
        *prometheus.server_metrics([], []),
        *prometheus.worker_metrics(0),
        *prometheus.store_metrics(None),
    ]
    expected = [
        f"| `{metric.name}{'_total' if metric.type == 'counter' else ''}` | {metric.type} | "
        f"{', '.join(metric._labelnames)} | {metric.documentation} |"
        for metric in metrics
    ]
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `qsync_")] == expected
