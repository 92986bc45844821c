"""When a server starts, excludes the queues that have the data layout of a later version."""

from __future__ import annotations

import dataclasses
import logging
from typing import Final

from qsync.broker import views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.errors import SchemaMismatch
from qsync.keys import QueueKeys
from qsync.server.config import Config

log: Final = logging.getLogger("qsync.server")

CHECK_S: Final = 1.0
"""Time limit for the check of all queues, in seconds; a queue whose node does not answer is
kept."""


async def readable_config(broker: AsyncBroker, prefix: str, config: Config) -> Config:
    """Return the config without the queues that only a later version can read; log each of these
    queues once.

    Raises SchemaMismatch if no queue is left.
    """
    lease_us = config.policy().lease_us
    calls = [
        views.check_for_work(QueueKeys(prefix, name), lease_us=lease_us) for name in config.weights
    ]
    answers = await broker.run_many(calls, ends=ends_in(CHECK_S))
    later = {
        name: answer
        for name, answer in zip(config.weights, answers, strict=True)
        if isinstance(answer, SchemaMismatch)
    }
    if not later:
        return config
    readable = {name: weight for name, weight in config.weights.items() if name not in later}
    if not readable:
        raise next(iter(later.values()))
    for error in later.values():
        log.error("%s; this server ignores the queue until it restarts", error)
    return dataclasses.replace(config, queues=readable)
