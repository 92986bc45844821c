"""Measures a bare event loop that decodes the same messages and runs the same handlers.

There is no queue, so no task is fetched, leased or acknowledged. Any queue that runs an asyncio
task per message in one Python process takes at least this long. The reports call this loop the
floor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.handlers import no_op
from qsync.broker.aio import AsyncBroker
from qsync.broker.op_values import BATCH_SIZE
from qsync.keys import QueueKeys
from qsync.message import decode_message
from qsync.task import TaskInfo


@dataclass(frozen=True, slots=True)
class BaselineRun:
    """Number of tasks, and the time that the bare event loop took to run them."""

    tasks: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.tasks / self.seconds


async def read_messages(broker: AsyncBroker, keys: QueueKeys) -> list[bytes]:
    """Read the stored messages of all pending tasks."""
    pending, tasks = keys.key("pending"), keys.key("tasks")
    ids = await broker.ask("ZRANGE", pending, 0, -1, key=pending) or []
    messages: list[bytes] = []
    for start in range(0, len(ids), BATCH_SIZE):
        messages += (
            await broker.ask("HMGET", tasks, *ids[start : start + BATCH_SIZE], key=tasks) or []
        )
    return messages


async def run_baseline(messages: Sequence[bytes], concurrency: int) -> BaselineRun:
    """Decode each message and run the handler in a new asyncio task."""
    loop = asyncio.get_running_loop()
    rest = iter(messages)

    async def run(rest: Iterator[bytes]) -> None:
        for data in rest:
            await loop.create_task(no_op(_task_info(data)))

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[run(rest) for _ in range(concurrency)])
    return BaselineRun(len(messages), time.perf_counter() - began, time.process_time() - cpu)


def _task_info(data: bytes) -> TaskInfo:
    message = decode_message(data)
    return TaskInfo(
        id="id", type=message.type, payload=message.payload, queue="default", retry=message.retry,
        attempt=1, crashes=0, enqueued_at_us=message.enqueued_at_us,
    )  # fmt: skip
