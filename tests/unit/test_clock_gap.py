"""Local times that do not exist are refused, not moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest
import typer

from qsync.cli.clock_gap import clock_gap
from qsync.cli.options import moment_of


@pytest.fixture(params=["America/New_York", "Australia/Lord_Howe", "UTC"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_time_that_clocks_skip_is_refused(zone: str) -> None:
    day, begins, ends = {
        "America/New_York": ("2027-03-14", "02:00", "03:00"),
        "Australia/Lord_Howe": ("2026-10-04", "02:00", "02:30"),
        "UTC": ("2027-03-14", "", ""),
    }[zone]
    if not begins:
        assert clock_gap(datetime.fromisoformat(f"{day}T02:15")) is None
        return
    for text in (f"{day}T{begins}", f"{day}T02:15", f"{day}T02:29:59.5"):
        with pytest.raises(typer.BadParameter) as refused:
            moment_of(text)
        assert f"clocks are put forward from {begins} to {ends}" in str(refused.value)
    assert clock_gap(datetime.fromisoformat(f"{day}T{ends}")) is None
    assert clock_gap(datetime.fromisoformat(f"{day}T01:59:59")) is None
    with_offset = f"{day}T02:15+00:00"
    assert moment_of(with_offset) == datetime.fromisoformat(with_offset)


def test_time_that_occurs_twice_is_the_first_one(zone: str) -> None:
    day, offset = {
        "America/New_York": ("2027-11-07", "-04:00"),
        "Australia/Lord_Howe": ("2027-04-04", "+11:00"),
        "UTC": ("2027-04-04", "+00:00"),
    }[zone]
    assert moment_of(f"{day}T01:45").isoformat() == f"{day}T01:45:00{offset}"
