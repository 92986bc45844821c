"""The health port of `qsync worker`: /live, /ready, /startup, /metrics and /scale.

The parent serves the port from a separate thread and asks all its processes for their health.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from qsync.app import Qsync
from qsync.errors import InvalidTask, QsyncError
from qsync.formatting import install_command
from qsync.keys import check_name
from qsync.server import health
from qsync.server.health import HealthVerdict, ProcessHealth
from qsync.server.outbox_backlog import largest
from qsync.state import TaskState
from qsync.worker import autoscale
from qsync.worker.http_server import HealthServer, Query, Response, bad_request
from qsync.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from qsync.inspector import Inspector, Overview  # at run time, imported for /scale

T = TypeVar("T", int, float)

PROCESSES_TIMEOUT_S: Final = 1.0
"""How long the processes may take to answer, in seconds."""

SCALE_FRESH_S: Final = 1.0
"""How long /scale reuses what it has read from the store, in seconds."""

LISTS: Final = 8
"""Maximum number of queue lists, besides the worker's own, whose samples are kept."""

log: Final = logging.getLogger("qsync.worker")

STORE_TIMEOUT_S: Final = 5.0
"""How long the store may take to reply, in seconds."""


def counts_tasks() -> bool:
    """Return whether prometheus-client is installed, so that metrics can be served."""
    return importlib.util.find_spec("prometheus_client") is not None


class HealthPort:
    """Answers probes, scrapes and autoscalers until it is closed."""

    def __init__(
        self,
        host: str,
        port: int,
        app: Qsync,
        *,
        queues: Sequence[str],
        processes: int,
        live_limit: float = health.LIVE_LIMIT_S,
        names: Sequence[str] = (),
    ) -> None:
        """Bind the port; raise ConfigError if that fails."""
        self.host = host
        self._live_limit = live_limit
        self._supervisor: Supervisor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: asyncio.Task[list[ProcessHealth]] | None = None
        self._heard_at = time.monotonic()
        self._backlog = _Backlog(app, queues, processes)
        self._http = HealthServer(
            host,
            port,
            {
                "/live": self._live,
                "/ready": self._ready,
                "/startup": self._startup,
                "/metrics": self._metrics,
                "/scale": self._backlog.answer,
            },
            names,
        )

    @property
    def port(self) -> int:
        """The bound port, even if port 0 was requested."""
        return self._http.port

    def start(self, supervisor: Supervisor) -> None:
        """Start answering for this supervisor's processes; call it on the supervisor's event
        loop."""
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._http.start()
        if not counts_tasks():
            log.info(
                "the health port serves no /metrics; for that, %s", install_command("prometheus")
            )

    def close(self) -> None:
        """Stop answering."""
        self._http.close()

    async def _live(self, query: Query) -> Response:
        return _verdict(health.live(await self._reports(), limit_s=self._live_limit))

    async def _ready(self, query: Query) -> Response:
        return _verdict(health.ready(await self._reports()))

    async def _startup(self, query: Query) -> Response:
        return _verdict(health.started(await self._reports()))

    async def _metrics(self, query: Query) -> Response:
        if not counts_tasks():
            how = install_command("prometheus")
            return bad_request(f"metrics need prometheus-client: {how}", 404)
        from qsync.contrib import prometheus

        conditions = [
            report.condition for report in await self._reports() if report.condition is not None
        ]
        if self._supervisor is None:
            return bad_request("not started yet", 503)
        metrics = prometheus.server_metrics(self._supervisor.rows(), conditions)
        metrics += prometheus.worker_metrics(self._supervisor.restarts)
        if (outbox := largest(condition.outbox for condition in conditions)) is not None:
            from qsync.contrib.outbox.metrics import backlog_metrics

            metrics += backlog_metrics(outbox.rows, outbox.oldest_s)
        return Response(prometheus.render(metrics), prometheus.CONTENT_TYPE)

    async def _reports(self) -> list[ProcessHealth]:
        """Return the health of the processes; concurrent requests share one result."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._ask())
            self._asked.add_done_callback(self._answered)
        return await asyncio.shield(self._asked)

    def _answered(self, asked: asyncio.Task[list[ProcessHealth]]) -> None:
        self._asked = None

    async def _ask(self) -> list[ProcessHealth]:
        """Ask on the parent's event loop; if the loop does not respond, report the parent as
        silent."""
        if self._supervisor is None or self._loop is None:
            return [ProcessHealth(0, 0, None, ended="has not started yet")]
        question = self._supervisor.ask(PROCESSES_TIMEOUT_S)
        try:
            answer = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:  # the parent's event loop is closed
            question.close()
            return [ProcessHealth(0, 0, None, ended="has stopped")]
        try:
            async with asyncio.timeout(2 * PROCESSES_TIMEOUT_S):
                reports = await asyncio.wrap_future(answer)
        except (TimeoutError, CancelledError):
            return [ProcessHealth(0, 0, None, unheard_s=time.monotonic() - self._heard_at)]
        self._heard_at = time.monotonic()
        return reports


def _verdict(verdict: HealthVerdict) -> Response:
    body = {"ok": verdict.ok, "reasons": verdict.reasons}
    return Response(msgspec.json.encode(body) + b"\n", status=200 if verdict.ok else 503)


class _Backlog:
    """Answers /scale from the state of the queues."""

    def __init__(self, app: Qsync, queues: Sequence[str], processes: int) -> None:
        self._app = app
        self._queues = tuple(sorted(queues))
        self._processes = processes
        self._inspector: Inspector | None = None
        self._scalers: dict[tuple[str, ...], _Measured] = {}
        self._others = asyncio.Semaphore(LISTS)

    async def answer(self, query: Query) -> Response:
        """Sample the queues (twice on the first request) and return the advice."""
        try:
            goal, queues = _goal(query), _names(query, self._queues)
        except ValueError as error:
            return bad_request(str(error))
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                if queues == self._queues:
                    scaler = await self._measure(queues)
                else:
                    async with self._others:
                        scaler = await self._measure(queues)
        except (QsyncError, TimeoutError) as error:
            # An autoscaler that gets no number keeps its current scale.
            return bad_request(f"cannot read the store: {type(error).__name__}", 503)
        return Response(msgspec.json.encode(scaler.advise(goal)) + b"\n")

    async def _measure(self, queues: tuple[str, ...]) -> autoscale.Scaler:
        if self._inspector is None:
            self._inspector = self._app.inspector()
        measured = self._scalers.pop(queues, None) or _Measured(self._processes)
        self._scalers[queues] = measured  # keep the most recently requested list at the end
        others = [key for key in self._scalers if key != self._queues]
        if len(others) > LISTS:  # evict the least recently requested list, never the worker's own
            del self._scalers[others[0]]
        async with measured.lock:
            scaler = measured.scaler
            if scaler.age_s(time.monotonic()) >= SCALE_FRESH_S:
                scaler.add(await _sample(self._inspector, queues))
            if scaler.span_s < autoscale.MIN_WINDOW_S:
                await asyncio.sleep(autoscale.MIN_WINDOW_S)
                scaler.add(await _sample(self._inspector, queues))
        return scaler


class _Measured:
    """The samples of one list of queues."""

    def __init__(self, processes: int) -> None:
        self.scaler = autoscale.Scaler(processes)
        self.lock = asyncio.Lock()


async def _sample(inspector: Inspector, queues: tuple[str, ...]) -> autoscale.ScaleSample:
    overview = await inspector.overview(names=queues)
    at = time.monotonic()
    serving = [
        server
        for server in await inspector.servers(tasks=False)
        if not server.quiet and any(queue in server.queues for queue in queues)
    ]
    return sample(overview, queues, at=at, slots=[server.concurrency for server in serving])


def sample(
    overview: Overview, queues: Sequence[str], *, at: float, slots: Sequence[int]
) -> autoscale.ScaleSample:
    """Take a sample of these queues and return it; `slots` holds the concurrency of each server.

    Tasks in paused queues need no workers. The counters still include paused queues, because
    otherwise a pause and its end would look like a burst of tasks.
    """
    all_infos = [info for info in overview.queues if info.name in queues]
    infos = [info for info in all_infos if info.paused is None]

    def state(name: str) -> int:
        return sum(count for info in infos for key, count in info.states.items() if key == name)

    def counter(*names: str) -> int:
        return sum(info.counters.get(name, 0) for info in all_infos for name in names)

    return autoscale.ScaleSample(
        at=at,
        pending=state("pending"),
        active=state("active"),
        oldest_s=max((info.latency for info in infos), default=0.0),
        enqueued=counter("enqueued"),
        finished=counter("completed", "failed", "cancelled"),
        servers=len(slots),
        slots=sum(slots),
        limited=sum(info.states.get(TaskState.LIMITED, 0) for info in all_infos),
    )


def _goal(query: Query) -> autoscale.ScaleTarget:
    unknown = set(query) - {"target", "per_server", "min", "max", "queues"}
    if unknown:
        msg = f"{ascii(min(unknown))[:80]}: not one of target, per_server, min, max, queues"
        raise ValueError(msg)
    return autoscale.ScaleTarget(
        target_s=_number(query, "target", 30.0),
        per_worker=_number(query, "per_server", 0.0) or None,
        minimum=_int_parameter(query, "min", 0),
        maximum=_int_parameter(query, "max", autoscale.MAX_WORKERS),
    )


def _number(query: Query, name: str, default: float) -> float:
    if name not in query:
        return default
    return _parsed(query, name, float, lambda value: math.isfinite(value) and 0 < value <= 1e9)


def _int_parameter(query: Query, name: str, default: int) -> int:
    return _parsed(query, name, int, lambda value: 0 <= value <= 1e9) if name in query else default


def _parsed(query: Query, name: str, kind: Callable[[str], T], fits: Callable[[T], bool]) -> T:
    try:
        value: T | None = kind(query[name])
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise ValueError(f"{name}: {ascii(query[name])[:80]} is not a positive number")
    return value


def _names(query: Query, default: tuple[str, ...]) -> tuple[str, ...]:
    if "queues" not in query:
        return default
    try:
        names = {check_name("queues", name) for name in query["queues"].split(",")}
    except InvalidTask as error:
        raise ValueError(str(error)) from None
    return tuple(sorted(names))
