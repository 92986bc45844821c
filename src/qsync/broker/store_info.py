"""The version, product and settings of a store, and the oldest versions that qsync supports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MIN_VERSION: Final = {"redis": (7, 0), "valkey": (7, 2)}
"""Oldest releases that can run the scripts, by product."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The store's version, product and settings; None if INFO is forbidden or does not report
    them."""

    version: tuple[int, ...] | None
    product: str
    policy: str | None
    in_cluster: bool = False


def parse_info(reply: bytes) -> StoreInfo:
    """Read the reply to INFO."""
    lines = re.findall(r"^(\w+):(.*?)\r?$", reply.decode(errors="replace"), re.MULTILINE)
    info = dict(lines)
    product = "valkey" if "valkey_version" in info else "redis"
    parts = info.get(f"{product}_version", "").split(".")
    version = tuple(int(part) for part in parts if part.isdigit()) or None
    in_cluster = info.get("cluster_enabled") == "1"
    return StoreInfo(version, product, info.get("maxmemory_policy"), in_cluster)


def evicts_tasks(policy: str) -> bool:
    """Return whether a full store with this maxmemory-policy deletes tasks.

    The volatile policies delete only keys with a time to live, which no key of a queue has. Server
    records have a time to live, but servers write them again within seconds. Server inboxes also
    have a time to live. If an order is lost with its inbox, the operator must repeat the order.
    """
    return policy != "noeviction" and not policy.startswith("volatile-")
