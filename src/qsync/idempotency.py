"""Gives each enqueue call an identity, by which the store recognizes repeated calls."""

from __future__ import annotations

from typing import Final, NamedTuple
from weakref import WeakSet

from qsync import forks
from qsync.errors import QsyncError
from qsync.keys import QueueKeys
from qsync.new_task import new_id


class CallId(NamedTuple):
    """The identity of a call, by which the store recognizes a repeated call."""

    sender: str
    number: int


class CallSequences:
    """Gives each enqueue call of a client a sender and a sequence number while the call is in
    flight.

    A sender has at most one call in flight, so the store keeps only the number of its last call. A
    client has one sender per concurrent call. The most recently released sender is reused first, so
    that the store soon forgets the extra senders of a burst. Threads may share this object. A
    forked child creates new senders, since its parent keeps using the old ones.
    """

    def __init__(self) -> None:
        self._free: list[tuple[str, int]] = []
        _SEQUENCES.add(self)

    def take(self) -> tuple[str, int]:
        """Return the id of a new call, as a plain tuple, which is faster to create. Pass the id to
        `give_back` when the call will no longer be repeated.
        """
        try:
            sender, number = self._free.pop()
        except IndexError:
            sender, number = new_id(), 0
        return sender, number + 1

    def give_back(self, call_id: tuple[str, int]) -> None:
        """Free the sender of a call for the next call."""
        self._free.append(call_id)

    def acquire(self, count: int) -> SequenceLease:
        """Lease call ids for `count` calls; no call may be repeated after the `with` block."""
        return SequenceLease(self._free, count)


def _forget_senders() -> None:
    """Discard the senders of the parent in a forked child."""
    for sequences in _SEQUENCES:
        sequences._free = []


_SEQUENCES: Final[WeakSet[CallSequences]] = WeakSet()

forks.on_fork(_forget_senders)


class SequenceLease:
    """Call ids that are in use within a `with` block."""

    __slots__ = ("_call_ids", "_free")

    def __init__(self, free: list[tuple[str, int]], count: int) -> None:
        self._free = free
        self._call_ids: list[CallId] = []
        self._draw(count)

    def __enter__(self) -> list[CallId]:
        return self._call_ids

    def __exit__(self, *_: object) -> None:
        self._free += reversed(self._call_ids)

    def next(self, count: int) -> list[CallId]:
        """Return `count` new call ids; all calls with earlier ids must have been answered."""
        self._call_ids = [CallId(sender, number + 1) for sender, number in self._call_ids]
        self._draw(count)
        return self._call_ids[:count]

    def _draw(self, count: int) -> None:
        free, call_ids = self._free, self._call_ids
        while len(call_ids) < count:
            try:
                sender, number = free.pop()
            except IndexError:
                sender, number = new_id(), 0
            call_ids.append(CallId(sender, number + 1))


def duplicate_client_error(keys: QueueKeys) -> QsyncError:
    """Return the error for a call that the store refused because its sender made a later call.

    The later call came from a copy of this process, e.g. from a restored snapshot.
    """
    return QsyncError(
        f"enqueue to queue {keys.queue!r}: another process has the identity of this client, e.g. "
        "since a snapshot was restored; create a new client"
    )
