"""Reads and checks the setting QSYNC of a Django project."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, get_args

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from qsync.app import Qsync
from qsync.connections import URL
from qsync.server.config import ServerOptions
from qsync.suggestions import did_you_mean
from qsync.value_text import shorten

Enqueue = Literal["on_commit", "now", "outbox"]

ENQUEUE: Final[tuple[Enqueue, ...]] = get_args(Enqueue)

OWN: Final = ("URL", "ENQUEUE", "DATABASE", "DASHBOARD")
"""Settings that are not passed on to Qsync as the option of the same name."""

IMPORTED: Final = ("MUX", "LIFESPAN", "ON_ERROR", "RETRY_DELAY")
"""Settings whose value may be given as a dotted path, which is then imported."""

DASHBOARD_LANGUAGES: Final = ("en", "ru")
"""Languages of the dashboard; copied here because `qsync.web.language` needs the extra `web`."""

DASHBOARD: Final = ("READ_ONLY", "MASK", "LANGUAGE", "TRACE_URL", "ROLE")

ROLES: Final = ("view", "operate", "delete")
"""Roles of the dashboard's users; copied here because `qsync.web.roles` needs the extra `web`."""


TRACE_URL: Final = re.compile(r"https?://.*\{trace_id\}")


class SettingError(ImproperlyConfigured):
    """Raised if the setting QSYNC is invalid. `code` is the code of the system check that reports
    it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Configuration:
    """The setting QSYNC after all checks."""

    url: Any
    options: Mapping[str, Any]
    """Keyword arguments for Qsync."""

    enqueue: Enqueue
    database: str
    """Alias of the database for whose commits enqueues wait."""

    read_only: bool
    mask: Any
    language: str | None
    trace_url: str | None
    role: Any
    """Role of the dashboard's users, or a function that takes the request and returns the role."""


@cache
def app_options() -> tuple[str, ...]:
    """Return the names of the Qsync options as they are written in settings, e.g. `PREFIX`."""
    parameters = inspect.signature(Qsync.__init__).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return tuple(name.upper() for name in (*own, *ServerOptions.__annotations__))


@cache
def configuration() -> Configuration:
    """Check the setting QSYNC and return it; raise SettingError if it is invalid."""
    setting = getattr(settings, "QSYNC", {})
    if not isinstance(setting, Mapping):
        raise SettingError(f"QSYNC: {shorten(setting)} is not a dict", "qsync.E002")
    option_names = (*OWN, *app_options())
    if unknown := [str(name) for name in setting if name not in option_names]:
        names = ", ".join(map(shorten, unknown))
        hint = did_you_mean(unknown[0].upper(), option_names) if len(unknown) == 1 else ""
        hint = hint or f"; the options are {', '.join(option_names)}"
        raise SettingError(f"QSYNC: no such option: {names}{hint}", "qsync.E002")
    url = setting.get("URL") or os.environ.get(URL)
    if not url:
        raise SettingError(
            f'QSYNC: the URL is missing; set QSYNC = {{"URL": "redis://localhost:6379"}}, or set '
            f"{URL} in the environment", "qsync.E001",
        )  # fmt: skip
    dashboard = _dashboard(setting.get("DASHBOARD", {}))
    return Configuration(
        url,
        {name.lower(): _imported(name, setting[name]) for name in setting if name not in OWN},
        _enqueue(setting.get("ENQUEUE", "on_commit")),
        _database(setting.get("DATABASE", "default")),
        dashboard.get("READ_ONLY", True),
        _mask(dashboard.get("MASK")),
        dashboard.get("LANGUAGE"),
        dashboard.get("TRACE_URL"),
        _role(dashboard.get("ROLE", "delete")),
    )


def _enqueue(value: Any) -> Enqueue:
    for mode in ENQUEUE:
        if value == mode:
            return mode
    raise SettingError(
        f"QSYNC: ENQUEUE: {shorten(value)} is neither {', '.join(map(repr, ENQUEUE[:-1]))} nor "
        f"{ENQUEUE[-1]!r}", "qsync.E003",
    )  # fmt: skip


def _database(alias: Any) -> str:
    if isinstance(alias, str) and (alias in settings.DATABASES or alias == "default"):
        return alias
    names = ", ".join(map(repr, settings.DATABASES))
    raise SettingError(
        f"QSYNC: DATABASE: {shorten(alias)} is not in DATABASES, which has {names}", "qsync.E004"
    )


def _dashboard(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or any(name not in DASHBOARD for name in value):
        raise SettingError(
            f"QSYNC: DASHBOARD: {shorten(value)} is not a dict with {', '.join(DASHBOARD)}",
            "qsync.E004",
        )
    if type(value.get("READ_ONLY", True)) is not bool:
        shown = shorten(value["READ_ONLY"])
        raise SettingError(
            f"QSYNC: DASHBOARD: READ_ONLY: {shown} is neither True nor False", "qsync.E004"
        )
    if value.get("LANGUAGE") not in (None, *DASHBOARD_LANGUAGES):
        shown, languages = shorten(value["LANGUAGE"]), " or ".join(map(repr, DASHBOARD_LANGUAGES))
        raise SettingError(f"QSYNC: DASHBOARD: LANGUAGE: {shown} is not {languages}", "qsync.E004")
    traces = value.get("TRACE_URL")
    if traces is not None and not (isinstance(traces, str) and TRACE_URL.match(traces)):
        raise SettingError(
            f"QSYNC: DASHBOARD: TRACE_URL: {shorten(traces)} is not an address with {{trace_id}}; "
            "write https://traces.example.com/trace/{trace_id}",
            "qsync.E004",
        )
    return value


def _mask(value: Any) -> Any:
    """Return the function, or the function that a dotted path names."""
    mask = _import("DASHBOARD: MASK", value) if isinstance(value, str) else value
    if mask is not None and not callable(mask):
        raise SettingError(
            f"QSYNC: DASHBOARD: MASK: {shorten(value)} is neither a function nor its dotted path",
            "qsync.E004",
        )
    return mask


def _role(value: Any) -> Any:
    """Return the role, or the function that a dotted path names."""
    is_path = isinstance(value, str) and "." in value
    role = _import("DASHBOARD: ROLE", value) if is_path else value
    if not callable(role) and role not in ROLES:
        raise SettingError(
            f"QSYNC: DASHBOARD: ROLE: {shorten(value)} is neither a function of the request nor "
            f"one of {', '.join(ROLES)}",
            "qsync.E004",
        )
    return role


def _imported(name: str, value: Any) -> Any:
    """Return the object that a dotted path names; return any other value unchanged."""
    if name == "MIDDLEWARE" and isinstance(value, Iterable) and not isinstance(value, str):
        return [_import(name, item) if isinstance(item, str) else item for item in value]
    if name in IMPORTED and isinstance(value, str):
        return _import(name, value)
    return value


def _import(name: str, path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        reason = _circle(path.rpartition(".")[0], error.name) or error
        raise SettingError(f"QSYNC: {name}: {reason}", "qsync.E004") from error


def _circle(module: str, failed: str | None) -> str:
    """Return why a module cannot be used while one that it imports, or the module itself, waits for
    the app; "" if none does.

    `failed` is the module that the import error names.
    """
    running = {
        frame.f_globals.get("__name__")
        for frame, _ in traceback.walk_stack(None)
        if frame.f_code.co_name == "<module>"
    }
    advice = "move the function to a module that does not import the app"
    if module in running:
        return (
            f"the module {module!r} imports the app of qsync, so it is only partly imported while "
            f"the app is created; {advice}"
        )
    if failed in running:
        return (
            f"the module {module!r} imports {failed!r}, which imports the app of qsync, so "
            f"{failed!r} is only partly imported while the app is created; {advice}, directly or "
            "through another module"
        )
    return ""


def _on_change(*, setting: str, **_: Any) -> None:
    if setting in ("QSYNC", "DATABASES"):
        configuration.cache_clear()


setting_changed.connect(_on_change, dispatch_uid="qsync.configuration")
