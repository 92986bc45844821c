"""The address of a store, from a URL or from the settings of a client object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a store: one node, a cluster, or a primary that Sentinels name.

    `nodes`: the node, the cluster's startup nodes, or the Sentinels; empty for a unix socket.
    `settings`: settings of every connection (credentials, db, TLS, path), which are never shown.
    `finder`: settings of the clients that ask the Sentinels, including `min_other_sentinels` and
    `force_master_ip` of redis-py's Sentinel; for a cluster, its `address_remap`.
    `clock`: function that returns the time for the scripts, in microseconds; only tests set it.
    None means that the scripts use the store's clock.
    """

    kind: Literal["node", "cluster", "sentinel"]
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    finder: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False
    clock: Callable[[], int] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        db = self.settings.get("db") or ""
        if path := self.settings.get("path"):
            return f"unix://{path}" + (db and f"?db={db}")
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes
        )
        scheme = ("rediss" if self.tls else "redis") + (
            "" if self.kind == "node" else f"+{self.kind}"
        )
        return "/".join(filter(None, (f"{scheme}://{hosts}", self.service, str(db))))
