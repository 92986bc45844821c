"""The URLs of the Django project of the tests."""

from __future__ import annotations

from typing import Any

urlpatterns: list[Any] = []
