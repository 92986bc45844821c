"""Measures the cost of an idle server and the memory of a busy one."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.figures import Figure, Results
from benchmarks.handlers import LOOP
from benchmarks.harness import Harness
from benchmarks.store import read_commands

MB: Final = 1e6

SENT_COMMANDS: Final = {"evalsha", "eval", "blpop", "ping", "hello", "auth", "select", "client"}
"""Commands that a server and its clients send directly; scripts run all other commands."""


async def measure_idle_server(harness: Harness) -> Results:
    """Measure the commands, CPU time and memory of a server without work."""
    await harness.clean()
    seconds = harness.scale.idle_s
    async with harness.servers() as [server]:
        await harness.fill(LOOP, 1)
        await harness.until_completed(1)
        await asyncio.sleep(0.5)  # let the server finish the work that follows a task
        usage, calls = await server.ask("usage"), await _count_commands(harness)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        calls_after, took = await _count_commands(harness), time.monotonic() - began
        usage_after = await server.ask("usage")
    sent, inside = [
        None if calls is None or calls_after is None else (calls_after[i] - calls[i]) / took
        for i in (0, 1)
    ]
    cpu_s = usage_after["cpu_s"] - usage["cpu_s"]
    how = f"one queue, one server, {seconds:g} s"
    return [
        Figure(
            "idle server, commands", "1/s", sent,
            f"{how}; all commands sent to the store, without those that scripts run",
        ),
        Figure("idle server, commands in scripts", "1/s", inside, how),
        Figure("idle server, CPU", "%", 100 * cpu_s / took, how),
        Figure("idle server, memory", "MB", usage_after["rss"] / MB, f"{how}; resident"),
    ]  # fmt: skip


async def _count_commands(harness: Harness) -> tuple[int, int] | None:
    """Return how many commands the store received, not counting this INFO, and how many its scripts
    ran."""
    commands = await read_commands(harness.broker, harness.keys.base)
    if commands is None:
        return None
    sent = sum(
        usage.calls for name, usage in commands.items() if name.split("|")[0] in SENT_COMMANDS
    )
    total = sum(usage.calls for name, usage in commands.items() if name != "info")
    return sent, total - sent


async def measure_memory(harness: Harness) -> Results:
    """Measure the peak memory of a server that drains at full speed."""
    await harness.clean()
    count = harness.scale.drain
    await harness.fill(LOOP, count)
    async with harness.servers() as [server]:
        await harness.until_completed(count)
        usage = await server.ask("usage")
    how = f"peak resident memory while draining {count:,} no-op tasks, concurrency 100"
    return [Figure("busy server, memory", "MB", usage["peak"] / MB, how)]
