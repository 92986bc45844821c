"""Delays before retries and reconnects: their bounds, their spread, and policies that misbehave."""

from __future__ import annotations

import logging
import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsync.backoff import Backoff, RetryPolicy, full_jitter, retry_delay

ERROR = RuntimeError("the payload is secret")


@settings(deadline=None)
@given(st.integers(-5, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_between_the_floor_and_the_cap(attempt: int, chance: float) -> None:
    assert 1 <= full_jitter(attempt, random=lambda: chance) <= 3600


def test_the_window_doubles_up_to_the_cap() -> None:
    longest = [full_jitter(attempt, random=lambda: 1.0) for attempt in range(1, 9)]
    assert longest == [100, 200, 400, 800, 1600, 3200, 3600, 3600]
    assert {full_jitter(attempt, random=lambda: 0.0) for attempt in range(1, 9)} == {1}


def test_a_window_smaller_than_the_floor_holds() -> None:
    assert full_jitter(1, base=0.2, random=lambda: 0.5) == 0.2
    assert full_jitter(9, cap=0.5, random=lambda: 0.5) == 0.5


@pytest.mark.faults(44)
@pytest.mark.parametrize("seed", range(5))
def test_a_retry_storm_is_spread(seed: int) -> None:
    """10,000 tasks fail at once, and go on failing: no second of the next 100 s sees over 2 %."""
    chance = random.Random(seed).random
    seconds: Counter[int] = Counter()
    for _ in range(10_000):
        time = 0.0
        for attempt in (1, 2, 3):
            time += full_jitter(attempt, random=chance)
            seconds[int(time)] += 1
    assert max(seconds[second] for second in range(100)) <= 200
    assert seconds[0] == 0


@pytest.mark.parametrize("attempt", range(1, 8))
def test_each_attempt_by_itself_is_spread(attempt: int) -> None:
    chance = random.Random(attempt).random
    seconds = Counter(int(full_jitter(attempt, random=chance)) for _ in range(10_000))
    assert max(seconds.values()) <= 200


def test_reconnects_begin_fast_and_end_at_the_cap() -> None:
    backoff = Backoff()
    for window in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert 0.05 <= backoff.next() <= window
    backoff.reset()
    assert backoff.next() <= 0.1


@pytest.mark.faults(43)
def test_reconnects_of_many_clients_are_spread() -> None:
    random.seed(1)
    clients = [Backoff() for _ in range(1000)]
    for _ in range(8):
        delays = [client.next() for client in clients]
    tenths = Counter(int(delay * 10) for delay in delays)
    assert max(tenths.values()) <= 50


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (5, 5),
        (0, 0),
        (0.5, 0.5),
        (timedelta(minutes=1), 60),
        (lambda attempt, error: attempt * 10, 20),
        (lambda attempt, error: timedelta(seconds=attempt), 2),
        (lambda attempt, error: len(str(error)), 21),
    ],
)
def test_a_policy_decides(
    policy: RetryPolicy, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    delay = retry_delay(policy, 2, ERROR)
    assert delay == seconds
    assert type(delay) is float
    assert caplog.messages == []


def test_without_a_policy_it_is_full_jitter(caplog: pytest.LogCaptureFixture) -> None:
    delays = [retry_delay(None, 2, ERROR) for _ in range(200)]
    assert min(delays) >= 1
    assert 100 < max(delays) <= 200
    assert caplog.messages == []


def raises(attempt: int, error: Exception) -> float:
    raise ValueError(f"cannot cope with: {error}")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (raises, "raised ValueError"),
        (lambda attempt: 5, "raised TypeError"),
        (lambda attempt, error: None, "gave NoneType"),
        (lambda attempt, error: f"secret {attempt}", "gave str"),
        (lambda attempt, error: True, "gave bool"),
        (lambda attempt, error: -1.5, "gave -1.5"),
        (lambda attempt, error: float("nan"), "gave nan"),
        (lambda attempt, error: 10**5000, "gave int"),
        (float("inf"), "gave inf"),
        (timedelta(seconds=-1), "gave datetime.timedelta"),
        ("5", "gave str"),
    ],
)
def test_a_policy_that_misbehaves_breaks_nothing(
    policy: RetryPolicy, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="qsync.backoff"):
        assert 1 <= retry_delay(policy, 1, ERROR) <= 100
    (message,) = caplog.messages
    assert said in message
    assert "secret" not in caplog.text
