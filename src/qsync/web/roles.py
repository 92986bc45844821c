"""Roles of users: `view` allows no changes, `operate` all except deletions, `delete` all changes.

ROLES maps each route that makes a change to the role that it requires.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, cast, get_args

from starlette.requests import Request

from qsync.errors import ConfigError
from qsync.value_text import shorten
from qsync.web.translation import _, marked

Role = Literal["view", "operate", "delete"]
"""The permissions of a user; each role includes the roles before it."""

RoleOf = Callable[[Request], Role | Awaitable[Role]]
"""The host app's function that returns the role of a request's user."""

RANK: Final[dict[str, int]] = {role: rank for rank, role in enumerate(get_args(Role))}

NAMES: Final[dict[str, str]] = {
    "view": marked("view"),
    "operate": marked("operate"),
    "delete": marked("delete"),
}

ROLES: Final[dict[str, Role]] = {
    "/queue/pause": "operate", "/queue/resume": "operate", "/queue/purge": "delete",
    "/queue/delete": "delete", "/type/pause": "operate", "/type/resume": "operate",
    "/limit/set": "operate", "/limit/reset": "operate", "/limit/open": "operate",
    "/queue/target": "operate", "/dead/acknowledge": "operate",
    "/queue/bounds": "operate", "/queue/bounds/reset": "operate", "/queue/weight": "operate",
    "/queue/weight/reset": "operate", "/task/run": "operate", "/task/reschedule": "operate",
    "/task/edit": "operate", "/task/stack": "operate", "/task/cancel": "operate",
    "/task/delete": "delete", "/tasks/run": "operate", "/tasks/cancel": "operate",
    "/tasks/delete": "delete", "/search/act": "operate", "/dead/run": "operate",
    "/dead/delete": "delete", "/server/quiet": "operate", "/server/stop": "operate",
    "/schedule/put": "operate", "/schedule/delete": "delete", "/schedule/pause": "operate",
    "/schedule/resume": "operate", "/schedule/trigger": "operate", "/schedule/forget": "delete",
    "/schedule/backfill": "operate",
}  # fmt: skip
"""Role that each route requires. The route /search/act also requires `delete` to delete tasks."""


def check_role(role: RoleOf | Role | None) -> RoleOf | Role:
    """Check the option `role` and return it; None becomes `delete`. Raise ConfigError if the option
    is invalid."""
    if role is None:
        return "delete"
    if callable(role) or (isinstance(role, str) and role in RANK):
        return role
    raise ConfigError(
        f"role: {shorten(role)} is neither a function of the request nor one of {', '.join(RANK)}"
    )


async def role_of(role: RoleOf | Role, request: Request) -> Role:
    """Return the role of a user; `view` if the function returns an unknown value."""
    if not callable(role):
        return role
    answer: Any = role(request)
    if inspect.isawaitable(answer):
        answer = await answer
    valid = isinstance(answer, str) and answer in RANK
    return cast("Role", answer) if valid else "view"


def given_role(request: Request) -> Role:
    """Return the role that the guard has recorded for a request."""
    return cast("Role", request.scope.get("qsync.role", "view"))


def allows(role: Role, path: str) -> bool:
    """Return whether a role may submit the form at a path; a form without an entry in ROLES changes
    nothing, so every role may submit it."""
    return path not in ROLES or RANK[role] >= RANK[ROLES[path]]


def refusal(role: Role, route: str) -> str | None:
    """Return why a role may not use a route for a change; None if it may."""
    return lacking(role, ROLES.get(route, "delete"))


def lacking(role: Role, needed: Role) -> str | None:
    """Return a message if a role lacks the rights of another role; None if it has them."""
    if RANK[role] >= RANK[needed]:
        return None
    return _(
        "Your role, %(role)s, does not allow this change, which requires the role %(needed)s.",
        role=_(NAMES[role]), needed=_(NAMES[needed]),
    )  # fmt: skip
