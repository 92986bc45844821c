"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxy
from tests.conftest import NEEDS
from tests.guarantees.conftest import history, launch, measured
from tests.support.stores import Store, available

__all__ = ["history", "launch", "measured"]


@pytest.fixture(scope="module")
def durable() -> Iterator[Store]:
    """Yield a Valkey that loses no data when it is killed; the tests of a module share it."""
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Store("valkey", aof=True) as store:
        yield store


@pytest.fixture
def proxy(durable: Store) -> Iterator[Proxy]:
    """Yield a proxy in front of the `durable` store; the proxy can cause faults."""
    with Proxy(durable.port) as proxy:
        yield proxy
