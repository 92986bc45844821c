"""Checks at the start of a server that its store is there and fit."""

from __future__ import annotations

import asyncio
import contextlib

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.store_info import MIN_VERSION, StoreInfo, evicts_tasks
from qsync.errors import ConfigError, StoreUnavailable
from qsync.server.outage_log import Outage

TRIES = 8
"""Number of times that a server asks a store at its start, unless it is to wait for the store."""


async def read_store_info(
    broker: AsyncBroker, outage: Outage, stopping: asyncio.Event, *, wait: bool
) -> StoreInfo | None:
    """Ask the store for its version and settings, again while it is unreachable; None if `stopping`
    is set meanwhile. With `wait` there is no limit to the tries."""
    backoff, tries = Backoff(cap=AWAY_CAP_S) if wait else Backoff(), TRIES
    while True:
        try:
            info = await broker.info()
        except StoreUnavailable as error:
            tries -= 1
            if not (tries > 0 or wait):
                raise
            outage.failed("start", error)
        else:
            outage.worked("start")
            return info
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff.next()):
                await stopping.wait()
            return None


def check_store(info: StoreInfo, address: Address, *, allow_eviction: bool) -> None:
    """Raise ConfigError if the store is too old, of another kind than its URL, or evicts tasks."""
    minimum = MIN_VERSION.get(info.product)
    if minimum and info.version and info.version < minimum:
        version = ".".join(map(str, info.version))
        raise ConfigError(f"{info.product} {version} is too old: Redis 7.0 or Valkey 7.2 is needed")
    if info.in_cluster and address.kind != "cluster":
        raise ConfigError(f"the store at {address} is a node of a cluster; use redis+cluster://")
    policy = info.policy
    if policy is not None and evicts_tasks(policy) and not allow_eviction:
        raise ConfigError(
            f"the store's maxmemory-policy is {policy}: it may delete tasks; set it to "
            "noeviction, or start with allow_eviction=True (qsync worker --allow-eviction)"
        )
