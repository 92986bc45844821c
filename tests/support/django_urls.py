"""The URLs of the tests' Django project."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def login(request: HttpRequest) -> HttpResponse:
    return HttpResponse("sign in")


urlpatterns = [
    path("accounts/login/", login),
    path("admin/queue/", include("qsync.contrib.django.urls")),
]
