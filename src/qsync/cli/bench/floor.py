"""The floor: what an event loop takes that decodes the same messages and runs the same handler.

It has no queue: nothing is fetched, leased, acknowledged or kept from running twice. Whatever runs
a task a message in one Python process takes at least this long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qsync.broker.ops import BATCH
from qsync.broker.shell import AsyncBroker
from qsync.cli.bench.handlers import no_op
from qsync.keys import QueueKeys
from qsync.task import TaskInfo, decode_message


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds by the clock and of processor time, for so many tasks."""

    tasks: int
    seconds: float
    cpu_s: float


async def read_messages(broker: AsyncBroker, keys: QueueKeys) -> list[bytes]:
    """The messages of all pending tasks, as they lie in the store."""
    pending, tasks = keys.key("pending"), keys.key("tasks")
    ids = await broker.ask("ZRANGE", pending, 0, -1, key=pending) or []
    messages: list[bytes] = []
    for at in range(0, len(ids), BATCH):
        messages += await broker.ask("HMGET", tasks, *ids[at : at + BATCH], key=tasks) or []
    return messages


async def floor(messages: Sequence[bytes], concurrency: int) -> Took:
    """Decode each message and run the handler in an asyncio task of its own, so many at a time."""
    loop = asyncio.get_running_loop()
    rest = iter(messages)

    async def run(rest: Iterator[bytes]) -> None:
        for data in rest:
            await loop.create_task(no_op(_info(data)))

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[run(rest) for _ in range(concurrency)])
    return Took(len(messages), time.perf_counter() - began, time.process_time() - cpu)


def _info(data: bytes) -> TaskInfo:
    message = decode_message(data)
    return TaskInfo(
        id="id", type=message.type, payload=message.payload, queue="default", retry=message.retry,
        attempt=1, crashes=0, enqueued_at_us=message.enqueued_at_us,
    )  # fmt: skip
