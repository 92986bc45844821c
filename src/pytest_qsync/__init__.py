"""Pytest plugin with the fixtures `qsync` and `qsync_sync`; see docs/testing.md.

It is a separate module, so that pytest does not import qsync for tests that do not use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qsync import Qsync
    from qsync.testing import Kit, SyncKit


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini options."""
    parser.addini("qsync_app", "app under test, e.g. shop.tasks:app")
    parser.addini("qsync_test_url", "store for tests; without one, a private one is started")


@pytest.fixture
def qsync_app(request: pytest.FixtureRequest) -> Qsync:
    """The app under test, from the ini option qsync_app. Override this fixture to use another
    app."""
    target = request.config.getini("qsync_app")
    if not target:
        raise pytest.UsageError(
            'no app under test: set qsync_app = "shop.tasks:app" in the ini file of pytest, or '
            "define a fixture qsync_app that returns it"
        )
    from qsync.worker.load_app import TargetError, load

    try:
        return load(target)
    except TargetError as error:
        raise pytest.UsageError(f"qsync_app: {error}") from error


@pytest.fixture
def qsync(request: pytest.FixtureRequest, qsync_app: Qsync) -> Iterator[Kit]:
    """The app of an async test: `assert_enqueued`, `enqueued`, `drain`, `advance`, `crash`."""
    from qsync.testing import Kit

    yield from _opened(Kit, request, qsync_app)


@pytest.fixture
def qsync_sync(request: pytest.FixtureRequest, qsync_app: Qsync) -> Iterator[SyncKit]:
    """Like the fixture `qsync`, for plain tests."""
    from qsync.testing import SyncKit

    yield from _opened(SyncKit, request, qsync_app)


def _opened(kind: Any, request: pytest.FixtureRequest, app: Qsync) -> Iterator[Any]:
    url = os.environ.get("QSYNC_TEST_URL") or request.config.getini("qsync_test_url")
    with kind(app, url=url or "") as kit:
        yield kit
