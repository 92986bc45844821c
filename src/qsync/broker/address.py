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
        db = self.settings.get("db") or ""
        if path := self.settings.get("path"):
            return f"unix://{path}" + (db and f"?db={db}")
        hosts = ",".join(f"{host}:{port}" for host, port in self.nodes)
        scheme = ("rediss" if self.tls else "redis") + (
            "" if self.kind == "node" else f"+{self.kind}"
        )
        return "/".join(filter(None, (f"{scheme}://{hosts}", self.service, str(db))))


def mask(url: str) -> str:
    """The URL without its credentials."""
    return re.sub(r"//.*@", "//***@", re.sub(r"(password=)[^&]*", r"\1***", url))


def check_credentials(url: str) -> None:
    """ValueError when a part of the password would be taken for something else, and be shown."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        msg = "write / as %2F, ? as %3F, # as %23 and @ as %40 in a user or password"
        raise ValueError(msg)


def check_node(url: str) -> None:
    """ValueError when there is a mistake in the URL of a node that redis-py would not see."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        if not parts.path:
            msg = "it does not name the socket: unix:///path/to/socket"
            raise ValueError(msg)
        return
    if not re.fullmatch(r"/?|/\d+/?", parts.path):
        msg = f"{parts.path[1:]!r} is no number of a database"
        raise ValueError(msg)
    try:
        _ = parts.port
    except ValueError:
        msg = "its port is not a number from 0 to 65535"
        raise ValueError(msg) from None


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
