"""The operations that a relay needs from a database, and their limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from qsync.contrib.outbox.rows import UnsentRow

ROWS_PER_BATCH: Final = 250
"""Maximum number of rows per batch."""

YOUNG_S: Final = 2.0
"""Age below which a relay leaves a row to the process that wrote it, in seconds."""

BATCH_BYTES: Final = 32 * 1024 * 1024
"""Maximum size of a batch of several rows, in bytes. A row may have up to 31 MiB, so without this
limit a batch might not fit into memory."""

WRONG_CLOCK_S: Final = 60.0
"""How far in the future a row's time may be, in seconds. A time beyond this limit comes from a
wrong clock. The row is then sent immediately, because otherwise it would wait until that time."""

COMPARED_ROWS: Final = 20
"""Maximum number of earlier rows of the same queue that a process reads before it sends a row that
replaces another task. If there are more, a relay sends that row."""

COMPARED_BYTES: Final = 1024 * 1024
"""Maximum total size of the earlier rows that are read for this comparison, in bytes."""

COUNTED: Final = 10_000
"""Maximum number of waiting rows that are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The number of waiting rows, at most 10,000, and the age of the oldest one in seconds."""

    rows: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRows:
    """Which rows a relay reads: those created before a time, and those from a wrong clock.

    before  creation time before which a row is sent, by this machine's clock
    after   creation time after which a row comes from a wrong clock
    ids     ids of rows to skip
    queues  queues of which all rows are skipped
    """

    before: datetime
    after: datetime
    ids: Collection[str] = ()
    queues: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that a relay has taken, in a transaction if the database can lock rows."""

    rows: Sequence[UnsentRow]
    more: bool
    """True if further rows may be due."""
    delete: Callable[[list[str]], object]


@dataclass(frozen=True, slots=True)
class AsyncRowBatch:
    """Like RowBatch, with an awaitable `delete`."""

    rows: Sequence[UnsentRow]
    more: bool
    delete: Callable[[list[str]], Awaitable[object]]


class Database(Protocol):
    """The operations that a relay in a thread needs from a database; they block."""

    def take(self, selection: DueRows) -> AbstractContextManager[RowBatch]:
        """Take the oldest rows that no other relay has taken, up to ROWS_PER_BATCH rows or
        BATCH_BYTES."""

    def backlog(self) -> Backlog:
        """Return the number of waiting rows and the age of the oldest."""

    def close(self) -> None:
        """Close the connections that the relay has opened."""


class CommittedRows(Protocol):
    """Access to the rows that a transaction has committed, for the process that wrote them."""

    def kept(self, rows: Sequence[UnsentRow]) -> Sequence[UnsentRow]:
        """Return those of the rows that are in the table after the commit."""

    def earlier(self, row: UnsentRow) -> Sequence[UnsentRow] | None:
        """Return the earlier rows in the queue of a row; None if they are too many or too large."""

    def delete(self, ids: list[str]) -> object:
        """Delete rows in a separate transaction."""


class AsyncCommittedRows(Protocol):
    """Like CommittedRows, with coroutine methods."""

    async def kept(self, rows: Sequence[UnsentRow]) -> Sequence[UnsentRow]:
        """See CommittedRows."""

    async def earlier(self, row: UnsentRow) -> Sequence[UnsentRow] | None:
        """See CommittedRows."""

    async def delete(self, ids: list[str]) -> object:
        """See CommittedRows."""


class AsyncDatabase(Protocol):
    """The operations that a relay on an event loop needs from a database."""

    def take(self, selection: DueRows) -> AbstractAsyncContextManager[AsyncRowBatch]:
        """Take the oldest rows that no other relay has taken, up to ROWS_PER_BATCH rows or
        BATCH_BYTES."""

    async def backlog(self) -> Backlog:
        """Return the number of waiting rows and the age of the oldest."""

    async def close(self) -> None:
        """Close the connections that the relay has opened."""


def due_rows(*, ids: Collection[str], queues: Collection[str]) -> DueRows:
    """Return which rows a relay sends now; rows with these ids or of these queues are skipped."""
    now = datetime.now(UTC)
    return DueRows(
        before=now - timedelta(seconds=YOUNG_S), after=now + timedelta(seconds=WRONG_CLOCK_S),
        ids=ids, queues=queues,
    )  # fmt: skip


def fitting_ids(sizes: Sequence[tuple[str, int]]) -> list[str]:
    """Return the ids of the first rows that fit into a batch, at least one; `sizes` has (id, size)
    pairs."""
    ids: list[str] = []
    total = 0
    for id, size in sizes:
        total += size
        if ids and total > BATCH_BYTES:
            break
        ids.append(id)
    return ids


def comparable_ids(sizes: Sequence[tuple[str, int]]) -> list[str] | None:
    """Return the ids of earlier rows, or None if they are too many or too large to read; `sizes`
    has (id, size) pairs."""
    if len(sizes) > COMPARED_ROWS or sum(size for _, size in sizes) > COMPARED_BYTES:
        return None
    return [id for id, _ in sizes]


def has_more(sizes: Sequence[tuple[str, int]], ids: Sequence[str]) -> bool:
    """Return whether further rows may be due after a batch of these ids."""
    return len(ids) < len(sizes) or len(sizes) == ROWS_PER_BATCH


def backlog_of(count: int, oldest: datetime | None) -> Backlog:
    """Compute the backlog from a count and the time of the oldest row; on SQLite, this time is
    naive."""
    if oldest is None:
        return Backlog(rows=0, oldest_s=0.0)
    if oldest.tzinfo is None:
        oldest = oldest.replace(tzinfo=UTC)
    age = (datetime.now(UTC) - oldest).total_seconds()
    return Backlog(rows=count, oldest_s=max(0.0, age))
