"""The operations of a database that a relay needs, and their limits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from qsync.contrib.outbox.rows import UnsentRow

ROWS_PER_BATCH: Final = 250
"""Maximum number of rows per batch."""

YOUNG_S: Final = 2.0
"""Age below which a relay leaves a row to the process that wrote it, in seconds."""

COUNTED: Final = 10_000
"""Largest number of rows that a count of the backlog returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The number of waiting rows, at most 10,000, and the age of the oldest in seconds."""

    rows: int
    oldest_s: float


class RowBatch(Protocol):
    """Rows that a relay has taken, in a transaction if the database can lock rows."""

    rows: Sequence[UnsentRow]
    delete: Callable[[list[str]], object]


class Database(Protocol):
    """A database whose calls block."""

    def take(self, before: datetime, without: Collection[str]) -> AbstractContextManager[RowBatch]:
        """Take up to ROWS_PER_BATCH rows from before a time that no relay has, oldest first."""

    def backlog(self) -> Backlog:
        """Return the number of waiting rows and the age of the oldest."""

    def close(self) -> None:
        """Close the connections that the relay has opened."""


class AsyncBatch(Protocol):
    """Like RowBatch, with an awaitable `delete`."""

    rows: Sequence[UnsentRow]

    async def delete(self, ids: list[str]) -> None:
        """Delete rows."""


class AsyncDatabase(Protocol):
    """A database whose calls are awaited."""

    def take(
        self, before: datetime, without: Collection[str]
    ) -> AbstractAsyncContextManager[AsyncBatch]:
        """Take up to ROWS_PER_BATCH rows from before a time that no relay has, oldest first."""

    async def backlog(self) -> Backlog:
        """Return the number of waiting rows and the age of the oldest."""

    async def close(self) -> None:
        """Close the connections that the relay has opened."""


def due_before() -> datetime:
    """Return the creation time before which a relay sends rows, by this machine's clock."""
    return datetime.now(UTC) - timedelta(seconds=YOUNG_S)


def backlog_of(count: int, oldest: datetime | None) -> Backlog:
    """Return the backlog for a count and the time of the oldest row; SQLite has naive times."""
    if oldest is None:
        return Backlog(rows=0, oldest_s=0.0)
    if oldest.tzinfo is None:
        oldest = oldest.replace(tzinfo=UTC)
    age = (datetime.now(UTC) - oldest).total_seconds()
    return Backlog(rows=count, oldest_s=max(0.0, age))
