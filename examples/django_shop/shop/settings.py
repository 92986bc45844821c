"""The settings. The database is SQLite, or PostgreSQL with SHOP_DATABASE=postgresql."""

import getpass
import os
from importlib.util import find_spec
from pathlib import Path

from shop import postgresql

BASE = Path(__file__).parent.parent

SECRET_KEY = "for trying only"  # noqa: S105 - every copy of this example has it
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "static/"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    *([] if find_spec("django.tasks") else ["django_tasks"]),  # Django 5.2
    "qsync.contrib.django",
    "shop",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
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
]

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE / "shop.db"}}
if os.environ.get("SHOP_DATABASE") == "postgresql":
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": postgresql.account() or getpass.getuser(),
        "HOST": str(postgresql.FOLDER),
    }

QSYNC = {
    "URL": os.environ.get("QSYNC_URL") or "embedded://",
    "PREFIX": "django-shop",
    "ENQUEUE": os.environ.get("SHOP_ENQUEUE", "on_commit"),
}

TASKS = {
    "default": {
        "BACKEND": "qsync.contrib.django.QsyncBackend",
        "QUEUES": ["default", "mail"],
    }
}
