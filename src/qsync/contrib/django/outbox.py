"""The outbox in the database of a Django project, for ENQUEUE = "outbox"."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, close_old_connections, connections, transaction
from django.db.models import Min, Q
from django.db.models.functions import Length
from django.utils import timezone

from qsync.connections import Connections
from qsync.contrib.django.at_commit import Commit, at_commit
from qsync.contrib.django.configuration import configuration
from qsync.contrib.outbox.after_commit import AfterCommit
from qsync.contrib.outbox.database import (
    COMPARED_ROWS,
    COUNTED,
    ROWS_PER_BATCH,
    Backlog,
    DueRows,
    RowBatch,
    backlog_of,
    comparable_ids,
    fitting_ids,
    has_more,
)
from qsync.contrib.outbox.relay import Relay
from qsync.contrib.outbox.rows import UnsentRow, make_row
from qsync.errors import DuplicateTask
from qsync.server.server import Server
from qsync.task import Task

Sent = Any


def _rows(database: str) -> Any:
    """Return the outbox rows of a database. The model is imported here because models can be
    imported only after the apps are loaded."""
    from qsync.contrib.django.models import OutboxRow

    return OutboxRow.objects.using(database)


def _has_time_zones(database: str) -> bool:
    """Return whether the database stores aware datetimes as instants, as PostgreSQL does."""
    return settings.USE_TZ or connections[database].features.supports_timezones


def _to_column(time: datetime, database: str) -> datetime:
    """Convert an aware datetime to the form that the column accepts. If the database has no time
    zones, the result is naive and in UTC, because Django with USE_TZ = False refuses aware
    datetimes there."""
    return time if _has_time_zones(database) else time.astimezone(UTC).replace(tzinfo=None)


def _from_column(time: datetime | None, database: str) -> datetime | None:
    """Convert a value of the column to an aware datetime; with USE_TZ = False, PostgreSQL returns
    naive values in TIME_ZONE."""
    if time is None or timezone.is_aware(time):
        return time
    zone = timezone.get_default_timezone() if _has_time_zones(database) else UTC
    return time.replace(tzinfo=zone)


class DjangoDatabase:
    """A database of the project, with the operations that a relay needs."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @contextlib.contextmanager
    def take(self, selection: DueRows) -> Iterator[RowBatch]:
        """See Database."""
        close_old_connections()
        locks = connections[self._alias].features.has_select_for_update_skip_locked
        with transaction.atomic(using=self._alias, durable=True):
            before, after = (
                _to_column(time, self._alias) for time in (selection.before, selection.after)
            )
            due = _rows(self._alias).filter(Q(created_at__lt=before) | Q(created_at__gt=after))
            query = due.exclude(pk__in=list(selection.ids))
            query = query.exclude(queue__in=list(selection.queues)).order_by("created_at")
            if locks:
                query = query.select_for_update(skip_locked=True)
            sizes = list(query.values_list("pk", Length("message"))[:ROWS_PER_BATCH])
            ids = fitting_ids(sizes)
            rows = self._read(ids)
            more = has_more(sizes, ids)
            if locks:
                yield RowBatch(rows, more, self.delete)
                return
        yield RowBatch(rows, more, self.delete)

    def delete(self, ids: list[str]) -> None:
        """Delete rows, within this thread's transaction if one is open."""
        _rows(self._alias).filter(pk__in=ids).delete()

    def kept(self, rows: Sequence[UnsentRow]) -> list[UnsentRow]:
        """Return those of the rows that are in the table after the commit.

        A row may be missing even though Django has run the on_commit hooks: if the program caught a
        database error, PostgreSQL rolls back at the commit, but Django still runs the hooks.
        """
        found = set(
            _rows(self._alias).filter(pk__in=[row.id for row in rows]).values_list("pk", flat=True)
        )
        return [row for row in rows if row.id in found]

    def earlier(self, row: UnsentRow) -> list[UnsentRow] | None:
        """See CommittedRows."""
        before = _to_column(row.created_at, self._alias)
        query = _rows(self._alias).filter(queue=row.queue, created_at__lt=before)
        sizes = query.values_list("pk", Length("message"))[: COMPARED_ROWS + 1]
        ids = comparable_ids(list(sizes))
        return None if ids is None else self._read(ids) if ids else []

    def _read(self, ids: Sequence[str]) -> list[UnsentRow]:
        return [
            UnsentRow(
                id=entity.id, queue=entity.queue, message=bytes(entity.message),
                created_at=entity.created_at,
            )
            for entity in _rows(self._alias).filter(pk__in=ids).order_by("created_at")
        ]  # fmt: skip

    def backlog(self) -> Backlog:
        """See Database."""
        close_old_connections()
        count = _rows(self._alias)[:COUNTED].count()
        oldest = _rows(self._alias).aggregate(oldest=Min("created_at"))["oldest"]
        return backlog_of(count, _from_column(oldest, self._alias))

    def close(self) -> None:
        """Close the connections of this thread."""
        connections.close_all()


class _SentDatabase(DjangoDatabase):
    """A database that reports when the row of a task has been sent."""

    def __init__(self, alias: str, sent: Callable[[], None]) -> None:
        super().__init__(alias)
        self._sent = sent

    def delete(self, ids: list[str]) -> None:
        """Report that the row has been sent, and delete it."""
        self._sent()
        super().delete(ids)


class DjangoOutbox:
    """Writes tasks to the outbox, and sends them after the commit."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._after_commit = AfterCommit(connections)

    def write(self, task: Task[Any], sent: Sent) -> tuple[Task[Any], Commit]:
        """Write the row of a task; return the task with its id, and the commit after which it is
        sent.

        Raises DuplicateTask if an unsent row already has the id that the caller chose.
        """
        row = make_row(task, self._connections)
        database = configuration().database
        fields = {**dataclasses.asdict(row), "created_at": _to_column(row.created_at, database)}
        try:
            with transaction.atomic(using=database):
                _rows(database).create(**fields)
                commit = at_commit(database, partial(self._send, database, row, sent))
        except IntegrityError:
            raise DuplicateTask(
                f"id {row.id!r}: a task that waits in the outbox already has this id",
                id=row.id, queue=row.queue,
            ) from None  # fmt: skip
        return task.replace(id=row.id), commit

    def _send(self, database: str, row: UnsentRow, sent: Sent) -> None:
        self._after_commit.send([row], _SentDatabase(database, partial(sent, row.id, True)))

    def close(self) -> None:
        """Close the connections to the store."""
        self._after_commit.close()


def relay_of(connections: Connections) -> Relay:
    """Return a relay for the database of the project."""
    return Relay(connections, DjangoDatabase(configuration().database))


def _is_in_memory(database: str) -> bool:
    """Return whether the database is in memory, as in tests; such a database needs no relay, and no
    other process can use it."""
    connection = connections[database]
    return connection.vendor == "sqlite" and connection.is_in_memory_db()


def run_relay(connections: Connections, server: Server) -> None:
    """Run a relay alongside the server if the project uses the outbox."""
    if configuration().enqueue != "outbox" or _is_in_memory(configuration().database):
        return
    inner = server.config.lifespan

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        async with relay_of(connections):
            if inner is None:
                yield None
            else:
                async with inner() as state:
                    yield state

    server.config = dataclasses.replace(server.config, lifespan=lifespan)
