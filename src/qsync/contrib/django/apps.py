"""The Django app: system checks, and the tasks of the other apps."""

from __future__ import annotations

import os
import sys

from django.apps import AppConfig
from django.conf import ENVIRONMENT_VARIABLE
from django.core.checks import Error
from django.utils.module_loading import autodiscover_modules

from qsync.contrib.django.configuration import SettingError
from qsync.server import process_pool_child


class QsyncConfig(AppConfig):
    """Imports `tasks.py` of every installed app once all models are loaded."""

    name = "qsync.contrib.django"
    label = "qsync"
    verbose_name: str = "qsync"
    default_auto_field: str = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, prepare handler processes, and find the tasks."""
        from qsync.contrib.django import checks
        from qsync.contrib.django.database import fresh_connections

        checks.register_checks()
        if fresh_connections not in process_pool_child.around:
            process_pool_child.around.append(fresh_connections)
        # Load the settings in child processes, unless the program configured them in code, because
        # then there is no module to load.
        named = ENVIRONMENT_VARIABLE in os.environ
        if named and set_up not in process_pool_child.at_start:
            process_pool_child.at_start.append(set_up)
        _import_tasks()


def _import_tasks() -> None:
    """Import the tasks; under `manage.py check`, report an invalid QSYNC as a failed check.

    Task modules import the app of the project, so an invalid setting fails here, before the checks
    run. Other commands and programs raise the error.
    """
    try:
        autodiscover_modules("tasks")
    except SettingError as error:
        if sys.argv[1:2] != ["check"]:
            raise
        shown = Error(str(error), id=error.code)
        raise SystemExit(
            f"SystemCheckError: System check identified some issues:\n\nERRORS:\n{shown}\n\n"
            "System check identified 1 issue (0 silenced)."
        ) from None


def set_up() -> None:
    """Load the settings and the apps; a new process calls this before it imports a handler."""
    import django

    django.setup()
