"""Exceptions survive pickle and copy, e.g. on the way out of a process of a pool."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from qsync import errors
from qsync.errors import QsyncError

EXAMPLES: Final[dict[type[QsyncError], QsyncError]] = {
    errors.DuplicateTask: errors.DuplicateTask("taken", id="a", queue="mail"),
    errors.TaskNotWaiting: errors.TaskNotWaiting("active", state="active"),
    errors.QueueFull: errors.QueueFull(
        "full", queue="mail", bound="max_tasks", limit=3, count=2, room=1
    ),
    errors.Retry: errors.Retry("later", delay=timedelta(seconds=2)),
    errors.Snooze: errors.Snooze(5, "busy"),
    errors.RateLimited: errors.RateLimited(4, limit="api:1", message="429"),
}
"""Exceptions whose constructor takes more than a message."""

KINDS: Final = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, QsyncError)
]


def pickled(error: QsyncError) -> Any:
    """Return the exception as it arrives in another process."""
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own data


class OwnError(errors.StoreUnavailable):
    """An exception of a program, with a constructor that calls no other constructor."""

    def __init__(self, *, shop: str) -> None:
        self.shop = shop


@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", [*KINDS, OwnError])
def test_every_exception_survives_pickle_and_copy(
    kind: type[QsyncError], again: Callable[[QsyncError], Any]
) -> None:
    error = EXAMPLES.get(kind) or (OwnError(shop="s") if kind is OwnError else kind("text"))
    got = again(error)
    assert type(got) is kind
    assert got is not error
    assert (str(got), got.args, vars(got)) == (str(error), error.args, vars(error))


def test_copy_keeps_the_handles_and_pickle_leaves_them_out() -> None:
    """A handle belongs to a client of this process."""
    error = errors.QueueFull("full", queue="mail", bound="max_tasks", limit=3, count=2)
    error.handles = [lambda: None]  # like a handle, it cannot be pickled
    assert copy.copy(error).handles is error.handles
    assert pickled(error).handles == ()
    assert pickled(error).bound == "max_tasks"


def test_pickled_retry_keeps_the_text_of_its_cause() -> None:
    try:
        try:
            raise ValueError("no answer")
        except ValueError as cause:
            raise errors.Retry(delay=2) from cause
    except errors.Retry as error:
        assert str(pickled(error)) == str(error) == "ValueError: no answer"
        assert pickled(error).delay == 2
