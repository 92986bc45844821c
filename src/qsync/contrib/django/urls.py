"""The URLs of the dashboard: path("admin/queue/", include("qsync.contrib.django.urls")).

Put it before `path("admin/", admin.site.urls)`, which matches every path below `admin/`.
"""

from __future__ import annotations

from typing import Final

from django.urls import re_path

from qsync.contrib.django.dashboard import dashboard

app_name = "qsync"

urlpatterns: Final = [re_path(r"^(?P<rest>.*)$", dashboard, name="dashboard")]
