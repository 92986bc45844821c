"""Delays before retries and reconnects: their bounds, their spread, and delay functions that
misbehave."""

from __future__ import annotations

import logging
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsync import ConfigError, ExponentialBackoff, InvalidTask, Task, codec
from qsync.backoff import WINDOWS_S, Backoff, Delays, RetryPolicy, default_delay, retry_delay
from qsync.message import StoredOptions
from qsync.server.outcome import policy_of
from qsync.task import options_of

ERROR = RuntimeError("the payload is secret")


@settings(deadline=None)
@given(st.integers(-5, 10**6), st.floats(0, 1, exclude_max=True))
def test_default_delay_is_within_the_window_of_its_attempt(attempt: int, chance: float) -> None:
    least, most = WINDOWS_S[min(max(attempt, 1), 5) - 1]
    assert least <= default_delay(attempt, random=lambda: chance) <= most


def test_default_windows_grow_from_seconds_to_an_hour() -> None:
    """A short failure is retried within seconds; in an outage, delays grow."""
    least = [default_delay(attempt, random=lambda: 0.0) for attempt in range(1, 8)]
    most = [default_delay(attempt, random=lambda: 1.0) for attempt in range(1, 8)]
    seconds = [list(pair) for pair in zip(least, most, strict=True)]
    assert seconds[:3] == [[1, 2], [15, 30], [180, 300]]
    assert seconds[3:] == [[600, 1200]] + 3 * [[1800, 3600]]


@pytest.mark.faults(44)
@pytest.mark.parametrize("seed", range(5))
def test_retries_after_a_mass_failure_are_spread(seed: int) -> None:
    """The retries of 10,000 tasks that failed at the same time are spread evenly over each window,
    and the windows grow. The first window is under a second, so that a short failure costs little.
    In the third window, 2 % of the tasks are retried per second."""
    chance = random.Random(seed).random
    for attempt, (least, most) in enumerate(WINDOWS_S, 1):
        width = (most - least) / 50
        parts = Counter(
            int((default_delay(attempt, random=chance) - least) / width) for _ in range(10_000)
        )
        assert max(parts.values()) <= 300, "a fiftieth of the window gets about 200 tasks"
        assert len(parts) == 50


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (ExponentialBackoff(jitter=0), [1, 4, 16, 64, 256, 1024, 3600, 3600]),
        (ExponentialBackoff(first=2, factor=10, longest=150, jitter=0), [2, 20, 150, 150]),
        (ExponentialBackoff(first=5, factor=1, jitter=0), [5, 5, 5]),
        ([1, timedelta(minutes=1), 0.5], [1, 60, 0.5, 0.5, 0.5]),
        ((7,), [7, 7]),
    ],
)
def test_delay_of_each_attempt_is_computed(policy: RetryPolicy, seconds: list[float]) -> None:
    found = [retry_delay(policy, attempt, ERROR) for attempt in range(1, len(seconds) + 1)]
    assert found == seconds
    assert retry_delay(policy, 10**6, ERROR) == seconds[-1]


def test_exponential_backoff_takes_off_up_to_its_jitter() -> None:
    policy = ExponentialBackoff(first=100, jitter=0.5)
    found = [policy(1) for _ in range(1000)]
    assert 50 <= min(found) < 55
    assert 95 < max(found) <= 100


@pytest.mark.parametrize(
    "options", [{"first": -1}, {"factor": 0.5}, {"longest": "1 h"}, {"jitter": 2}, {"first": True}]
)
def test_wrong_exponential_backoff_is_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigError, match=f"ExponentialBackoff: {name}: "):
        ExponentialBackoff(**options)


@pytest.mark.parametrize(
    "delays", [5, 0.5, timedelta(minutes=5), [1, 30, timedelta(minutes=5)], ExponentialBackoff()]
)
def test_delays_of_a_task_survive_the_store(delays: Delays) -> None:
    stored = options_of(Task("t", retry_delay=delays))
    found = codec.decode(codec.encode(stored), StoredOptions).retry_delay
    assert found is not None
    policy = policy_of(found)
    if isinstance(delays, ExponentialBackoff):
        assert policy == delays
        return
    for attempt in range(1, 5):
        assert retry_delay(policy, attempt, ERROR) == retry_delay(delays, attempt, ERROR)


@pytest.mark.parametrize(
    ("delays", "says"),
    [
        ([], "retry_delay: must be 1 to 100 delays, not 0"),
        ([1] * 101, "retry_delay: must be 1 to 100 delays, not 101"),
        ([1, -1], "retry_delay: -1 is not between"),
        ("5", "retry_delay: '5' is neither a number"),
        (lambda attempt, error: 5, "cannot be stored with a task; pass a callable to"),
    ],
)
def test_wrong_delays_of_a_task_are_refused(delays: Any, says: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        Task("t", retry_delay=delays)
    assert says in str(refused.value)


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
def test_custom_policy_sets_the_delay(
    policy: RetryPolicy, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    delay = retry_delay(policy, 2, ERROR)
    assert delay == seconds
    assert type(delay) is float
    assert caplog.messages == []


def raises(attempt: int, error: Exception) -> float:
    raise ValueError(f"cannot cope with: {error}")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (raises, "raised ValueError"),
        (lambda attempt: 5, "raised TypeError"),
        (lambda attempt, error: None, "returned NoneType"),
        (lambda attempt, error: f"secret {attempt}", "returned str"),
        (lambda attempt, error: True, "returned bool"),
        (lambda attempt, error: -1.5, "returned -1.5"),
        (lambda attempt, error: float("nan"), "returned nan"),
        (lambda attempt, error: 10**5000, "returned int"),
        (float("inf"), "returned inf"),
        (timedelta(seconds=-1), "returned datetime.timedelta"),
        ("5", "returned str"),
    ],
)
def test_failing_policy_uses_the_default_delay(
    policy: RetryPolicy, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="qsync.backoff"):
        assert 1 <= retry_delay(policy, 1, ERROR) <= 2
    (message,) = caplog.messages
    assert said in message
    assert "secret" not in caplog.text
