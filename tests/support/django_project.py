"""The Django project of the test process. A process can have only one."""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PREFIX = "django-shop"


@cache
def set_up(url: str) -> None:
    """Configure Django for a store and a new SQLite database, once per process."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    folder = Path(tempfile.mkdtemp(prefix="qsync-django-"))
    settings.configure(
        SECRET_KEY="of the tests",
        ALLOWED_HOSTS=["*"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "shop.db"},
            "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "other.db"},
        },
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            *([] if find_spec("django.tasks") else ["django_tasks"]),
            "qsync.contrib.django",
            "tests.support.django_shop",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[TEMPLATES],
        STATIC_URL="static/",
        ROOT_URLCONF="tests.support.django_urls",
        QSYNC=options(url),
        TASKS=TASKS,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


TEMPLATES: dict[str, Any] = {
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]
    },
}

TASKS: dict[str, Any] = {
    "default": {
        "BACKEND": "qsync.contrib.django.QsyncBackend",
        "QUEUES": ["default", "mail"],
    }
}


def options(url: str, **changes: Any) -> dict[str, Any]:
    """Return the setting QSYNC, with changes."""
    return {"URL": url, "PREFIX": PREFIX, "PATIENCE": 3.0, **changes}
