"""Where the store is: what a URL says, or what a redis-py client was made with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from qsync.errors import ConfigError

SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel",
    "rediss+sentinel", "embedded",
)  # fmt: skip

_DEFAULT_PORTS: Final = {"cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True, slots=True)
class Address:
    """A store: one node, a cluster, or a primary that Sentinels know.

    `nodes` are the node, the cluster's start-up nodes, or the Sentinels; empty for a unix socket.
    `settings` go to every connection: credentials, db, TLS, path; they are never shown.
    """

    kind: Literal["node", "cluster", "sentinel"]
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False

    def __str__(self) -> str:
        if path := self.settings.get("path"):
            return f"unix://{path}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.nodes)
        scheme = ("rediss" if self.tls else "redis") + (
            "" if self.kind == "node" else f"+{self.kind}"
        )
        return f"{scheme}://{hosts}" + (f"/{self.service}" if self.service else "")


def mask(url: str) -> str:
    """The URL without its credentials."""
    return re.sub(r"//[^/@]*@", "//***@", re.sub(r"(password=)[^&]*", r"\1***", url))


def split_hosts(url: str) -> tuple[str, str, tuple[tuple[str, int], ...], str]:
    """Take a URL of a cluster or of Sentinels apart.

    Returns the kind, the same URL with its first host alone and a plain scheme, all hosts, and
    the name of the service. Raises ConfigError when a host or a port is wrong.
    """
    parts = urlsplit(url)
    plain, _, kind = parts.scheme.partition("+")
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_host(url, text, _DEFAULT_PORTS[kind]) for text in hosts.split(","))
    service = ""
    path = parts.path
    if kind == "sentinel":
        service, _, rest = path.lstrip("/").partition("/")
        path = f"/{rest}" if rest else ""
        if not service:
            msg = f"url: {mask(url)} does not name the service: {parts.scheme}://host:port/service"
            raise ConfigError(msg)
    host, port = nodes[0]
    first = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return (
        kind,
        urlunsplit((plain, f"{credentials}{at}{first}", path, parts.query, "")),
        nodes,
        service,
    )


def _host(url: str, text: str, default_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    if found is None:
        msg = f"url: {text!r} in {mask(url)} is not host:port"
        raise ConfigError(msg)
    return found[1].strip("[]"), int(found[2] or default_port)
