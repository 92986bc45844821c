"""Fixtures with a Django project and a PostgreSQL server for the tests of qsync.contrib."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import Qsync
from tests.support import django_project
from tests.support.postgres import Postgres
from tests.support.stores import Store


@pytest.fixture
def project(valkey: Store) -> Iterator[Qsync]:
    """Yield the app of the Django project, with an empty store."""
    django_project.set_up(valkey.url)
    from django.db import connections

    from qsync.contrib.django import app
    from qsync.contrib.django.dashboard import close_dashboard
    from tests.support.django_shop.models import Order

    valkey.flush()
    Order.objects.all().delete()
    yield app
    close_dashboard()
    app.close()
    connections.close_all()


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with Postgres() as started:
        yield started
