"""qsync in a Django project. Needs the extra `django`; docs/django.md shows a whole project.

    INSTALLED_APPS = [..., "qsync.contrib.django"]
    QSYNC = {"URL": "redis://localhost:6379", "PREFIX": "shop", "ENQUEUE": "on_commit"}

    from qsync.contrib.django import app          # in tasks.py of an installed app

    @app.task
    def send(invoice: int) -> None: ...

`app` is the project's `Qsync`. It is created from the settings when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsync.instrumentation import missing

try:
    import django as _django  # noqa: F401 - the extra is there
except ModuleNotFoundError as _error:
    raise missing(_error, "django") from None

if TYPE_CHECKING:
    from qsync.app import Qsync
    from qsync.contrib.django.backend import QsyncBackend, task

__all__ = ["QsyncBackend", "app", "task"]

app: Qsync
"""The Qsync of the project, created from the setting QSYNC when it is first used."""


def __getattr__(name: str) -> Any:
    """Create names on first use, because they need the settings and Django imports this package
    earlier."""
    if name == "app":
        from qsync.contrib.django.project import project_app

        return project_app()
    if name in ("QsyncBackend", "task"):
        from qsync.contrib.django import backend

        return getattr(backend, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
