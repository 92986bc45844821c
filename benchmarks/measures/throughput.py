"""Measures how fast servers drain a backlog with each kind of handler. The same rounds also measure
the floor."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.baseline import BaselineRun
from benchmarks.figures import Figure, Results, known_median, median
from benchmarks.handlers import (
    BATCH,
    FIRST,
    LOOP,
    PAYLOAD,
    PROCESS,
    THREAD,
    THREAD_BATCH,
    WAIT,
)
from benchmarks.harness import Harness
from benchmarks.server_process import ServerProcess
from benchmarks.store import CommandUsage
from qsync.limit import LimitRule
from qsync.task import Task

WARM_UP_TASKS: Final = 200
"""Number of tasks per server that run before a drain, to start the threads and processes. A single
server cannot lease all these tasks together, so every server runs some of them."""


@dataclass(frozen=True, slots=True)
class DrainRun:
    """The cost of running a number of tasks."""

    tasks: int
    seconds: float
    """Time from the start of the first task until the store has counted the last task as
    completed."""
    cpu_s: float
    """CPU time of all server processes, in seconds."""
    scripts: CommandUsage | None
    """Time and number of script calls in the store; None if the store does not report them."""

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.tasks / self.seconds

    @property
    def store_us(self) -> float | None:
        """The store's time per task, in microseconds."""
        return None if self.scripts is None else self.scripts.us / self.tasks

    @property
    def calls_per_1000(self) -> float | None:
        """Scripts that the store ran per 1,000 tasks."""
        return None if self.scripts is None else 1000 * self.scripts.calls / self.tasks


async def drain(
    harness: Harness, type: str, tasks: int, *, processes: int = 1, uvloop: bool = False,
    rule: LimitRule | None = None, keys: int | None = None, **config: Any,
) -> DrainRun:  # fmt: skip
    """Fill the queue while it is paused, then let warmed-up servers drain it.

    With `rule`, the tasks use `keys` different keys of a limit in turn.
    """
    await harness.clean()
    async with harness.servers(processes, uvloop=uvloop, **config) as servers:
        warm_up = WARM_UP_TASKS * processes
        await harness.fill(type, warm_up)
        await harness.until_completed(warm_up)
        await harness.pause()
        async with harness.client() as client:
            await client.enqueue(Task(FIRST, PAYLOAD))
        await harness.put_rule("customer", rule)
        await harness.fill(type, tasks - 1, keys=keys)
        cpu_s, before = await _cpu_s(servers), await harness.script_usage()
        await harness.resume()
        end = await harness.until_completed(warm_up + tasks)
        after = await harness.script_usage()
        answers = [await server.ask("first") for server in servers]
        [began_ns] = [answer for answer in answers if answer is not None]
        cpu_s = await _cpu_s(servers) - cpu_s
    scripts = after.since(before) if after and before else None
    return DrainRun(tasks, end - began_ns / 1e9, cpu_s, scripts)


async def baseline(harness: Harness, tasks: int) -> BaselineRun:
    """Measure the floor for a number of tasks, in a process like that of a server."""
    await harness.clean()
    await harness.fill(LOOP, tasks)
    async with ServerProcess(harness.url, harness.prefix, server=None) as process:
        return BaselineRun(**await process.ask("baseline"))


async def _cpu_s(servers: list[ServerProcess]) -> float:
    return float(sum([(await server.ask("usage"))["cpu_s"] for server in servers]))


async def measure_drain(harness: Harness) -> Results:
    """Drain no-op coroutines alongside the floor, then with uvloop if installed, then with two
    processes."""
    tasks, rounds = harness.scale.drain, range(harness.scale.rounds)
    pairs = [(await baseline(harness, tasks), await drain(harness, LOOP, tasks)) for _ in rounds]
    runs = [run for _, run in pairs]
    how = f"{tasks:,} pending no-op coroutines, 32-byte payloads, concurrency 100, one process"
    results: Results = [
        Figure("drain, coroutine", "tasks/s", median([run.rate for run in runs]), how),
        *_compare_with_floor(pairs),
        Figure(
            "server per task", "us", median([1e6 * run.cpu_s / run.tasks for run in runs]),
            "CPU time of the server process",
        ),
        Figure(
            "store per task", "us", known_median([run.store_us for run in runs]),
            "store's time for fetch and completion in this drain, from INFO commandstats",
        ),
        Figure(
            "store calls per 1,000 tasks", "calls",
            known_median([run.calls_per_1000 for run in runs]),
            "number of scripts that the store ran in this drain",
        ),
    ]  # fmt: skip
    if importlib.util.find_spec("uvloop") is not None:
        name = "drain, coroutine, uvloop"
        results.append(await _rate(harness, name, LOOP, tasks, how, uvloop=True))
    how = f"{tasks:,} no-op coroutines, two server processes, concurrency 100 each"
    name = "drain, coroutine, 2 processes"
    results.append(await _rate(harness, name, LOOP, tasks, how, processes=2))
    return results


def _compare_with_floor(pairs: list[tuple[BaselineRun, DrainRun]]) -> Results:
    return [
        Figure(
            "asyncio floor", "tasks/s", median([floor.rate for floor, _ in pairs]),
            "a bare event loop decodes the same messages and runs the same coroutine, 100 at a "
            "time",
        ),
        Figure(
            "drain / floor", "%", median([100 * run.rate / floor.rate for floor, run in pairs]),
            "ratio of the rates in the same round",
        ),
        Figure(
            "drain / floor, processor time", "%",
            median([100 * floor.cpu_s / run.cpu_s for floor, run in pairs]),
            "CPU time of the floor / CPU time of the server process with all its threads; the "
            "time spent waiting for the store and other processes does not count",
        ),
    ]  # fmt: skip


async def measure_batches(harness: Harness) -> Results:
    """Alternately drain no-op tasks with one call per task and with calls for up to 100 tasks."""
    scale = harness.scale
    return [
        *await _compare_batches(harness, "coroutine", LOOP, BATCH, scale.drain),
        *await _compare_batches(harness, "thread", THREAD, THREAD_BATCH, scale.drain_threads),
    ]


async def _compare_batches(
    harness: Harness, kind: str, single: str, batch: str, tasks: int
) -> Results:
    pairs = [
        (await drain(harness, single, tasks), await drain(harness, batch, tasks))
        for _ in range(harness.scale.rounds)
    ]
    how = f"{tasks:,} pending no-op tasks, concurrency 100, one process"
    ours = median([100 * many.cpu_s / one.cpu_s for one, many in pairs])
    return [
        Figure(f"{kind}, single calls", "tasks/s", median([one.rate for one, _ in pairs]), how),
        Figure(
            f"{kind}, batches of 100", "tasks/s", median([many.rate for _, many in pairs]), how
        ),
        Figure(
            f"{kind}, batches / single calls", "%",
            median([100 * many.rate / one.rate for one, many in pairs]),
            "ratio of the rates in the same round",
        ),
        Figure(
            f"{kind}, batches / single calls, processor time", "%", ours,
            "CPU time of the server process per task; the store's time per task is the same",
        ),
    ]  # fmt: skip


async def measure_executors(harness: Harness) -> Results:
    """Drain tasks with thread and process handlers, with one server process and with two."""
    results: Results = []
    scale, cores = harness.scale, os.cpu_count() or 1
    for executor, type, tasks, where in (
        ("thread", THREAD, scale.drain_threads, "up to 100 threads per server"),
        ("process", PROCESS, scale.drain_processes, f"{cores} handler processes per server"),
    ):
        how = f"{tasks:,} no-op functions, {where}, concurrency 100"
        results.append(await _rate(harness, f"drain, {executor}", type, tasks, how))
        if scale.two_servers:
            name = f"drain, {executor}, 2 processes"
            results.append(await _rate(harness, name, type, tasks, how, processes=2))
    return results


async def measure_waiting(harness: Harness) -> Results:
    """Drain tasks that each wait for 5 ms, like tasks that query a database."""
    tasks = harness.scale.drain_waiting
    how = f"{tasks:,} tasks of 5 ms (asyncio.sleep), concurrency 100; at most 20,000 per second"
    return [await _rate(harness, "drain, 5 ms tasks", WAIT, tasks, how)]


async def _rate(
    harness: Harness, name: str, type: str, tasks: int, how: str, **options: Any
) -> Figure:
    runs = [await drain(harness, type, tasks, **options) for _ in range(harness.scale.rounds)]
    return Figure(name, "tasks/s", median([run.rate for run in runs]), how)
