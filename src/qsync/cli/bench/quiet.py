"""Measures: a server that has nothing to do, and the memory of one that has."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from qsync.cli.bench.figure import Figure, Found
from qsync.cli.bench.handlers import LOOP
from qsync.cli.bench.rig import Rig
from qsync.cli.bench.store import read_commands

MB: Final = 1e6

SENT: Final = {"evalsha", "eval", "blpop", "ping", "hello", "auth", "select", "client"}
"""What a server and its clients send; all else is run by scripts."""


async def measure_idle_server(rig: Rig) -> Found:
    """What a server without work asks of the store and of its own machine, and its memory."""
    await rig.clean()
    seconds = rig.scale.idle_s
    async with rig.servers() as [server]:
        await rig.fill(LOOP, 1)
        await rig.until_completed(1)
        await asyncio.sleep(0.5)  # what it had to do is done
        before, commands, began = await server.ask("usage"), await _calls(rig), time.monotonic()
        await asyncio.sleep(seconds)
        told, took, after = await _calls(rig), time.monotonic() - began, await server.ask("usage")
    sent, inside = [
        None if commands is None or told is None else (told[at] - commands[at]) / took
        for at in (0, 1)
    ]
    how = f"one queue, one server, {seconds:g} s"
    return [
        Figure(
            "idle server, commands", "1/s", sent,
            f"{how}; of all who use the store, but for those that scripts run",
        ),
        Figure("idle server, commands in scripts", "1/s", inside, how),
        Figure("idle server, CPU", "%", 100 * (after["cpu_s"] - before["cpu_s"]) / took, how),
        Figure("idle server, memory", "MB", after["rss"] / MB, f"{how}; resident"),
    ]  # fmt: skip


async def _calls(rig: Rig) -> tuple[int, int] | None:
    """How many commands were sent to the store, and how many its scripts ran; INFO is ours."""
    commands = await read_commands(rig.broker, rig.keys.base)
    if commands is None:
        return None
    sent = sum(one.calls for name, one in commands.items() if name.split("|")[0] in SENT)
    known = sum(one.calls for name, one in commands.items() if name != "info")
    return sent, known - sent


async def measure_memory(rig: Rig) -> Found:
    """The memory of a server that drains as fast as it can."""
    await rig.clean()
    count = rig.scale.drain
    await rig.fill(LOOP, count)
    async with rig.servers() as [server]:
        await rig.until_completed(count)
        usage = await server.ask("usage")
    how = f"the most that was resident, while {count:,} no-op tasks were drained, concurrency 100"
    return [Figure("busy server, memory", "MB", usage["peak"] / MB, how)]
