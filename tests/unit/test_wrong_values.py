"""Every option of a public name rejects a wrong value immediately, with an error that names the
option. Each option is passed each of the values below, while the other options keep their defaults.
Other tests check accepted values. In these tests, no value may cause an internal Python error.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest

from qsync import (
    ExponentialBackoff,
    InvalidTask,
    Mux,
    Qsync,
    QsyncError,
    RateLimited,
    Retry,
    Snooze,
    Task,
    TaskInfo,
)
from qsync.new_task import new_task
from qsync.server.config import Config
from qsync.task import options_of


class NoRepr:
    """A value whose repr raises an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Text(str):
    """A string of a subclass."""

    __slots__ = ()


VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 3.0, 0.5, math.nan, math.inf, -math.inf, 10**400, -(10**400), 10**5000,
    2**63, "", " ", "a b", "x" * 5000, "\x00", "\ud800", "a:b", "{x}", "*", "é", "5s", Text("a"),
    b"", b"abc", bytearray(b"abc"), [], [None], ["a", "a"], [math.nan], [b"a"], (), {}, {1: 2},
    {"a": True}, {"a": 10**400}, {b"a": 1}, set(), NoRepr(), [NoRepr()], print, int, iter(["a"]),
    datetime(2030, 1, 1), datetime.max.replace(tzinfo=UTC), date(2030, 1, 1),  # noqa: DTZ001
    timedelta(-1), timedelta.max, timedelta.min, Decimal(3), Fraction(3), 3j, ..., ValueError("x"),
)  # fmt: skip


def named(function: Callable[..., Any], *left_out: str) -> Iterator[str]:
    """Yield the names of a function's parameters."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in ("self", *left_out) and parameter.kind != parameter.VAR_KEYWORD:
            yield name


def work(number: int = 0) -> None:
    """Do nothing."""


def work_all(tasks: list[TaskInfo]) -> None:
    """Do nothing."""


def app(**options: Any) -> Qsync:
    return Qsync(**{"url": "redis://127.0.0.1:1", "prefix": "p", **options})


def hourly(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cron schedule for a periodic task, or nothing if the options set `every`."""
    return {} if "every" in options else {"cron": "0 * * * *"}


TASK_OPTIONS: Final = tuple(Task.__struct_fields__[2:])

Make = Callable[[Mapping[str, Any]], object]

CASES: Final[dict[str, tuple[Make, tuple[str, ...]]]] = {
    "Task": (lambda options: Task(**{"type": "t", **options}), ("type", *TASK_OPTIONS)),
    "Task with a key": (
        lambda options: Task("t", **{"unique_key": "k", "debounce": 5, **options}),
        ("unique_key", "debounce", "debounce_max", "on_duplicate", "unique"),
    ),
    "ExponentialBackoff": (
        lambda options: ExponentialBackoff(**options), tuple(named(ExponentialBackoff))
    ),
    "Retry": (lambda options: Retry(**options), ("message", "delay")),
    "Snooze": (lambda options: Snooze(**options), ("delay",)),
    "RateLimited": (
        lambda options: RateLimited(**{"retry_after": 1, **options}), ("retry_after", "limit")
    ),
    "Qsync": (lambda options: app(**options), (*named(Qsync), *Config.__dataclass_fields__)),
    "task": (
        lambda options: app().task(**options)(work),
        (*TASK_OPTIONS, "executor", "middleware", "retry_for", "dont_retry_for"),
    ),
    "periodic": (
        lambda options: app().periodic(**{**hourly(options), **options})(work),
        ("every", "tz", "missed", "arguments", "name"),
    ),
    "batch": (
        lambda options: app().batch("b", **options)(work_all),
        ("max_size", "max_wait", "middleware", "retry_for", "dont_retry_for", *TASK_OPTIONS),
    ),
    "limit": (
        lambda options: app().limit(**{"name": "x", "rate": 1, "per": 1, **options}),
        tuple(named(Qsync.limit, "name")),
    ),
    "queue": (
        lambda options: app().queue(**{"name": "x", **options}), tuple(named(Qsync.queue, "name"))
    ),
    "handle": (
        lambda options: Mux().handle(**{"type": "t", **options})(work_all), tuple(named(Mux.handle))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wrong_value_raises_an_error_that_names_the_option(name: str) -> None:
    make, names = CASES[name]
    problems: list[str] = []
    for option in names:
        for value in VALUES:
            try:
                make({option: value})
            except QsyncError as error:
                if option.removesuffix("s") not in str(error):  # e.g. "argument"
                    problems.append(f"{option}={shown(value)}: {error}")
            except Exception as error:
                problems.append(f"{option}={shown(value)}: {type(error).__name__}: {error}")
    assert not problems


def shown(value: object) -> str:
    try:
        return repr(value)[:60]
    except Exception:
        return type(value).__name__


@pytest.mark.parametrize("retry", [3.0, True, Decimal(3), Fraction(3), "3", -1, 1.5])
def test_number_of_retries_is_a_whole_number(retry: Any) -> None:
    with pytest.raises(InvalidTask, match=r"retry: .* is not a whole number from 0 to 1000000"):
        Task("t", retry=retry)


def test_headers_that_are_not_strings_are_named_without_their_values() -> None:
    wrong: Any
    for wrong, text in (
        ([("a", "b")], "headers: list is not a mapping of strings to strings"),
        ({"a": b"secret"}, "headers: the value of 'a' is bytes, not a string"),
        ({b"a": "secret"}, "headers: the name b'a' is not a string"),
    ):
        with pytest.raises(InvalidTask) as raised:
            Task("t", headers=wrong)
        assert str(raised.value) == text


def test_string_of_a_subclass_is_stored_as_a_plain_string() -> None:
    task = Task(
        "t", fairness_key=Text("a"), limits=[Text("b:1")], unique=True, unique_key=Text("k")
    )
    options = options_of(task)
    texts = (options.fairness_key, *(options.limits or ()), new_task(task, b"").lock)
    assert [type(text) for text in texts] == [str] * 3
