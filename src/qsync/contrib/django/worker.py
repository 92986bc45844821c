"""The app of a Django project for `qsync worker`: qsync.contrib.django.worker:app.

`manage.py qsync_worker` runs this app. The module needs DJANGO_SETTINGS_MODULE, as every Django
program does.
"""

from __future__ import annotations

from typing import Final

import django
from django.apps import apps

from qsync.contrib.django.project import project_app

__all__ = ["app"]

if not apps.ready:
    django.setup()

app: Final = project_app()
