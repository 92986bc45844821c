"""An outbox: tasks are written in a database transaction and sent after its commit.

    outbox = Outbox(app, table="qsync_outbox")

    session.add(outbox.row(send.build(7)))           # SQLAlchemy, sync or async
    with outbox.transaction(connection) as rows:     # psycopg 3; `async with` if it is async
        rows.add(send.build(7))

    async with app.server(), outbox.relay(engine): ...

The process that wrote a row sends it after the commit. Relays send the remaining rows. See
docs/outbox.md; for Django, set ENQUEUE = "outbox" (docs/django.md).
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, overload

from qsync.app import Qsync
from qsync.contrib.outbox.after_commit import AfterCommit
from qsync.contrib.outbox.database import Backlog
from qsync.contrib.outbox.relay import AsyncRelay, Relay
from qsync.contrib.outbox.rows import UnsentRow, make_row
from qsync.errors import ConfigError
from qsync.task import Task
from qsync.value_text import shorten

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from sqlalchemy import Engine, MetaData, Table
    from sqlalchemy.ext.asyncio import AsyncEngine

    from qsync.contrib.outbox.psycopg import (
        AsyncOutboxTransaction,
        OutboxTransaction,
        Statements,
    )

__all__ = ["AsyncRelay", "Backlog", "Outbox", "Relay"]

NAME: Final = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,50}")


class Outbox:
    """An app's outbox in a database table.

    table     name of the table, optionally with a schema: "shop.qsync_outbox"
    metadata  SQLAlchemy MetaData to which the table is added, e.g. `Base.metadata`, so that its
              migrations include the table; by default a new MetaData

    A row that is sent twice does not run twice: the store refuses a known id for the app's
    `remember_ids`, even after the task has ended. An app with `remember_ids=0` therefore raises
    ConfigError.
    """

    def __init__(
        self, app: Qsync, *, table: str = "qsync_outbox", metadata: MetaData | None = None
    ) -> None:
        if not isinstance(app, Qsync):
            raise ConfigError(f"outbox: {shorten(app)} is not a Qsync")
        if not isinstance(table, str) or NAME.fullmatch(table) is None:
            raise ConfigError(f"table: {shorten(table)} is not the name of a table")
        connections = app._connections
        if not connections.nested["remember_ids"]:
            raise ConfigError(
                "outbox: the app has remember_ids=0, so a row that is sent twice would run twice"
            )
        self._connections = connections
        self._name = table
        self._metadata = metadata
        if metadata is not None:
            _ = self.table  # create the table now, so that migrations of the metadata include it
        self.after_commit: AfterCommit = AfterCommit(connections)
        """Sends rows after a commit; `await outbox.after_commit.drain()` waits until they are
        sent."""

    @cached_property
    def metadata(self) -> MetaData:
        """The SQLAlchemy MetaData that contains the table: `outbox.metadata.create_all(engine)`."""
        return self.table.metadata

    @cached_property
    def table(self) -> Table:
        """The outbox table as an SQLAlchemy Table."""
        from qsync.contrib.outbox.sqlalchemy import make_table

        return make_table(self._name, self._metadata)

    @cached_property
    def _entity(self) -> type[Any]:
        from qsync.contrib.outbox.sqlalchemy import SessionHooks, make_entity

        entity = make_entity(self.table)
        self._hooks = SessionHooks(entity, self.table, self.after_commit)
        return entity

    @cached_property
    def _statements(self) -> Statements:
        from qsync.contrib.outbox.psycopg import Statements

        return Statements(self._name)

    @property
    def create_table(self) -> Any:
        """The statement for psycopg that creates the table: `connection.execute(...)`."""
        return self._statements.create

    def row(self, task: Task[Any]) -> Any:
        """Return the row for a task, for `session.add`; its `id` is the id of the task.

        The session sends the task after its commit; an async session does so in the background.
        Raises InvalidTask if the task is invalid.
        """
        row = self._make_row(task)
        entity = self._entity()
        entity.id, entity.queue = row.id, row.queue
        entity.message, entity.created_at = row.message, row.created_at
        return entity

    def _make_row(self, task: Task[Any]) -> UnsentRow:
        return make_row(task, self._connections)

    @overload
    def transaction(
        self, connection: Connection[Any]
    ) -> AbstractContextManager[OutboxTransaction]: ...

    @overload
    def transaction(
        self, connection: AsyncConnection[Any]
    ) -> AbstractAsyncContextManager[AsyncOutboxTransaction]: ...

    def transaction(self, connection: Any) -> Any:
        """Open the outermost transaction on a psycopg connection; tasks can be added within it.

        After the commit, the block sends the tasks; a rollback discards them. Raises ConfigError if
        a transaction is already open on the connection.
        """
        from qsync.contrib.outbox.psycopg import transaction_of

        opened = transaction_of(connection)
        return opened(connection, self._statements, self._make_row, self.after_commit)

    @overload
    def relay(self, database: Engine | str) -> Relay: ...

    @overload
    def relay(self, database: AsyncEngine) -> AsyncRelay: ...

    def relay(self, database: Any) -> Relay | AsyncRelay:
        """Return a relay: a context manager that sends rows older than 2 s.

        `database` is an SQLAlchemy engine or a psycopg connection string. Any number of
        relays may run. On SQLite, which cannot lock rows, two relays send each row twice, and the
        store drops the second copy.
        """
        if isinstance(database, str):
            from qsync.contrib.outbox.psycopg import ConnectionDatabase

            return Relay(self._connections, ConnectionDatabase(database, self._statements))
        with contextlib.suppress(ModuleNotFoundError):
            from sqlalchemy import Engine

            from qsync.contrib.outbox.sqlalchemy import AsyncEngineDatabase, EngineDatabase

            if isinstance(database, Engine):
                return Relay(self._connections, EngineDatabase(database, self.table))
            with contextlib.suppress(ImportError):  # without greenlet, there are no async engines
                from sqlalchemy.ext.asyncio import AsyncEngine

                if isinstance(database, AsyncEngine):
                    return AsyncRelay(self._connections, AsyncEngineDatabase(database, self.table))
        raise ConfigError(
            f"relay: {shorten(database)} is neither an SQLAlchemy engine nor a connection string"
        )
