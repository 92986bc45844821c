"""Sends tasks when a Django transaction commits, and counts the tasks that wait for it."""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction


class CommitCallback:
    """A call that waits for the commit of a transaction.

    Django keeps it in its list after `captureOnCommitCallbacks` has made the call, so the object
    records that itself.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self.called: bool = False

    def __call__(self) -> None:
        """Make the call."""
        self.called = True
        self._send()


def at_commit(database: str, send: Callable[[], None]) -> None:
    """Make the call when this thread's transaction commits."""
    transaction.on_commit(CommitCallback(send), using=database)


def waiting(database: str) -> int:
    """Return the number of calls that wait for this thread's transaction to commit."""
    # Undocumented, but as old as on_commit, and Django's own TestCase reads it.
    calls = [entry[1] for entry in transaction.get_connection(database).run_on_commit]
    return sum(isinstance(call, CommitCallback) and not call.called for call in calls)
