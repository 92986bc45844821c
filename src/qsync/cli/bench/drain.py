"""Measures: tasks that wait are run, by handlers of each kind, and the floor in the same rounds."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Final

from qsync.cli.bench.figure import Figure, Found, median
from qsync.cli.bench.floor import Took
from qsync.cli.bench.handlers import FIRST, LOOP, PAYLOAD, PROCESS, THREAD, WAIT
from qsync.cli.bench.rig import Rig, middle
from qsync.cli.bench.served import Served
from qsync.cli.bench.store import Spent
from qsync.task import Task

WARM_UP: Final = 200
"""Tasks run beforehand for each server process, which start its threads and processes of handlers.
They are more than one server takes at a time, so that each gets some."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What it took to run so many tasks that waited."""

    tasks: int
    seconds: float
    """From the start of the first task until the store had been told of the end of the last."""
    cpu_s: float
    """Of the server processes, together."""
    store: Spent | None
    """What the store spent on scripts; None where it is not told."""

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    @property
    def store_us(self) -> float | None:
        """The store's time a task."""
        return None if self.store is None else self.store.us / self.tasks

    @property
    def calls(self) -> float | None:
        """Scripts that the store ran for 1,000 tasks."""
        return None if self.store is None else 1000 * self.store.calls / self.tasks


async def drain(
    rig: Rig, type: str, tasks: int, *, processes: int = 1, uvloop: bool = False, **config: Any
) -> Drained:
    """Have tasks run that all waited, by servers that are ready and have nothing else to do."""
    await rig.clean()
    async with rig.servers(processes, uvloop=uvloop, **config) as servers:
        warm = WARM_UP * processes
        await rig.fill(type, warm)
        await rig.until_completed(warm)
        await rig.pause()
        async with rig.client() as client:
            await client.enqueue(Task(FIRST, PAYLOAD))
        await rig.fill(type, tasks - 1)
        cpu_s, before = await _cpu_s(servers), await rig.spent()
        await rig.resume()
        end = await rig.until_completed(warm + tasks)
        after = await rig.spent()
        firsts = [await server.ask("first") for server in servers]
        [began] = [first for first in firsts if first is not None]
        cpu_s = await _cpu_s(servers) - cpu_s
    spent = after.since(before) if after and before else None
    return Drained(tasks, end - began / 1e9, cpu_s, spent)


async def floor_of(rig: Rig, tasks: int) -> Took:
    """The floor for so many tasks, in a process like that of a server."""
    await rig.clean()
    await rig.fill(LOOP, tasks)
    async with Served(rig.url, rig.prefix, server=None) as process:
        return Took(**await process.ask("floor"))


async def _cpu_s(servers: list[Served]) -> float:
    return float(sum([(await server.ask("usage"))["cpu_s"] for server in servers]))


async def measure_drain(rig: Rig) -> Found:
    """No-op coroutines, and the floor; with uvloop where it is installed; by two processes."""
    tasks, rounds = rig.scale.drain, range(rig.scale.rounds)
    pairs = [(await floor_of(rig, tasks), await drain(rig, LOOP, tasks)) for _ in rounds]
    drains = [drained for _, drained in pairs]
    text = f"{tasks:,} no-op coroutines that wait, 32-byte payloads, concurrency 100, one process"
    found: Found = [
        Figure("drain, coroutine", "tasks/s", median([one.rate for one in drains]), text),
        *_beside_floor(pairs),
        Figure(
            "server per task", "us", median([1e6 * one.cpu_s / one.tasks for one in drains]),
            "processor time of the server process",
        ),
        Figure(
            "store per task", "us", middle([one.store_us for one in drains]),
            "fetch and completion, as this server batched them; INFO commandstats",
        ),
        Figure(
            "store calls per 1,000 tasks", "calls", middle([one.calls for one in drains]),
            "scripts run in this drain",
        ),
    ]  # fmt: skip
    if importlib.util.find_spec("uvloop") is not None:
        found.append(await _rate(rig, "drain, coroutine, uvloop", LOOP, tasks, text, uvloop=True))
    text = f"{tasks:,} no-op coroutines, two server processes, concurrency 100 each"
    found.append(await _rate(rig, "drain, coroutine, 2 processes", LOOP, tasks, text, processes=2))
    return found


def _beside_floor(pairs: list[tuple[Took, Drained]]) -> Found:
    return [
        Figure(
            "asyncio floor", "tasks/s", median([floor.tasks / floor.seconds for floor, _ in pairs]),
            "decodes the same messages and runs the same coroutine, 100 at a time; no queue",
        ),
        Figure(
            "drain / floor", "%",
            median([100 * drained.rate * floor.seconds / floor.tasks for floor, drained in pairs]),
            "tasks a second, of the same round",
        ),
        Figure(
            "drain / floor, processor time", "%",
            median([100 * floor.cpu_s / drained.cpu_s for floor, drained in pairs]),
            "the floor's processor time to that of the server process, all its threads; "
            "waiting for the store and for other processes is left out",
        ),
    ]  # fmt: skip


async def measure_executors(rig: Rig) -> Found:
    """Handlers that are no coroutines, by one server process and by two."""
    found: Found = []
    cores = os.cpu_count() or 1
    for name, type, tasks, where in (
        ("thread", THREAD, rig.scale.drain_threads, "in up to 100 threads of each server"),
        ("process", PROCESS, rig.scale.drain_processes, f"in {cores} processes of each server"),
    ):
        text = f"{tasks:,} no-op functions, {where}, concurrency 100"
        found.append(await _rate(rig, f"drain, {name}", type, tasks, text))
        if rig.scale.two_servers:
            two = f"drain, {name}, 2 processes"
            found.append(await _rate(rig, two, type, tasks, text, processes=2))
    return found


async def measure_waiting(rig: Rig) -> Found:
    """Tasks that wait for 5 ms, as for a database."""
    tasks = rig.scale.drain_waiting
    text = f"{tasks:,} tasks of 5 ms (asyncio.sleep), concurrency 100: 20,000 at the most"
    return [await _rate(rig, "drain, 5 ms tasks", WAIT, tasks, text)]


async def _rate(rig: Rig, name: str, type: str, tasks: int, how: str, **options: Any) -> Figure:
    rates = [(await drain(rig, type, tasks, **options)).rate for _ in range(rig.scale.rounds)]
    return Figure(name, "tasks/s", median(rates), how)
