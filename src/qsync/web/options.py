"""Checks the options of the dashboard, when it is created or mounted. Does no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from qsync.errors import ConfigError
from qsync.keys import NAME
from qsync.value_text import shorten
from qsync.web.attempts import check_trace_url
from qsync.web.auth import Access, Auth, access_of
from qsync.web.language import Language, check_language
from qsync.web.pages import Mask
from qsync.web.roles import Role, RoleOf, check_role

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""Default time limit of a request, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """The options of a dashboard after all checks."""

    access: Access
    signs_in: bool
    """Whether users sign in with a token."""

    read_only: bool
    mask: Mask | None
    hosts: Collection[str] | None
    """Allowed names in the Host header, in lower case; None allows any name."""

    timeout: float
    language: Language | None
    trace_url: str | None
    role: RoleOf | Role


def check_options(
    *,
    token: str | None = None,
    view_token: str | None = None,
    auth: Auth | Literal["host"] | None = None,
    read_only: bool = True,
    mask: Mask | None = None,
    hosts: Collection[str] | None = None,
    timeout: float = TIMEOUT_S,
    language: str | None = None,
    trace_url: str | None = None,
    role: RoleOf | Role | None = None,
) -> DashboardOptions:
    """Return the options of `create_app` after all checks; raise ConfigError if one is invalid."""
    if not isinstance(read_only, bool):
        raise ConfigError(f"read_only: {shorten(read_only)} is neither True nor False")
    if mask is not None and not callable(mask):
        raise ConfigError(
            f"mask: {shorten(mask)} is not a function; pass a function of a task's type and payload"
        )
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ConfigError(f"timeout: {shorten(timeout)} is not a number of seconds above 0")
    return DashboardOptions(
        access=access_of(token, auth, view_token), signs_in=token is not None, read_only=read_only,
        mask=mask, hosts=_check_hosts(hosts), timeout=timeout, language=check_language(language),
        trace_url=check_trace_url(trace_url), role=check_role(role),
    )  # fmt: skip


def _check_hosts(hosts: Any) -> frozenset[str] | None:
    """Return the names in lower case, without the brackets of an IPv6 address."""
    if hosts is None:
        return None
    if isinstance(hosts, str):
        raise ConfigError(f"hosts: {shorten(hosts)} is a string; pass a list of names")
    if not isinstance(hosts, Collection) or not all(isinstance(host, str) for host in hosts):
        raise ConfigError(f"hosts: {shorten(hosts)} is not a list of names")
    return frozenset(host.strip("[]").lower() for host in hosts)


def check_others(others: Mapping[str, T] | None, what: str) -> dict[str, T]:
    """Return the option `others` as a dict, empty for None; raise ConfigError unless it maps valid
    names to values. `what` names the values in the message, e.g. "inspectors"."""
    if others is None:
        return {}
    if not isinstance(others, Mapping):
        raise ConfigError(f"others: {shorten(others)} is not a mapping of names to {what}")
    for name in others:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in (".", ".."):
            raise ConfigError(
                f"others: {shorten(name)} is not a valid name; use letters, digits, _ . and -"
            )
    return dict(others)
