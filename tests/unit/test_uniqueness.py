"""Priorities and options of unique locks. A wrong value raises an error when the task is created,
and the error names the field and its value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync.app import Qsync
from qsync.errors import ConfigError, InvalidTask
from qsync.message import decode_message
from qsync.new_task import FlowOptions, new_nonce, new_task
from qsync.task import Task

KEY = {"unique_key": "doc:7"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"priority": 0}, "priority: 0 is not a whole number from 1 to 9"),
    ({"priority": 10}, "priority: 10 is not"),
    ({"priority": True}, "priority: True is not"),
    ({"priority": 5.0}, "priority: 5.0 is not"),
    ({"priority": None}, "priority: None is not"),
    ({"priority": "9"}, "priority: '9' is not"),
    ({"on_duplicate": "skip"}, "on_duplicate: 'skip' needs a unique_key, or unique=True"),
    ({"on_duplicate": "raise"}, "on_duplicate: 'raise' needs a unique_key"),
    ({"on_duplicate": "replace", "unique": True}, "on_duplicate: 'replace' needs a unique_key:"),
    ({**KEY, "on_duplicate": "drop"}, "on_duplicate: 'drop' is not one of 'raise', 'skip' and"),
    ({**KEY, "on_duplicate": 5}, "on_duplicate: 5 is not one of"),
    ({**KEY, "on_duplicate": "replace", "unique": 400}, "unique: 400 and on_duplicate: 'replace'"),
    ({**KEY, "on_duplicate": "skip", "unique": False}, "unique_key: 'doc:7' needs unique=True"),
    ({**KEY}, "unique_key: 'doc:7' needs unique=True"),
    ({"debounce": 5}, "debounce: 5 needs a unique_key"),
    ({"debounce": 5, "unique": True}, "debounce: 5 needs a unique_key"),
    ({**KEY, "debounce": 0}, "debounce: 0 is less than a microsecond; omit it"),
    ({**KEY, "debounce": 1e-9}, "debounce: 1e-09 is less than a microsecond"),
    ({"unique": 1e-9}, "unique: 1e-09 is less than a microsecond; True holds the lock"),
    ({"retention": 1e-9}, "retention: 1e-09 keeps nothing; omit it, or pass at least"),
    ({"timeout": 1e-9}, "timeout: 1e-09 leaves no time to run; omit it, or pass at least"),
    ({**KEY, "debounce": -1}, "debounce: -1 is not between 0"),
    ({**KEY, "debounce": True}, "debounce: True is neither a number"),
    ({**KEY, "debounce": 5, "debounce_max": 4}, "debounce_max: 4 is less than debounce: 5"),
    ({**KEY, "debounce": 5, "debounce_max": "a"}, "debounce_max: 'a' is neither"),
    ({**KEY, "unique": True, "debounce_max": 60}, "debounce_max: 60 needs debounce"),
    ({"debounce_max": 60}, "debounce_max: 60 needs debounce"),
    ({**KEY, "debounce": 5, "delay": 1}, "delay: 1 and debounce: 5 cannot be used together"),
    ({**KEY, "debounce": 5, "process_at": datetime(2100, 1, 1, tzinfo=UTC)}, "process_at: 2100"),
    ({**KEY, "debounce": 5, "on_duplicate": "skip"}, "on_duplicate: 'skip' and debounce: 5"),
    ({**KEY, "debounce": 5, "unique": 60}, "unique: 60 and debounce: 5 cannot be used together"),
]


@pytest.mark.parametrize(("options", "error"), WRONG)
def test_wrong_option_is_refused_by_its_name_and_value(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidTask) as raised:
        Task("t", **options)
    assert str(raised.value).startswith(error)
    with pytest.raises(ConfigError) as definition:
        Qsync("redis://localhost").task(**options)(reindex)
    assert str(definition.value).startswith(error)


def reindex(document: int) -> None:
    """Stand in for a task function."""


@pytest.mark.parametrize(
    ("options", "flow"),
    [
        ({}, None),
        ({"priority": 5}, None),
        ({**KEY, "on_duplicate": "raise"}, None),
        ({**KEY, "on_duplicate": "skip"}, None),
        ({"unique": True, "on_duplicate": "skip"}, None),
        ({"priority": 9}, FlowOptions(priority=9)),
        ({**KEY, "on_duplicate": "replace"}, FlowOptions(on_duplicate="replace")),
        (
            {**KEY, "unique": True, "on_duplicate": "replace", "delay": 3},
            FlowOptions(on_duplicate="replace"),
        ),
        (
            {**KEY, "debounce": 5, "debounce_max": timedelta(minutes=1)},
            FlowOptions(on_duplicate="replace", debounce_us=5_000_000, debounce_max_us=60_000_000),
        ),
        (
            {**KEY, "debounce": 0.5, "on_duplicate": "replace", "unique": True},
            FlowOptions(on_duplicate="replace", debounce_us=500_000),
        ),
    ],
)
def test_only_tasks_with_its_options_use_flow_control(
    options: dict[str, Any], flow: FlowOptions | None
) -> None:
    task = new_task(Task("t", **options), new_nonce())
    assert task.flow == flow
    assert bool(task.lock) == bool(options.keys() & {"unique", "unique_key"})
    assert task.skips == (options.get("on_duplicate") == "skip")


def test_message_without_these_options_is_as_before() -> None:
    plain = new_task(Task("t", b"p", priority=5), b"12345678")
    assert plain.message == new_task(Task("t", b"p"), b"12345678").message
    message = new_task(Task("t", b"p", priority=7, **KEY, debounce=5, debounce_max=60), b"1" * 8)
    options = decode_message(b"\x98\x01\xcf" + bytes(8) + message.message).options
    assert options is not None
    assert (options.priority, options.replaces) == (7, True)
    assert (options.debounce_us, options.debounce_max_us) == (5_000_000, 60_000_000)
    assert message.due == "+5000000"


def test_options_of_a_function_are_overridden() -> None:
    task = Qsync("redis://localhost").task(priority=3, unique_key="k", debounce=5)(reindex)
    assert task.build(1).priority == 3
    other = task.options(priority=8, debounce=None, on_duplicate="skip").build(1)
    assert (other.priority, other.debounce, other.on_duplicate) == (8, None, "skip")
