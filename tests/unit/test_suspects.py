"""The rules for when a task that has crashed twice may run. The tests inject the times."""

from __future__ import annotations

from typing import Any

from qsync.server.crash_isolation import (
    MAX_WAIT_TO_START_S,
    SHORT_REST_S,
    START_CHECK_S,
    CrashIsolation,
)


def waiting(*names: str) -> CrashIsolation:
    suspects = CrashIsolation()
    stand_ins: Any = names  # strings suffice, because CrashIsolation reads no attributes of tasks
    suspects.waiting.extend(stand_ins)
    return suspects


def waited(suspects: CrashIsolation, now: float) -> float:
    """Return how long the first suspect waits while another task never ends."""
    began = now
    while delay := suspects.delay(now, running=1, ready=0):
        assert delay <= START_CHECK_S
        now += delay
    return now - began


def test_no_task_is_delayed_without_suspects() -> None:
    assert not CrashIsolation().blocks_others(100.0)


def test_suspect_delays_others_for_bounded_time() -> None:
    suspects = waiting("a")
    assert suspects.blocks_others(100.0)
    assert waited(suspects, 100.0) == MAX_WAIT_TO_START_S


def test_suspect_starts_at_once_on_an_idle_server() -> None:
    suspects = waiting("a")
    assert suspects.blocks_others(100.0)
    assert suspects.delay(101.0, running=0, ready=5) == 0


def test_blocked_loop_does_not_use_up_the_wait_of_a_suspect() -> None:
    suspects = waiting("a")
    assert suspects.blocks_others(100.0)
    assert suspects.delay(100.0, running=3, ready=0) == START_CHECK_S
    blocked = 8 * MAX_WAIT_TO_START_S
    assert waited(suspects, 100.0 + START_CHECK_S + blocked) == MAX_WAIT_TO_START_S - START_CHECK_S


def test_other_tasks_get_as_much_time_as_the_suspect_took() -> None:
    suspects = waiting("a", "b")
    assert suspects.blocks_others(100.0)
    suspects.alone = suspects.waiting.popleft()
    assert suspects.blocks_others(102.0)
    suspects.end(103.0)
    assert not suspects.blocks_others(105.9)
    assert suspects.delay(104.0, running=5, ready=9) == 2.0
    assert suspects.blocks_others(106.0)
    assert suspects.delay(106.0, running=0, ready=9) == 0


def test_pause_between_suspects_is_short_without_other_tasks() -> None:
    suspects = waiting("a", "b")
    suspects.blocks_others(100.0)
    suspects.alone = suspects.waiting.popleft()
    suspects.end(110.0)
    assert suspects.delay(110.0, running=0, ready=0) == SHORT_REST_S
    assert suspects.delay(110.0 + SHORT_REST_S, running=0, ready=0) == 0
