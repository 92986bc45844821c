"""Where the store is: what a URL says, or what a redis-py client was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Address:
    """A store: one node, a cluster, or a primary that Sentinels know.

    `nodes` are the node, the cluster's start-up nodes, or the Sentinels; empty for a unix socket.
    `settings` go to every connection: credentials, db, TLS, path; they are never shown.
    `finder` are settings of what names the nodes: of the clients that ask the Sentinels
    (`min_other_sentinels` and `force_master_ip` of redis-py's Sentinel among them), or the
    `address_remap` of a cluster.
    """

    kind: Literal["node", "cluster", "sentinel"]
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    finder: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False

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
