"""Parse the URL of a store.

Errors show only its scheme, hosts and option names, because any other part of a misspelt URL may
belong to a password. (`qsync.url_masking` masks the URLs in other strings.)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import unquote, unquote_plus

from qsync.broker.address import Address
from qsync.broker.address_options import (
    OPTIONS,
    SENTINEL,
    SENTINEL_OPTIONS,
    check,
    check_tls,
    unknown,
)
from qsync.errors import ConfigError

SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel",
    "rediss+sentinel", "embedded",
)  # fmt: skip
"""Accepted schemes; each `redis` may be written `valkey`."""

_ESCAPES: Final = "write / as %2F, ? as %3F, # as %23 and @ as %40 in a user or password"
_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}
_SOCKET_LIMIT: Final = 107
_URL: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL
)
_INHERITED: Final = (
    ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"),
    ("ssl_certfile", "ssl_keyfile", "ssl_password"),
    ("ssl_cert_reqs", "ssl_check_hostname"),
)
"""Groups of options. Connections to Sentinels inherit either all options of a group from the
primary, or none."""


def parse(url: str) -> Address:
    """Parse the URL of a store; raise ConfigError if it is invalid."""
    match = _URL.fullmatch(url.strip())
    scheme = re.sub("^valkey", "redis", match[1].lower()) if match else ""
    if match is None or scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        what = f"{match[1]}:// is not a scheme of a store" if match else "it is empty"
        if not match and url.strip():
            what = "it does not begin with a scheme"
        raise ConfigError(
            f"url: {what}; use e.g. redis://localhost:6379 (the schemes are {schemes})"
        )
    _, authority, path, query, fragment = match.groups(default="")
    try:
        if "@" in path + query + fragment:
            raise ValueError(_ESCAPES)
        if fragment:
            raise ValueError("it contains a #; write # as %23 in a user or password")
        credentials, at, hosts = authority.rpartition("@")
        nodes = () if scheme in ("unix", "embedded") else _hosts(hosts, scheme.partition("+")[2])
        shown = f"{scheme}://{','.join(host for host, _ in nodes)}"
    except ValueError as error:
        raise ConfigError(f"url: {scheme}://...: {error}") from None
    try:
        options = _options(query)
        _add(options, _credentials(credentials) if at else {})
        if scheme == "embedded":
            raise ValueError("an embedded store cannot be used here")
        if scheme == "unix":
            return _unix(hosts, path, options)
        return _network(
            scheme, nodes, path, options, several="@" in credentials and "," in authority
        )
    except ValueError as error:
        raise ConfigError(f"url: {shown}: {error}") from None


def _hosts(text: str, kind: str) -> tuple[tuple[str, int], ...]:
    hosts = text.split(",")
    if "" in hosts and (kind or hosts[1:]):
        raise ValueError("it lacks a host; hosts are listed as host:port,host:port")
    return tuple(
        _host(host, _PORTS[kind], f"host number {number}" if hosts[1:] else "its host")
        for number, host in enumerate(hosts, 1)
    )


def _host(text: str, default_port: int, which: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.-]*))(?::(.*))?", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{which} is not host:port")
    name, port = match[1] or match[2] or "localhost", match[3]
    if match[1]:
        try:
            ipaddress.IPv6Address(name)
        except ValueError:
            raise ValueError(f"{which} is not host:port; write an IPv6 address in []") from None
    if port is not None and port != "":
        if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
            subject = "its port" if which == "its host" else f"{which} is not host:port; the port"
            raise ValueError(f"{subject} is not a number from 0 to 65535")
        return name, int(port) or default_port
    return name, default_port


def _credentials(text: str) -> dict[str, Any]:
    user, _, password = text.partition(":")
    credentials = {"username": user, "password": password}
    return {name: _decoded(value) for name, value in credentials.items() if value}


def _decoded(text: str, unquoted: Any = unquote) -> str:
    try:
        return cast("str", unquoted(text, errors="strict"))
    except UnicodeDecodeError:
        raise ValueError("it has % escapes that are not UTF-8") from None


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    secret = False
    for part in query[1:].split("&") if query[1:] else ():
        name, sign, text = part.partition("=")
        name = _decoded(name, unquote_plus)
        if name not in OPTIONS and name not in SENTINEL_OPTIONS:
            raise ValueError(unknown(name, has_value=bool(sign), after_secret=secret))
        if not text:
            raise ValueError(f"{name}: has no value" + ("" if sign else f"; write {name}=VALUE"))
        _add(options, {name: check(name, _decoded(text, unquote_plus))})
        secret = secret or "password" in name
    return options


def _add(options: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name in more:
        if name in options:
            raise ValueError(f"{name}: appears twice")
    options.update(more)


def _unix(host: str, path: str, options: dict[str, Any]) -> Address:
    if host:
        raise ValueError("a socket's path begins with a third slash: unix:///path/to/socket")
    if not path.strip("/"):
        raise ValueError("it does not name the socket: unix:///path/to/socket")
    name = _decoded(path)
    if "\0" in name or len(name.encode()) > _SOCKET_LIMIT:
        raise ValueError(
            f"the path of a unix socket has at most {_SOCKET_LIMIT} bytes, none of which is 0"
        )
    _refuse(options, ("ssl_", SENTINEL, "socket_keepalive"), "cannot be combined with unix://")
    return Address("node", settings={**options, "path": name})


def _network(
    scheme: str,
    nodes: tuple[tuple[str, int], ...],
    path: str,
    options: dict[str, Any],
    *,
    several: bool,
) -> Address:
    plain, _, kind = scheme.partition("+")
    tls = plain == "rediss"
    service = ""
    if several:
        raise ValueError(f"write credentials once, before the first host; {_ESCAPES}")
    if kind == "":
        if len(nodes) > 1:
            raise ValueError(f"several hosts require {scheme}+cluster:// or {scheme}+sentinel://")
    elif kind == "sentinel":
        service, _, path = path.removeprefix("/").partition("/")
        service, path = _decoded(service), path and f"/{path}"
        if not service:
            raise ValueError(f"it does not name the service: {scheme}://host:port/service")
        if not re.fullmatch(r"[\w.-]+", service, re.ASCII):
            raise ValueError("a service name has letters, digits, '.', '_' and '-'")
    if not re.fullmatch(r"/?|/\d{1,9}/?", path):
        raise ValueError("its path is not a database number, such as /0")
    if path.strip("/"):
        _add(options, {"db": int(path.strip("/"))})
    if not tls:
        _refuse(options, ("ssl_",), f"requires {scheme.replace('redis', 'rediss', 1)}://")
    check_tls(options)
    if kind != "sentinel":
        _refuse(options, (SENTINEL,), "requires redis+sentinel:// or rediss+sentinel://")
    if kind == "cluster" and options.pop("db", 0) != 0:
        raise ValueError("it names a database, but a cluster has only database 0")
    sentinel = _sentinel(options, tls=tls) if kind == "sentinel" else {}
    settings = {name: value for name, value in options.items() if not name.startswith(SENTINEL)}
    return Address(cast("Any", kind or "node"), nodes, service, settings, sentinel, tls)


def _sentinel(options: Mapping[str, Any], *, tls: bool) -> dict[str, Any]:
    """Return the settings for connections to Sentinels; by default, these connections use the same
    TLS settings as the primary."""
    own = {
        name.removeprefix(SENTINEL): value
        for name, value in options.items()
        if name.startswith(SENTINEL)
    }
    if not own.setdefault("ssl", tls):
        named = {SENTINEL + name: None for name in own}
        _refuse(named, (f"{SENTINEL}ssl_",), "requires rediss+sentinel:// or sentinel_ssl=true")
        return own
    primary = {name: value for name, value in options.items() if name.startswith("ssl_")}
    for together in _INHERITED:
        if any(name in own for name in together):
            primary = {name: value for name, value in primary.items() if name not in together}
    check_tls({**primary, **own}, SENTINEL)
    return {**primary, **own}


def _refuse(options: Mapping[str, Any], beginnings: tuple[str, ...], why: str) -> None:
    for name in options:
        if name.startswith(beginnings):
            raise ValueError(f"{name}: {why}")
