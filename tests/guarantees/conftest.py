"""Fixtures for the tests of the guarantees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import History, ServerProcess

Launch = Callable[..., ServerProcess]
Measured = Callable[[str, object], None]


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Return the history that the servers of a test write."""
    return History(tmp_path / "history")


@pytest.fixture
def launch(prefix: str, history: History) -> Iterator[Launch]:
    """Return a function that starts servers in processes; they end with the test."""
    started: list[ServerProcess] = []

    def launch(url: str, *, ready: bool = True, **config: Any) -> ServerProcess:
        process = ServerProcess(url, prefix, history, **config)
        started.append(process)
        process.start()
        return process.wait_ready() if ready else process

    yield launch
    for process in started:
        process.kill()


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Return a function that prints a figure and adds it to the report."""

    def tell(name: str, value: object) -> None:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name}: {shown}")  # noqa: T201 - figures are what these tests are for
        record_property(name, shown)

    return tell
