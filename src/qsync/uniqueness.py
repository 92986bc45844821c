"""Checks the options that decide what happens to a second task with the same unique lock."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, NamedTuple, cast

from qsync.errors import InvalidTask
from qsync.times import Duration, duration_us
from qsync.value_text import shorten

OnDuplicate = Literal["raise", "skip", "replace"]
"""Action of an enqueue when another task holds the unique lock. `raise`: raise DuplicateTask;
`skip`: return the handle of the holder; `replace`: replace the holder's payload and options."""

_CHOICES: Final = ("raise", "skip", "replace")


class Uniqueness(NamedTuple):
    """The checked options; an option that is not set is None."""

    window_us: int | None = None
    """Minimum time for which the lock is held; 0 to hold it only until the task ends, None for no
    lock."""
    replaces: bool = False
    """Whether the task replaces another task that holds the lock."""
    debounce_us: int | None = None
    debounce_max_us: int | None = None


def check_uniqueness(
    *,
    unique: bool | Duration | None,
    unique_key: str | None,
    on_duplicate: OnDuplicate | None,
    debounce: Duration | None,
    debounce_max: Duration | None,
    delay: Duration | None,
    process_at: datetime | None,
) -> Uniqueness:
    """Return the checked options. Raise InvalidTask, which names the option that is wrong."""
    debounce_us, debounce_max_us = _debounce(debounce, debounce_max)
    if debounce_us is not None:
        _check_company(debounce, unique_key, on_duplicate, delay, process_at)
    if on_duplicate is not None and on_duplicate not in _CHOICES:
        raise InvalidTask(
            f"on_duplicate: {shorten(on_duplicate)} is not one of 'raise', 'skip' and 'replace'"
        )
    implied = unique is None and (on_duplicate is not None or debounce_us is not None)
    window_us = 0 if implied and unique_key is not None else _window_us(unique, unique_key)
    if on_duplicate is not None and window_us is None:
        raise InvalidTask(f"on_duplicate: {on_duplicate!r} needs a unique_key, or unique=True")
    replaces = on_duplicate == "replace" or debounce_us is not None
    if on_duplicate == "replace" and unique_key is None:
        raise InvalidTask(
            "on_duplicate: 'replace' needs a unique_key: without one, only tasks with equal "
            "payloads are duplicates"
        )
    if replaces and window_us:
        option = f"debounce: {debounce}" if debounce_us else "on_duplicate: 'replace'"
        raise InvalidTask(
            f"unique: {unique} and {option} cannot be used together; omit unique, or pass True"
        )
    return Uniqueness(window_us, replaces, debounce_us, debounce_max_us)


def _debounce(
    debounce: Duration | None, debounce_max: Duration | None
) -> tuple[int | None, int | None]:
    if debounce is None:
        if debounce_max is not None:
            raise InvalidTask(f"debounce_max: {shorten(debounce_max)} needs debounce")
        return None, None
    debounce_us = duration_us("debounce", debounce)
    if debounce_us == 0:
        raise InvalidTask(
            f"debounce: {shorten(debounce)} is less than a microsecond; omit it, or use "
            "on_duplicate"
        )
    if debounce_max is None:
        return debounce_us, None
    longest_us = duration_us("debounce_max", debounce_max)
    if longest_us < debounce_us:
        raise InvalidTask(f"debounce_max: {debounce_max} is less than debounce: {debounce}")
    return debounce_us, longest_us


def _check_company(
    debounce: Duration | None,
    unique_key: str | None,
    on_duplicate: OnDuplicate | None,
    delay: Duration | None,
    process_at: datetime | None,
) -> None:
    """Raise InvalidTask unless `debounce` comes with a `unique_key`, and without options that
    exclude it."""
    if unique_key is None:
        raise InvalidTask(f"debounce: {debounce} needs a unique_key, by which calls are combined")
    others = {"delay": delay, "process_at": process_at}
    if on_duplicate in ("raise", "skip"):
        others["on_duplicate"] = cast("Duration", repr(on_duplicate))
    for option, value in others.items():
        if value is not None:
            raise InvalidTask(f"{option}: {value} and debounce: {debounce} cannot be used together")


def _window_us(unique: bool | Duration | None, unique_key: str | None) -> int | None:
    if unique is None or unique is False:
        if unique_key is not None:
            raise InvalidTask(
                f"unique_key: {shorten(unique_key)} needs unique=True or unique=seconds, or "
                "on_duplicate or debounce"
            )
        return None
    if unique is True:
        return 0
    window = duration_us("unique", unique)
    if window == 0:
        raise InvalidTask(
            f"unique: {shorten(unique)} is less than a microsecond; True holds the lock until the "
            "task has ended"
        )
    return window
