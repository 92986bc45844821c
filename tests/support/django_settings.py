"""Settings of a Django project whose programs the tests start. Environment variables name the
stores of the project."""

from __future__ import annotations

import os
from importlib.util import find_spec

SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "HOST": os.environ["SHOP_DATABASE"],
        "USER": os.environ["SHOP_USER"],
        "CONN_MAX_AGE": None if os.environ.get("SHOP_PERSISTENT") else 0,
        "CONN_HEALTH_CHECKS": True,
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    *([] if find_spec("django.tasks") else ["django_tasks"]),
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "qsync.contrib.django",
    "tests.support.django_shop",
]
QSYNC = {
    "URL": os.environ["SHOP_STORE"],
    "PREFIX": "django-worker",
    "ENQUEUE": os.environ.get("SHOP_ENQUEUE", "on_commit"),
}
TASKS = {
    "default": {
        "BACKEND": "qsync.contrib.django.QsyncBackend",
        "QUEUES": ["default", "mail"],
    }
}
USE_TZ = True
