"""Causes incidents in the store, for drills with the dashboard and the command line."""

from __future__ import annotations

import time
from dataclasses import replace

from qsync import Task
from qsync.broker import ops
from qsync.broker.op_values import LeaseRef
from qsync.broker.schedule_run_ops import missed, note_runs
from tests.support.inspector_driver import POLICY, bed

REFUSED = """ConnectionError: api.bank.example refused the connection

Traceback (most recent call last):
  File "/srv/shop/payments.py", line 42, in charge
    raise ConnectionError("api.bank.example refused the connection")
ConnectionError: api.bank.example refused the connection"""


async def outage(url: str, prefix: str, *, queue: str, type: str, count: int) -> None:
    """Let tasks die because an API refuses them; `count` is a multiple of 500."""
    async with bed(url, prefix) as made:
        for _ in range(count // 500):
            await made.dead(*[Task(type)] * 500, error=REFUSED, queue=queue)


async def poison(url: str, prefix: str, task: Task, *, queue: str) -> None:
    """Let a task kill three servers, so that it becomes dead."""
    async with bed(url, prefix) as made:
        await made.enqueue(task, queue=queue)
        keys, policy = made.keys(queue), replace(POLICY, lease_us=1)
        for number in range(1, 5):
            fetch = ops.fetch(keys, server=f"s{number}", number=number, wanted=1, policy=policy)
            found = await made.broker.run(fetch)
            held = [LeaseRef(id, f"s{number}/{number}") for id in found.ids]
            if held:
                await made.broker.run(ops.mark_started(keys, held))


async def missed_cron(url: str, prefix: str, name: str, task: Task) -> None:
    """Record that a schedule missed its run an hour ago, as servers do when they come back."""
    async with bed(url, prefix) as made:
        await made.inspector.put_schedule(name, task, every=86_400)
        tick_us = (int(time.time()) - 3600) * 1_000_000
        note = missed(name, tick_us, tick_us)
        await made.broker.run(note_runs(made.keys(task.queue or "default"), [note]))
