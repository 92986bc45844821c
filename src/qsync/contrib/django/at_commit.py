"""Sends tasks when a Django transaction commits, and counts the tasks that wait for the commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from django.db import transaction


@dataclass(slots=True)
class Commit:
    """A commit to wait for; `done` becomes True when the transaction has committed."""

    done: bool = False


class CommitCallback:
    """A call to make when a transaction commits.

    `captureOnCommitCallbacks` leaves this object in Django's list after the call, so the object
    records whether the call was made. A rollback discards the object.
    """

    def __init__(self, database: str, send: Callable[[], None]) -> None:
        self.database = database
        self._send = send
        self.commit: Commit = Commit()

    def __call__(self) -> None:
        """Make the call, and record that it was made."""
        self.commit.done = True
        self._send()


_callbacks: Final = WeakSet[CommitCallback]()
"""Callbacks of all threads, because an async test and its transaction run in different threads."""


def at_commit(database: str, send: Callable[[], None]) -> Commit:
    """Make the call when this thread's transaction commits; return that commit."""
    callback = CommitCallback(database, send)
    _callbacks.add(callback)
    transaction.on_commit(callback, using=database)
    return callback.commit


def waiting(database: str) -> int:
    """Return the number of calls that wait for the commit of a transaction."""
    return sum(
        callback.database == database and not callback.commit.done for callback in list(_callbacks)
    )
