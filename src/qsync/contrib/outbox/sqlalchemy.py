"""The outbox in a database used through SQLAlchemy 2, with sync and async engines."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from qsync.contrib.outbox.after_commit import AfterCommit
from qsync.contrib.outbox.database import (
    COMPARED_ROWS,
    COUNTED,
    ROWS_PER_BATCH,
    AsyncRowBatch,
    Backlog,
    DueRows,
    RowBatch,
    backlog_of,
    comparable_ids,
    fitting_ids,
    has_more,
)
from qsync.contrib.outbox.rows import ID_LENGTH, QUEUE_LENGTH, UnsentRow
from qsync.errors import ConfigError
from qsync.instrumentation import missing
from qsync.value_text import shorten

try:
    from sqlalchemy import (
        Column,
        DateTime,
        Engine,
        Index,
        LargeBinary,
        MetaData,
        String,
        Table,
        event,
        func,
        inspect,
        literal,
        or_,
        select,
    )
    from sqlalchemy import delete as delete_from
    from sqlalchemy.dialects.mysql import DATETIME, LONGBLOB
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session, SessionTransaction, registry
except ModuleNotFoundError as _error:
    raise missing(_error, "sqlalchemy") from None

if TYPE_CHECKING:
    # At run time, this is imported only for an async engine, because it needs greenlet, which the
    # extra does not install.
    from sqlalchemy.ext.asyncio import AsyncEngine

MYSQL: Final = ("mysql", "mariadb")

WITHOUT_LOCKS: Final = "sqlite"
"""Dialect without row locks; a relay sends its rows outside a transaction."""


def make_table(name: str, metadata: MetaData | None) -> Table:
    """Return the table of an outbox, in a new MetaData if none is given. Raise ConfigError if the
    metadata is invalid or already has the table.

    MySQL needs other types: its BLOB holds at most 64 KiB, and its DATETIME only whole seconds.
    """
    if metadata is None:
        metadata = MetaData()
    if not isinstance(metadata, MetaData):
        raise ConfigError(
            f"metadata: {shorten(metadata)} is not a MetaData; pass the MetaData of your models, "
            "e.g. Base.metadata"
        )
    schema, _, table = name.rpartition(".")
    if ".".join(filter(None, [schema or metadata.schema, table])) in metadata.tables:
        raise ConfigError(
            f"table: the metadata already has a table {name!r}; create one Outbox for it and "
            "import that Outbox everywhere"
        )
    return Table(
        table,
        metadata,
        Column("id", String(ID_LENGTH), primary_key=True),
        Column("queue", String(QUEUE_LENGTH), nullable=False),
        Column("message", LargeBinary().with_variant(LONGBLOB(), *MYSQL), nullable=False),
        Column(
            "created_at",
            DateTime(timezone=True).with_variant(DATETIME(fsp=6), *MYSQL),
            nullable=False,
        ),
        Index(f"{table}_created_at", "created_at"),
        schema=schema or None,
    )


def make_entity(table: Table) -> type[Any]:
    """Return a class that is mapped to the table, so that a session writes its objects there."""
    entity = type("OutboxRow", (), {"__doc__": "A row of the outbox."})
    registry(metadata=table.metadata).map_imperatively(entity, table)
    return entity


def take(connection: Connection, table: Table, selection: DueRows) -> tuple[list[UnsentRow], bool]:
    """Return rows, locked except on SQLite, and whether further rows may be due."""
    columns = table.c
    query = (
        select(columns.id, func.length(columns.message))
        .where(or_(columns.created_at < selection.before, columns.created_at > selection.after))
        .order_by(columns.created_at)
        .limit(ROWS_PER_BATCH)
        .with_for_update(skip_locked=True)
    )
    if selection.ids:
        query = query.where(columns.id.not_in(list(selection.ids)))
    if selection.queues:
        query = query.where(columns.queue.not_in(list(selection.queues)))
    sizes = [(id, size) for id, size in connection.execute(query)]
    ids = fitting_ids(sizes)
    return _rows(connection, table, ids), has_more(sizes, ids)


def delete(connection: Connection, table: Table, ids: list[str]) -> None:
    """Delete rows."""
    connection.execute(delete_from(table).where(table.c.id.in_(ids)))


def kept(connection: Connection, table: Table, rows: Sequence[UnsentRow]) -> list[UnsentRow]:
    """Return those of `rows` that are still in the table."""
    query = select(table.c.id).where(table.c.id.in_([row.id for row in rows]))
    found = set(connection.execute(query).scalars())
    return [row for row in rows if row.id in found]


def earlier(connection: Connection, table: Table, row: UnsentRow) -> list[UnsentRow] | None:
    """Return the earlier rows in the queue of a row; None if they are too many or too large."""
    columns = table.c
    query = (
        select(columns.id, func.length(columns.message))
        .where(columns.queue == row.queue, columns.created_at < row.created_at)
        .limit(COMPARED_ROWS + 1)
    )
    ids = comparable_ids([(id, size) for id, size in connection.execute(query)])
    return None if ids is None else _rows(connection, table, ids) if ids else []


def _rows(connection: Connection, table: Table, ids: Sequence[str]) -> list[UnsentRow]:
    query = select(table).where(table.c.id.in_(ids)).order_by(table.c.created_at)
    return [
        UnsentRow(id=row.id, queue=row.queue, message=row.message, created_at=row.created_at)
        for row in connection.execute(query)
    ]


def backlog(connection: Connection, table: Table) -> Backlog:
    """Return the number of waiting rows and the age of the oldest."""
    some = select(literal(1)).select_from(table).limit(COUNTED).subquery()
    count = connection.execute(select(func.count()).select_from(some)).scalar_one()
    oldest = connection.execute(select(func.min(table.c.created_at))).scalar_one()
    return backlog_of(count, oldest)


class EngineDatabase:
    """The database of a sync engine."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self._engine = engine
        self._table = table

    @contextlib.contextmanager
    def take(self, selection: DueRows) -> Iterator[RowBatch]:
        """See Database."""
        with self._engine.begin() as connection:
            rows, more = take(connection, self._table, selection)
            if self._engine.dialect.name != WITHOUT_LOCKS:
                yield RowBatch(rows, more, partial(delete, connection, self._table))
                return
        yield RowBatch(rows, more, self.delete)

    def delete(self, ids: list[str]) -> None:
        """Delete rows in a separate transaction."""
        with self._engine.begin() as connection:
            delete(connection, self._table, ids)

    def kept(self, rows: Sequence[UnsentRow]) -> list[UnsentRow]:
        """Return those of the rows that are in the table after the commit."""
        with self._engine.begin() as connection:
            return kept(connection, self._table, rows)

    def earlier(self, row: UnsentRow) -> list[UnsentRow] | None:
        """See CommittedRows."""
        with self._engine.begin() as connection:
            return earlier(connection, self._table, row)

    def backlog(self) -> Backlog:
        """See Database."""
        with self._engine.begin() as connection:
            return backlog(connection, self._table)

    def close(self) -> None:
        """See Database; the engine's pool keeps the connections."""


class AsyncEngineDatabase:
    """The database of an async engine."""

    def __init__(self, engine: AsyncEngine, table: Table) -> None:
        self._engine = engine
        self._table = table

    @contextlib.asynccontextmanager
    async def take(self, selection: DueRows) -> AsyncIterator[AsyncRowBatch]:
        """See AsyncDatabase."""
        async with self._engine.begin() as connection:
            rows, more = await connection.run_sync(take, self._table, selection)
            if self._engine.dialect.name != WITHOUT_LOCKS:

                async def delete_taken(ids: list[str]) -> None:
                    await connection.run_sync(delete, self._table, ids)

                yield AsyncRowBatch(rows, more, delete_taken)
                return
        yield AsyncRowBatch(rows, more, self.delete)

    async def delete(self, ids: list[str]) -> None:
        """Delete rows in a separate transaction."""
        async with self._engine.begin() as connection:
            await connection.run_sync(delete, self._table, ids)

    async def kept(self, rows: Sequence[UnsentRow]) -> list[UnsentRow]:
        """Return those of the rows that are in the table after the commit."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(kept, self._table, rows)

    async def earlier(self, row: UnsentRow) -> list[UnsentRow] | None:
        """See CommittedRows."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(earlier, self._table, row)

    async def backlog(self) -> Backlog:
        """See AsyncDatabase."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(backlog, self._table)

    async def close(self) -> None:
        """See AsyncDatabase; the engine's pool keeps the connections."""


def _row_of(entity: Any) -> UnsentRow:
    return UnsentRow(
        id=entity.id, queue=entity.queue, message=entity.message, created_at=entity.created_at
    )


class SessionHooks:
    """Sends the rows that sessions have committed.

    Rows of a savepoint that was rolled back are no longer persistent when the transaction commits.
    Other rows are sent only if they are still in the table. Rows may be missing, because the
    session does not know all savepoints. Also, PostgreSQL rolls back at the commit if the caller
    has caught a database error. A session bound to a Connection does not know when the connection
    commits, so a relay sends its rows.
    """

    def __init__(self, entity: type[Any], table: Table, after_commit: AfterCommit) -> None:
        self._entity = entity
        self._table = table
        self._after_commit = after_commit
        self._written, self._committed = object(), object()
        event.listen(Session, "after_flush", self._on_flush)
        event.listen(Session, "after_commit", self._on_commit)
        event.listen(Session, "after_transaction_end", self._on_end)

    def _on_flush(self, session: Session, context: Any) -> None:
        new = [(entity, _row_of(entity)) for entity in session.new if type(entity) is self._entity]
        if new:
            # Get the engine now, because the session may return another engine outside a flush.
            engine = session.get_bind(self._entity)
            written = session.info.setdefault(self._written, [])
            written.extend((entity, row, engine) for entity, row in new)

    def _on_commit(self, session: Session) -> None:
        if self._written in session.info and not session.in_nested_transaction():
            written = session.info.pop(self._written)
            session.info[self._committed] = [
                (row, engine) for entity, row, engine in written if inspect(entity).persistent
            ]

    def _on_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        session.info.pop(self._written, None)
        by_engine: dict[Any, list[UnsentRow]] = {}
        for row, engine in session.info.pop(self._committed, ()):
            by_engine.setdefault(engine, []).append(row)
        for engine, rows in by_engine.items():
            if isinstance(engine, Engine):
                self._send(engine, rows)

    def _send(self, engine: Engine, rows: Sequence[UnsentRow]) -> None:
        if engine.dialect.is_async:
            from sqlalchemy.ext.asyncio import AsyncEngine

            database = AsyncEngineDatabase(AsyncEngine(engine), self._table)
            self._after_commit.begin(rows, database)
        else:
            self._after_commit.send(rows, EngineDatabase(engine, self._table))
