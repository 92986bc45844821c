"""Human-readable numbers, durations, sizes and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qsync.formatting import (
    coarse_duration,
    count,
    duration,
    local_time,
    ordinal,
    percent,
    plural,
    relative,
    short_count,
    size,
    utc_time,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
     (21, "21st"), (112, "112th"), (412, "412th"), (1003, "1,003rd")],
)  # fmt: skip
def test_ordinals_have_their_suffix(number: int, text: str) -> None:
    assert ordinal(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.01 ms"), (0.0004, "0.4 ms"), (0.0123, "12 ms"), (0.0996, "0.1 s"),
     (0.25, "0.25 s"), (1, "1 s"), (1.04, "1 s"), (1.5, "1.5 s"), (3, "3 s"),
     (9.96, "10 s"),     (12.7, "13 s"), (59.6, "1 min"), (250, "4 min 10 s"),
     (10_800, "3 h"), (10_805, "3 h"), (190_800, "2 d 5 h"), (172_800, "2 d")],
)  # fmt: skip
def test_durations_have_up_to_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_coarse_duration_has_one_unit() -> None:
    assert [coarse_duration(seconds) for seconds in (1.5, 250, 190_800)] == [
        "1.5 s",
        "4 min",
        "2 d",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.3, "now"),
        (-0.3, "now"),
        (5.2, "in 5 s"),
        (-250.1, "4 min 10 s ago"),
        (-7200.2, "2 h ago"),
    ],
)
def test_relative_times_name_past_and_future(seconds: float, text: str) -> None:
    assert relative(datetime.now(UTC) + timedelta(seconds=seconds)) == text


def test_times_are_shown_to_the_second() -> None:
    time = datetime(2026, 3, 1, 12, 30, 5, 700_000, UTC)
    assert utc_time(time) == "2026-03-01 12:30:05 UTC"
    assert local_time(time).startswith("2026-0")
    assert local_time(datetime.max.replace(tzinfo=UTC)).startswith("9999-12-31")


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_300_000, "1.2 MiB"),
     (5 * 2**40, "5,120.0 GiB")],
)  # fmt: skip
def test_sizes_use_binary_units(number: int | None, text: str) -> None:
    assert size(number) == text


def test_counts_have_separators() -> None:
    assert count(1_234_567) == "1,234,567"
    assert [plural(number, "task") for number in (0, 1, 1234)] == [
        "0 tasks",
        "1 task",
        "1,234 tasks",
    ]
    numbers = (0.25, 9, 987, 12_345, 4_500_000, 2e9)
    assert [short_count(number) for number in numbers] == [
        "0.25",
        "9",
        "987",
        "12.3k",
        "4.5M",
        "2G",
    ]


def test_progress_shows_share_and_total() -> None:
    shown = [percent(progress) for progress in ((3.0, 10.0), (7.0, 0.0), (1_234_567.0, 0.0))]
    assert shown == ["30%", "7", "1234567"]


def test_unknown_values_are_shown_as_empty() -> None:
    assert [count(None), percent(None), relative(None), utc_time(None)] == [""] * 4
