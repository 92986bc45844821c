"""System checks for the setting QSYNC and for the tasks of a project.

qsync.E001  there is no URL
qsync.E002  QSYNC has an unknown option
qsync.E003  ENQUEUE is invalid
qsync.E004  another option is invalid
qsync.E007  a task names a limit that the app does not declare, or that tasks of another queue use
qsync.W001  a task in tasks.py of an installed app belongs to another Qsync
qsync.W002  the store does not answer (only with --deploy)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from qsync.contrib.django.configuration import SettingError, configuration
from qsync.contrib.django.project import check_limits, project_app
from qsync.errors import ConfigError, QsyncError
from qsync.task_function import TaskFunction

STORE_TIMEOUT_S = 2.0
"""Maximum time to wait for the store in `check --deploy`, in seconds."""


def register_checks() -> None:
    """Register the checks with `manage.py check`."""
    checks.register(check_settings, "qsync")
    checks.register(check_tasks, "qsync")
    checks.register(check_task_limits, "qsync")
    checks.register(check_store, "qsync", deploy=True)


def check_settings(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Return an error if QSYNC is invalid."""
    try:
        configuration()
        project_app()
    except SettingError as error:
        return [checks.Error(str(error), id=error.code)]
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="qsync.E004")]
    return []


def check_tasks(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Return a warning for each task that `manage.py qsync_worker` would not run."""
    try:
        own_handlers = {id(task.handler) for task in project_app().functions.values()}
    except ImproperlyConfigured:
        return []
    return [
        checks.Warning(
            f"{path} is a task of another Qsync: manage.py qsync_worker does not run it.",
            hint="Use `from qsync.contrib.django import app` and @app.task.",
            id="qsync.W001",
        )
        for path, task in _functions()
        if id(task.handler) not in own_handlers
    ]


def check_task_limits(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Return an error if a task names a limit that the project does not declare, or that tasks of
    another queue use."""
    try:
        check_limits(project_app())
    except ImproperlyConfigured:
        return []
    except ConfigError as error:
        return [checks.Error(str(error), id="qsync.E007")]
    return []


def _functions() -> Iterator[tuple[str, TaskFunction[..., Any, ..., Any]]]:
    for config in apps.get_app_configs():
        module = sys.modules.get(f"{config.name}.tasks")
        if module is None:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, TaskFunction) and value.__module__ == module.__name__:
                yield f"{value.__module__}.{name}", value


def check_store(app_configs: Any, **_: Any) -> list[checks.CheckMessage]:
    """Return a warning if the store does not answer."""
    try:
        app = project_app()
        configured = configuration()
    except ImproperlyConfigured:
        return []
    try:
        type(app)(configured.url, prefix=app.prefix, patience=STORE_TIMEOUT_S).ping()
    except QsyncError as error:
        return [checks.Warning(f"The store does not answer: {error}", id="qsync.W002")]
    return []
