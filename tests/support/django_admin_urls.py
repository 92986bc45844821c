"""The URLs of the tests' Django project, including the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/queue/", include("qsync.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
