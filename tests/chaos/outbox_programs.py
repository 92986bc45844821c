"""The programs around an outbox that `outbox_rounds` kills: applications that write orders, relays,
and a server.

Each application or relay that is started uses the next database library in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import multiprocessing
import os
import random
import secrets
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiosqlite  # noqa: F401 - imported before the programs are forked, like all modules
import psycopg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.aiosqlite  # noqa: F401
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.contrib.outbox import Outbox

PREFIX: Final = "outbox-rounds"
INSERT: Final = "INSERT INTO orders (id) VALUES (%s)"
"".encode("idna")  # import the tables that the encoding of host names needs
INSERT_TEXT: Final = text("INSERT INTO orders (id) VALUES (:id)")


@dataclass(frozen=True, slots=True)
class Places:
    """Addresses and files that all programs use."""

    store: str
    dsn: str
    """Connection string for libpq; empty for SQLite."""

    address: str
    """URL for SQLAlchemy."""

    async_address: str
    ran: Path
    """File to which the server appends the order id of each task that it runs."""

    log: Path


class Undo(Exception):
    """Raised to roll back a transaction or a savepoint."""


def undo_sometimes() -> None:
    """Roll back one transaction in four."""
    if random.random() < 0.25:
        raise Undo


def new_orders() -> list[str]:
    """Return the ids of one to three orders."""
    return [secrets.token_hex(8) for _ in range(random.randint(1, 3))]


def pack(order: str) -> Task[str]:
    """Return the task for an order."""
    return Task("pack", order)


def make_engine(places: Places) -> Engine:
    """Return an engine with which SQLite does not wait for the disk. A process can still be killed
    without losing data."""
    engine = create_engine(places.address)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def hurry(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")

    return engine


# Applications, which write orders and their tasks until the database fails.


def write_by_psycopg(outbox: Outbox, places: Places) -> None:
    with psycopg.connect(places.dsn) as connection:
        while True:
            with contextlib.suppress(Undo), outbox.transaction(connection) as rows:
                for order in new_orders():
                    with contextlib.suppress(Undo), connection.transaction():
                        connection.execute(INSERT, (order,))
                        rows.add(pack(order))
                        undo_sometimes()
                undo_sometimes()


def write_by_session(outbox: Outbox, places: Places) -> None:
    engine = make_engine(places)
    while True:
        with contextlib.suppress(Undo), Session(engine) as session, session.begin():
            for order in new_orders():
                with contextlib.suppress(Undo), session.begin_nested():
                    session.execute(INSERT_TEXT, {"id": order})
                    session.add(outbox.row(pack(order)))
                    undo_sometimes()
            undo_sometimes()


async def _write_by_async_psycopg(outbox: Outbox, places: Places) -> None:
    async with await psycopg.AsyncConnection.connect(places.dsn) as connection:
        while True:
            with contextlib.suppress(Undo):
                async with outbox.transaction(connection) as rows:
                    for order in new_orders():
                        await connection.execute(INSERT, (order,))
                        await rows.add(pack(order))
                    undo_sometimes()


async def _write_by_async_session(outbox: Outbox, places: Places) -> None:
    engine = create_async_engine(places.async_address)
    while True:
        with contextlib.suppress(Undo):
            async with AsyncSession(engine) as session, session.begin():
                for order in new_orders():
                    await session.execute(INSERT_TEXT, {"id": order})
                    session.add(outbox.row(pack(order)))
                undo_sometimes()


def write_by_async_psycopg(outbox: Outbox, places: Places) -> None:
    asyncio.run(_write_by_async_psycopg(outbox, places))


def write_by_async_session(outbox: Outbox, places: Places) -> None:
    asyncio.run(_write_by_async_session(outbox, places))


def application(app: Qsync, places: Places, turn: int) -> None:
    """Write orders until killed."""
    writers: list[Callable[[Outbox, Places], None]] = [write_by_session, write_by_async_session]
    if places.dsn:
        writers += [write_by_psycopg, write_by_async_psycopg]
    outbox = Outbox(app)
    while True:
        with contextlib.suppress(psycopg.Error, SQLAlchemyError):
            writers[turn % len(writers)](outbox, places)
        time.sleep(0.02)  # the database may be unreachable or locked


# Relays.


async def _relay_async(outbox: Outbox, places: Places) -> None:
    async with outbox.relay(create_async_engine(places.async_address)):
        await asyncio.Event().wait()


def relay(app: Qsync, places: Places, turn: int) -> None:
    """Run a relay until killed."""
    ways: list[Any] = [make_engine(places), None, *([places.dsn] if places.dsn else [])]
    way, outbox = ways[turn % len(ways)], Outbox(app)
    if way is None:
        asyncio.run(_relay_async(outbox, places))
    with outbox.relay(way):
        threading.Event().wait()


def server(app: Qsync, places: Places, turn: int) -> None:
    """Run the tasks, and record each run in a file in one write."""
    mux = Mux()
    ran = os.open(places.ran, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @mux.handle("pack")
    async def pack(task: TaskInfo) -> None:
        os.write(ran, f"{task.value(str)}\n".encode())

    asyncio.run(app.server(mux).run())


ROLES: Final = {"application": application, "relay": relay, "server": server}


def run_role(role: str, places: Places, turn: int) -> None:
    """Run a program in a new process that ends when its parent ends."""
    log = os.open(places.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("qsync.outbox").setLevel(logging.DEBUG)
    faulthandler.register(signal.SIGUSR1)
    random.seed(secrets.token_bytes(16))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Qsync(places.store, prefix=PREFIX) as app:
        ROLES[role](app, places, turn)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
