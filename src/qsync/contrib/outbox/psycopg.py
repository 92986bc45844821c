"""The outbox in PostgreSQL with psycopg 3, for sync and async connections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

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
from qsync.contrib.outbox.rows import ID_LENGTH, QUEUE_LENGTH, UnsentRow
from qsync.errors import ConfigError
from qsync.instrumentation import missing
from qsync.task import Task

try:
    import psycopg
    from psycopg import AsyncConnection, Connection
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import TransactionStatus
    from psycopg.rows import tuple_row
    from psycopg.sql import SQL, Composed, Identifier
except ModuleNotFoundError as _error:
    raise missing(_error, "psycopg") from None

CONNECT_S: Final = 10
"""Default timeout for a relay's connection to the database, in seconds; `connect_timeout` in the
connection string overrides it. Without a timeout, psycopg waits for over two minutes for a
server that has just died."""

MakeRow = Callable[[Task[Any]], UnsentRow]


class Statements:
    """The SQL statements for an outbox table; its name may have a schema: `shop.qsync_outbox`."""

    def __init__(self, table: str) -> None:
        name = Identifier(*table.split("."))
        index = Identifier(f"{table.rpartition('.')[2]}_created_at")
        self.create: Composed = SQL(
            "CREATE TABLE IF NOT EXISTS {0} ("
            "id varchar({2}) PRIMARY KEY, queue varchar({3}) NOT NULL, message bytea NOT NULL, "
            "created_at timestamptz NOT NULL); "
            "CREATE INDEX IF NOT EXISTS {1} ON {0} (created_at)"
        ).format(name, index, SQL(str(ID_LENGTH)), SQL(str(QUEUE_LENGTH)))
        self.insert: Composed = SQL(
            "INSERT INTO {} (id, queue, message, created_at) VALUES (%s, %s, %s, %s)"
        ).format(name)
        self.sizes: Composed = SQL(
            "SELECT id, length(message) FROM {} WHERE (created_at < %s OR created_at > %s) "
            "AND id <> ALL(%s) AND queue <> ALL(%s) "
            "ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED"
        ).format(name)
        self.take: Composed = SQL(
            "SELECT id, queue, message, created_at FROM {} WHERE id = ANY(%s) ORDER BY created_at"
        ).format(name)
        self.delete: Composed = SQL("DELETE FROM {} WHERE id = ANY(%s)").format(name)
        self.kept: Composed = SQL("SELECT id FROM {} WHERE id = ANY(%s)").format(name)
        self.earlier: Composed = SQL(
            "SELECT id, length(message) FROM {} WHERE queue = %s AND created_at < %s LIMIT %s"
        ).format(name)
        self.backlog: Composed = SQL(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM {0} LIMIT %s) AS counted), "
            "(SELECT min(created_at) FROM {0})"
        ).format(name)


def values(row: UnsentRow) -> tuple[Any, ...]:
    """Return the parameters of the insert."""
    return row.id, row.queue, row.message, row.created_at


class ConnectionDatabase:
    """The database that a connection string names; the relay has a separate connection to it."""

    def __init__(self, address: str, statements: Statements) -> None:
        try:
            self._parameters = conninfo_to_dict(address)
        except psycopg.ProgrammingError:  # hide the error's text, which may contain the password
            raise ConfigError(
                "relay: the text is not a PostgreSQL connection string, such as 'dbname=shop' or "
                "'postgresql://localhost/shop'; for an SQLAlchemy URL, pass the engine"
            ) from None
        self._statements = statements
        self._connection: Connection[Any] | None = None

    def _open(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            parameters: dict[str, Any] = {"connect_timeout": CONNECT_S, **self._parameters}
            self._connection = psycopg.connect(**parameters, autocommit=True)
        return self._connection

    @contextlib.contextmanager
    def take(self, selection: DueRows) -> Iterator[RowBatch]:
        """See Database."""
        connection = self._open()
        with connection.transaction():
            sizes = connection.execute(
                self._statements.sizes,
                (
                    selection.before, selection.after, list(selection.ids),
                    list(selection.queues), ROWS_PER_BATCH,
                ),
            ).fetchall()  # fmt: skip
            ids = fitting_ids(sizes)
            rows = _rows_of(connection.execute(self._statements.take, (ids,)).fetchall())
            yield RowBatch(rows, has_more(sizes, ids), partial(self._delete, connection))

    def _delete(self, connection: Connection[Any], ids: list[str]) -> None:
        connection.execute(self._statements.delete, (ids,))

    def backlog(self) -> Backlog:
        """See Database."""
        row = self._open().execute(self._statements.backlog, (COUNTED,)).fetchone()
        count, oldest = row or (0, None)
        return backlog_of(count, oldest)

    def close(self) -> None:
        """See Database."""
        if self._connection is not None:
            self._connection.close()


def _rows_of(records: Sequence[Any]) -> list[UnsentRow]:
    return [
        UnsentRow(id=id, queue=queue, message=bytes(message), created_at=created)
        for id, queue, message, created in records
    ]


class _CommittedRows:
    """The rows that a transaction on a connection has committed; see CommittedRows."""

    def __init__(self, connection: Connection[Any], statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    def kept(self, rows: Sequence[UnsentRow]) -> Sequence[UnsentRow]:
        """Return all rows, because the transaction checked just before its commit that they
        exist."""
        return rows

    def earlier(self, row: UnsentRow) -> Sequence[UnsentRow] | None:
        """See CommittedRows."""
        connection, statements = self._connection, self._statements
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            parameters = (row.queue, row.created_at, COMPARED_ROWS + 1)
            ids = comparable_ids(cursor.execute(statements.earlier, parameters).fetchall())
            if not ids:
                return None if ids is None else []
            return _rows_of(cursor.execute(statements.take, (ids,)).fetchall())

    def delete(self, ids: list[str]) -> None:
        """See CommittedRows."""
        with self._connection.transaction():
            self._connection.execute(self._statements.delete, (ids,))


class _AsyncCommittedRows:
    """Like _CommittedRows, for an async connection."""

    def __init__(self, connection: AsyncConnection[Any], statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    async def kept(self, rows: Sequence[UnsentRow]) -> Sequence[UnsentRow]:
        """Return all rows, because the transaction checked just before its commit that they
        exist."""
        return rows

    async def earlier(self, row: UnsentRow) -> Sequence[UnsentRow] | None:
        """See CommittedRows."""
        connection, statements = self._connection, self._statements
        async with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            parameters = (row.queue, row.created_at, COMPARED_ROWS + 1)
            await cursor.execute(statements.earlier, parameters)
            ids = comparable_ids(await cursor.fetchall())
            if not ids:
                return None if ids is None else []
            await cursor.execute(statements.take, (ids,))
            return _rows_of(await cursor.fetchall())

    async def delete(self, ids: list[str]) -> None:
        """See CommittedRows."""
        async with self._connection.transaction():
            await self._connection.execute(self._statements.delete, (ids,))


class OutboxTransaction:
    """A transaction on a connection; its tasks are sent once it has committed."""

    def __init__(self, connection: Connection[Any], insert: Composed, make_row: MakeRow) -> None:
        self._connection = connection
        self._insert = insert
        self._make_row = make_row
        self.rows: list[UnsentRow] = []
        self.open: bool = True

    def add(self, task: Task[Any]) -> str:
        """Write the row of a task, and return the id of the task.

        Raises InvalidTask if the task is invalid, and ConfigError after the end of the block.
        """
        _check_open(self.open)
        row = self._make_row(task)
        self._connection.execute(self._insert, values(row))
        self.rows.append(row)
        return row.id


class AsyncOutboxTransaction:
    """A transaction on an async connection; its tasks are sent once it has committed."""

    def __init__(
        self, connection: AsyncConnection[Any], insert: Composed, make_row: MakeRow
    ) -> None:
        self._connection = connection
        self._insert = insert
        self._make_row = make_row
        self.rows: list[UnsentRow] = []
        self.open: bool = True

    async def add(self, task: Task[Any]) -> str:
        """Write the row of a task, and return the id of the task.

        Raises InvalidTask if the task is invalid, and ConfigError after the end of the block.
        """
        _check_open(self.open)
        row = self._make_row(task)
        await self._connection.execute(self._insert, values(row))
        self.rows.append(row)
        return row.id


@contextlib.contextmanager
def transaction(
    connection: Connection[Any], statements: Statements, make_row: MakeRow, after: AfterCommit
) -> Iterator[OutboxTransaction]:
    """Open a transaction, and send its tasks after the commit."""
    _check_idle(connection)
    opened, committed = (
        OutboxTransaction(connection, statements.insert, make_row),
        list[UnsentRow](),
    )
    try:
        with connection.transaction():
            yield opened
            if opened.rows and not _has_failed(connection):
                with connection.cursor(row_factory=tuple_row) as cursor:
                    ids = cursor.execute(statements.kept, ([row.id for row in opened.rows],))
                    committed = _rows_with(opened.rows, ids.fetchall())
    finally:
        opened.open = False

    after.send(committed, _CommittedRows(connection, statements))


@contextlib.asynccontextmanager
async def async_transaction(
    connection: AsyncConnection[Any], statements: Statements, make_row: MakeRow, after: AfterCommit
) -> AsyncIterator[AsyncOutboxTransaction]:
    """Open a transaction, and send its tasks after the commit."""
    _check_idle(connection)
    opened, committed = (
        AsyncOutboxTransaction(connection, statements.insert, make_row),
        list[UnsentRow](),
    )
    try:
        async with connection.transaction():
            yield opened
            if opened.rows and not _has_failed(connection):
                async with connection.cursor(row_factory=tuple_row) as cursor:
                    await cursor.execute(statements.kept, ([row.id for row in opened.rows],))
                    committed = _rows_with(opened.rows, await cursor.fetchall())
    finally:
        opened.open = False

    await after.send_async(committed, _AsyncCommittedRows(connection, statements))


def transaction_of(connection: Any) -> Any:
    """Return the function that opens a transaction on this connection. Raises ConfigError if the
    object is not a psycopg connection.
    """
    if isinstance(connection, AsyncConnection):
        return async_transaction
    if isinstance(connection, Connection):
        return transaction
    raise ConfigError(
        f"outbox.transaction: {type(connection).__name__} is not a psycopg connection; with "
        f"SQLAlchemy, add outbox.row(...) to a session"
    )


def _has_failed(connection: Any) -> bool:
    """Return whether an error has aborted the transaction; PostgreSQL then rolls back at COMMIT."""
    return bool(connection.info.transaction_status == TransactionStatus.INERROR)


def _rows_with(rows: Sequence[UnsentRow], ids: Sequence[tuple[str]]) -> list[UnsentRow]:
    """Return the rows whose ids were found, which excludes rows of savepoints that were rolled
    back."""
    found = {id for (id,) in ids}
    return [row for row in rows if row.id in found]


def _check_open(is_open: bool) -> None:
    if not is_open:
        raise ConfigError(
            "outbox.transaction: the block and its transaction have ended; open another transaction"
        )


def _check_idle(connection: Any) -> None:
    """Raise ConfigError if a transaction is open, because the end of the block would not commit
    it."""
    if connection.info.transaction_status in (
        TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR,
    ):  # fmt: skip
        raise ConfigError(
            "outbox.transaction: the connection is already in a transaction; open "
            "outbox.transaction as the outermost one"
        )
