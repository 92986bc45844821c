"""Checks at a server's start that its store is reachable and suitable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import acl, views
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.broker.store_info import MIN_VERSION, StoreInfo, evicts_tasks
from qsync.errors import ConfigError, QsyncError, QueueFull, StoreUnavailable
from qsync.keys import QueueKeys
from qsync.server.outage_log import Outage

MAX_TRIES = 8
"""Number of attempts of a starting server to reach the store, unless the server waits for the
store."""


async def read_store_info(
    broker: AsyncBroker, outage: Outage, stopping: asyncio.Event, *, wait: bool
) -> StoreInfo | None:
    """Return the store's version and settings; None if `stopping` is set before the store replies.
    Retry while the store is unreachable: MAX_TRIES times, or without limit if `wait` is true."""
    backoff, tries = Backoff(cap=AWAY_CAP_S) if wait else Backoff(), MAX_TRIES
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
    """Raise ConfigError if the store is too old, may evict tasks, or is not what its URL names."""
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


log: Final = logging.getLogger("qsync.server")


PERMISSIONS_TIMEOUT_S: Final = 1.0
"""Time limit for the check on one node, in seconds."""


async def check_permissions(broker: AsyncBroker, queues: Sequence[QueueKeys]) -> None:
    """Raise ConfigError if the user may not run all commands that a server needs.

    If the user may not use channels, only log a warning, since the server works without them and
    clients merely see results later. The check uses the node of the first queue. If that node is
    unreachable or out of memory, the check uses the node of the second queue, and then of the
    third. If none of them replies, the check is skipped.
    """
    for keys in queues[:3]:
        call = views.permissions(keys, acl.checkable("server"))
        [refused] = await broker.run_many([call], ends=ends_in(PERMISSIONS_TIMEOUT_S))
        if not isinstance(refused, StoreUnavailable | QueueFull):
            break
    if isinstance(refused, StoreUnavailable | QueueFull) or not refused:
        return
    if isinstance(refused, QsyncError):
        raise refused
    text = (
        f"the user of the store at {broker.address} {acl.shortfall(refused, keys.prefix)}; "
        f"`qsync acl server --prefix {keys.prefix}` prints the permissions that a server needs"
    )
    if set(refused) - acl.CHANNELS:
        raise ConfigError(text)
    log.warning("%s; until then, clients see results up to 5 s later", text)
