"""The qsync app of a Django project, which can have only one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from django.conf import settings

from qsync.app import Qsync
from qsync.client import Client
from qsync.contrib.django.configuration import SettingError, configuration
from qsync.contrib.django.database import keep_connections_fresh
from qsync.contrib.django.outbox import run_relay
from qsync.contrib.django.sender import ProjectSender
from qsync.errors import ConfigError
from qsync.instrumentation import Extension
from qsync.mux import Mux, check_mux
from qsync.task import DEFAULT, Task

BACKEND = "qsync.contrib.django.QsyncBackend"

handlers: Final = Mux()
"""Handlers for the tasks of django.tasks."""

django_tasks: Final[dict[str, Any]] = {}
"""Tasks of django.tasks by the import path of their functions, which is the task type."""

limited_tasks: Final[dict[str, tuple[str, Sequence[str]]]] = {}
"""Queue and limit names, by task type, of those tasks of django.tasks that have limits."""


class DjangoTaskBuilder:
    """Builds tasks of django.tasks from the arguments that an operator enters, and checks them."""

    def build(self, type: str, value: Any) -> Task[Any] | None:
        """See TaskBuilder."""
        task = django_tasks.get(type)
        if task is None:
            return None
        # Import this only if a task is registered, because Django 5.2 has no django.tasks.
        from qsync.contrib.django import task_types

        return task_types.from_json(task, value)

    def check(self, type: str, payload: Any) -> None:
        """See TaskBuilder."""
        task = django_tasks.get(type)
        if task is not None:
            from qsync.contrib.django import task_types

            task_types.check_payload(task, payload)


_lock = threading.RLock()
_made: tuple[Qsync, ProjectSender] | None = None


def project_app() -> Qsync:
    """Return the project's app; the first call creates it. Raise SettingError if QSYNC is
    invalid."""
    return _project()[0]


def project_sender() -> ProjectSender:
    """Return the object that sends the project's tasks at the time that ENQUEUE selects."""
    return _project()[1]


def project_client() -> Client:
    """Return the blocking client of this process."""
    return project_app()._connections.shared()


def _project() -> tuple[Qsync, ProjectSender]:
    global _made
    with _lock:
        if _made is None:
            _made = _make()
        return _made


def _make() -> tuple[Qsync, ProjectSender]:
    configured = configuration()
    options = dict(configured.options)
    try:
        if (mux := options.pop("mux", None)) is not None:
            handlers.include(check_mux(mux))
        if "queues" not in options:
            options["queues"] = _queues()
        app = Qsync(configured.url, mux=handlers, **options)
        if configured.enqueue == "outbox" and not app._connections.nested["remember_ids"]:
            raise ConfigError("REMEMBER_IDS: with 0, a task of the outbox could run twice; omit it")
    except ConfigError as error:
        raise SettingError(f"QSYNC: {error}", "qsync.E004") from error
    sender = ProjectSender(app._connections)
    app.extend(Extension(server=keep_connections_fresh, sender=sender, builder=DjangoTaskBuilder()))
    app.extend(Extension(server=partial(run_relay, app._connections)))
    app.extend(Extension(server=lambda _: check_limits(app)))
    return app, sender


def check_limits(app: Qsync) -> None:
    """Raise ConfigError if a task of django.tasks names a limit that the app does not declare, or a
    limit that tasks of another queue use."""
    for type, (queue, names) in limited_tasks.items():
        app._declared.use(type, queue, names)
    app._declared.check()


def _queues() -> list[str]:
    """Return the project's queues: "default", and the queues of its django.tasks backends."""
    backends = getattr(settings, "TASKS", {}).values()
    own = [backend for backend in backends if backend.get("BACKEND") == BACKEND]
    names = {name: None for backend in own for name in backend.get("QUEUES", [])}
    return list({DEFAULT: None, **names})
