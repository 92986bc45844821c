"""qsync.contrib.outbox sends each committed task, and no other, once, both with SQLAlchemy and with
psycopg."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from redis.exceptions import ResponseError
from sqlalchemy import Engine, MetaData, create_engine, func, select, text, update
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.schema import CreateTable

from qsync import Client, ConfigError, InvalidTask, Qsync, Task, TaskInfo
from qsync.contrib.outbox import Outbox, retry_log, sending
from qsync.contrib.outbox import database as databases
from qsync.contrib.outbox import relay as relays
from qsync.contrib.outbox.database import ROWS_PER_BATCH, Backlog
from qsync.keys import QueueKeys
from qsync.testing import SyncKit
from tests.support.postgres import Postgres, needs_postgres
from tests.support.stores import Cluster, Store, wait_until, wait_until_async


@pytest.fixture
def app(valkey: Store, prefix: str) -> Iterator[Qsync]:
    with Qsync(valkey.url, prefix=prefix) as app:
        yield app


@pytest.fixture
def client(app: Qsync) -> Iterator[Client]:
    with app.client() as client:
        yield client


@pytest.fixture
def outbox(app: Qsync, prefix: str) -> Iterator[Outbox]:
    outbox = Outbox(app, table=f"outbox_{prefix.replace('-', '_')}")
    yield outbox
    outbox.after_commit.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def engine(request: pytest.FixtureRequest, outbox: Outbox, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    else:
        engine = create_engine(request.getfixturevalue("database").address)
    outbox.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, outbox: Outbox) -> Callable[[], None]:
    """Send nothing after a commit, as if the process had died; the returned function ends this."""
    outbox.after_commit._away_until = float("inf")

    def release() -> None:
        outbox.after_commit._away_until = 0.0

    return release


def count(engine: Engine, outbox: Outbox) -> int:
    with engine.begin() as connection:
        return int(connection.execute(select(func.count()).select_from(outbox.table)).scalar_one())


def make_old(engine: Engine, outbox: Outbox) -> None:
    """Make all rows old enough for a relay to send them."""
    before = datetime.now(UTC) - timedelta(minutes=2)
    with engine.begin() as connection:
        connection.execute(update(outbox.table).values(created_at=before))


def pending(app: Qsync, queue: str = "default") -> list[str]:
    async def read() -> list[str]:
        async with app.inspector() as inspector:
            return [row.id for row in (await inspector.tasks(queue, "pending")).tasks]

    return asyncio.run(read())


def test_session_sends_its_rows_after_the_commit(
    app: Qsync, client: Client, outbox: Outbox, engine: Engine
) -> None:
    with Session(engine) as session:
        row = outbox.row(Task("send", {"invoice": 7}, headers={"a": "b"}))
        session.add(row)
        session.flush()
        id = row.id
        assert pending(app) == []
        session.commit()
        assert pending(app) == [id]
    assert count(engine, outbox) == 0
    info = client.handle(id).info()
    assert (info.type, info.value(), dict(info.headers)) == ("send", {"invoice": 7}, {"a": "b"})


def test_rollback_sends_nothing(app: Qsync, outbox: Outbox, engine: Engine) -> None:
    with Session(engine) as session:
        session.add(outbox.row(Task("send")))
        session.flush()
        session.rollback()
        session.commit()
    assert (count(engine, outbox), pending(app)) == (0, [])


def test_rolled_back_savepoint_sends_none_of_its_tasks(
    app: Qsync, outbox: Outbox, engine: Engine
) -> None:
    with Session(engine) as session:
        session.add(outbox.row(Task("send", id="one")))
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            session.add(outbox.row(Task("send", id="two")))
            session.flush()
            _ = 1 / 0
        with session.begin_nested():
            session.add(outbox.row(Task("send", id="three")))
        assert pending(app) == []
        session.commit()
    assert pending(app) == ["one", "three"]
    assert count(engine, outbox) == 0


@needs_postgres
def test_session_on_a_connection_leaves_its_rows_to_a_relay(
    app: Qsync, outbox: Outbox, database: Postgres
) -> None:
    engine = create_engine(database.address)
    outbox.metadata.create_all(engine)
    with engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(outbox.row(Task("send")))
            session.commit()
        assert pending(app) == []
        outer.rollback()
    assert (count(engine, outbox), pending(app)) == (0, [])
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=needs_postgres)])
def test_async_session_and_relay(
    app: Qsync, outbox: Outbox, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        address = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    else:
        address = request.getfixturevalue("database").address

    heard: list[str] = []

    @app.on("enqueued")
    async def hear(task: TaskInfo) -> None:
        heard.append(task.id)

    async def use() -> None:
        engine = create_async_engine(address)
        async with engine.begin() as connection:
            await connection.run_sync(outbox.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add(outbox.row(Task("send", id="first")))
            await session.commit()
            session.add(outbox.row(Task("send", id="never")))
            await session.rollback()
        await outbox.after_commit.drain()
        outbox.after_commit._away_until = float("inf")
        async with AsyncSession(engine) as session:
            row = outbox.row(Task("send", id="second"))
            row.created_at -= timedelta(minutes=2)
            session.add(row)
            await session.commit()
        async with outbox.relay(engine) as relay:
            await wait_until_async(lambda: relay.sent == 1)
            assert relay.backlog == Backlog(rows=1, oldest_s=pytest.approx(120, abs=10))
        async with engine.begin() as connection:
            left = await connection.execute(select(outbox.table))
            assert left.all() == []
        await engine.dispose()
        await app.aclose()

    asyncio.run(use())
    assert pending(app) == heard == ["first", "second"]


def test_relay_sends_rows_that_the_writer_has_not_sent(
    app: Qsync, outbox: Outbox, engine: Engine, held: Callable[[], None]
) -> None:
    with Session(engine) as session:
        session.add_all([outbox.row(Task("send", n, id=f"{n:04}")) for n in range(600)])
        session.commit()
    assert pending(app) == []
    make_old(engine, outbox)
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 600)
    assert count(engine, outbox) == 0
    assert len(pending(app)) > 0


def test_hooks_are_called_when_a_row_is_sent(app: Qsync, outbox: Outbox, engine: Engine) -> None:
    heard: list[TaskInfo] = []
    app.on("enqueued")(heard.append)
    with Session(engine) as session:
        session.add(outbox.row(Task("send", id="never")))
        session.rollback()
        session.add(outbox.row(Task("send", {"invoice": 7}, id="one", headers={"a": "b"})))
        session.commit()
        [task] = heard
        assert (task.id, task.type, task.queue) == ("one", "send", "default")
        assert (task.value(), task.headers) == ({"invoice": 7}, {"a": "b"})
        outbox.after_commit._away_until = float("inf")
        session.add(outbox.row(Task("send", b"bytes", id="two", retry=9)))
        session.commit()
    make_old(engine, outbox)
    with outbox.relay(engine):
        wait_until(lambda: len(heard) == 2)
    assert (heard[1].id, heard[1].payload, heard[1].retry) == ("two", b"bytes", 9)
    assert count(engine, outbox) == 0


def test_relay_leaves_young_rows_to_their_writer(
    app: Qsync, outbox: Outbox, engine: Engine, held: Callable[[], None]
) -> None:
    with Session(engine) as session:
        rows = [outbox.row(Task("send", id=id)) for id in ("old", "young")]
        rows[0].created_at -= timedelta(seconds=3)
        rows[1].created_at += timedelta(seconds=30)
        session.add_all(rows)
        session.commit()
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 1)
    assert (pending(app), count(engine, outbox)) == (["old"], 1)


def test_rows_of_a_full_queue_wait_without_delaying_other_queues(
    app: Qsync, client: Client, outbox: Outbox, engine: Engine, held: Callable[[], None]
) -> None:
    app.queue("mail", max_tasks=3)

    async def store_bounds() -> None:
        async with app.server(queues=["none"]):
            pass

    asyncio.run(store_bounds())
    with Session(engine) as session:
        tasks = [Task("x", b"%d" % number, queue="mail") for number in range(5)]
        tasks.append(Task("x", queue="other"))
        session.add_all([outbox.row(task) for task in tasks])
        session.commit()
    make_old(engine, outbox)

    async def waiting(queue: str) -> int:
        async with app.inspector() as inspector:
            info = await inspector.queue(queue)
            return 0 if info is None else info.states["pending"]

    async def purge() -> None:
        async with app.inspector() as inspector:
            await inspector.purge("mail", "pending")

    with outbox.relay(engine):
        wait_until(lambda: count(engine, outbox) == 2)
        assert asyncio.run(waiting("mail")) == 3
        assert asyncio.run(waiting("other")) == 1
        asyncio.run(purge())
        wait_until(lambda: count(engine, outbox) == 0)
        assert asyncio.run(waiting("mail")) == 2


def test_many_rows_of_failing_queues_do_not_delay_other_rows(
    app: Qsync,
    outbox: Outbox,
    engine: Engine,
    valkey: Store,
    held: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app.queue("mail", max_tasks=3)

    async def store_bounds() -> None:
        async with app.server(queues=["none"]):
            pass

    asyncio.run(store_bounds())
    later = f"{{{app.prefix}:later}}:meta"
    valkey.command("HSET", later, "schema", 99)
    with Session(engine) as session:
        tasks = [Task("x", queue="mail") for _ in range(ROWS_PER_BATCH + 10)]
        tasks += [Task("x", queue="later") for _ in range(ROWS_PER_BATCH + 10)]
        session.add_all([outbox.row(task) for task in (*tasks, Task("x", id="last"))])
        session.commit()
    make_old(engine, outbox)
    with engine.begin() as connection:
        oldest = datetime.now(UTC) - timedelta(minutes=5)
        others = outbox.table.c.id != "last"
        connection.execute(update(outbox.table).where(others).values(created_at=oldest))
    with outbox.relay(engine) as relay:
        wait_until(lambda: pending(app) == ["last"])
        valkey.command("DEL", later)
        wait_until(lambda: relay.sent == 4 + ROWS_PER_BATCH + 10)
    failure = "cannot send rows of queue mail, retrying: QueueFull: queue mail does not have enough"
    assert failure in caplog.text
    assert "cannot send rows of queue later, retrying: SchemaMismatch: " in caplog.text
    assert "can send rows of queue later again, after " in caplog.text
    assert count(engine, outbox) == ROWS_PER_BATCH + 10 - 3


@pytest.fixture
def unserved_slot(cluster: Cluster, prefix: str) -> Iterator[Callable[[], None]]:
    """Leave the slot of queue q0 without a node until the returned function is called."""
    key = QueueKeys(prefix, "q0").key("tasks")
    holder = cluster.holder(key)
    slot = holder.command("CLUSTER", "KEYSLOT", key)

    def serve() -> None:
        for node in cluster.nodes:
            with contextlib.suppress(ResponseError):  # the node may already know the change
                node.command("CLUSTER", "SETSLOT", slot, "NODE", holder.command("CLUSTER", "MYID"))
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        wait_until(cluster.settled)

    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        node.command("CLUSTER", "DELSLOTS", slot)
    yield serve
    serve()


def test_unreachable_node_does_not_delay_rows_of_other_nodes(
    cluster: Cluster,
    unserved_slot: Callable[[], None],
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "STORE_TIMEOUT_S", 0.3)
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    with Qsync(cluster.url, prefix=prefix) as app:
        outbox = Outbox(app)
        outbox.metadata.create_all(engine)
        outbox.after_commit._away_until = float("inf")
        with Session(engine) as session:
            rows = [outbox.row(Task("x", queue=f"q{n}")) for n in range(6)]
            for row in rows:
                row.created_at -= timedelta(minutes=2)
            session.add_all(rows)
            session.commit()
        with outbox.relay(engine) as relay:
            wait_until(lambda: relay.sent == 5)
            unserved_slot()
            wait_until(lambda: relay.sent == 6)
    engine.dispose()


def test_row_with_a_time_from_a_wrong_clock_is_sent_at_once(
    app: Qsync, outbox: Outbox, engine: Engine, held: Callable[[], None]
) -> None:
    with Session(engine) as session:
        row = outbox.row(Task("send", id="of-tomorrow"))
        row.created_at += timedelta(days=1)
        session.add(row)
        session.commit()
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 1)
    assert (pending(app), count(engine, outbox)) == (["of-tomorrow"], 0)


def test_batch_ends_before_its_rows_fill_the_memory(
    app: Qsync,
    outbox: Outbox,
    engine: Engine,
    held: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(databases, "BATCH_BYTES", 10_000)
    taken: list[int] = []

    def note(client: Any, rows: Any, **options: Any) -> Any:
        taken.append(len(rows))
        return sending.send(client, rows, **options)

    monkeypatch.setattr(relays, "send", note)
    with Session(engine) as session:
        sizes = [20_000, 4_000, 4_000, 4_000, 20_000, 1]
        tasks = [Task("send", b"x" * size, id=f"{n}") for n, size in enumerate(sizes)]
        rows = [outbox.row(task) for task in tasks]
        for row in rows:
            row.created_at -= timedelta(minutes=2)
        session.add_all(rows)
        session.commit()
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 6)
    assert taken[:5] == [1, 2, 1, 1, 1]
    assert sorted(pending(app)) == list("012345")


def test_errors_of_the_database_are_one_line_without_tasks(
    app: Qsync,
    outbox: Outbox,
    prefix: str,
    tmp_path: Path,
    held: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[str] = []
    app.on("enqueued")(lambda task: heard.append(task.id))
    url = f"sqlite:///{tmp_path}/shop.db"
    engine, reader = create_engine(url, connect_args={"timeout": 0.01}), create_engine(url)
    outbox.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(outbox.row(Task("send", id="private-id")))
        session.commit()
    make_old(engine, outbox)
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with outbox.relay(engine) as relay:
            wait_until(lambda: relay.sent == 1)
            other.rollback()
            wait_until(lambda: count(reader, outbox) == 0)
    texts = [record.getMessage() for record in caplog.records if record.name == "qsync.outbox"]
    [text] = [text for text in texts if text.startswith("cannot")]
    assert text.startswith("cannot read or delete rows of the outbox, retrying: OperationalError: ")
    assert text.endswith("database is locked")
    assert texts[-1].startswith("can read or delete rows of the outbox again, after ")
    assert not [text for text in texts if "\n" in text or "private-id" in text]
    assert heard == ["private-id"]
    reader.dispose()
    engine.dispose()


def test_full_queue_does_not_delay_other_queues_after_a_commit(
    app: Qsync, outbox: Outbox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    app.queue("mail", max_tasks=1)

    async def store_bounds() -> None:
        async with app.server(queues=["none"]):
            pass

    asyncio.run(store_bounds())
    with Session(engine) as session:
        for queue in ("mail", "mail", "other", "mail", "other"):
            session.add(outbox.row(Task("x", queue=queue)))
            session.commit()
    assert (len(pending(app, "mail")), len(pending(app, "other"))) == (1, 2)
    texts = [record.getMessage() for record in caplog.records if record.name == "qsync.outbox"]
    start = "cannot send rows of queue mail after their commit, leaving them to relays: QueueFull"
    assert [text.startswith(start) for text in texts] == [True]


@pytest.mark.parametrize("options", [{"debounce": 60}, {"on_duplicate": "replace"}])
def test_later_payload_is_not_replaced_by_an_earlier_waiting_payload(
    app: Qsync, client: Client, outbox: Outbox, engine: Engine, options: dict[str, Any]
) -> None:
    def commit(payload: int, *, key: str = "document") -> None:
        with Session(engine) as session:
            task = Task("index", payload, unique_key=key, **options)
            row = outbox.row(task)
            row.created_at -= timedelta(seconds=3)
            session.add(row)
            session.commit()

    commit(1)
    outbox.after_commit._away_until = float("inf")
    commit(2)
    outbox.after_commit._away_until = 0.0
    commit(3)
    commit(4, key="other")
    assert count(engine, outbox) == 2, "only the third row waits for the second"
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 2)
    commit(5)
    assert count(engine, outbox) == 0
    state = "scheduled" if "debounce" in options else "pending"

    async def payloads() -> list[int]:
        async with app.inspector() as inspector:
            rows = (await inspector.tasks("default", state)).tasks
            return [client.handle(row.id).info().value() for row in rows]

    assert sorted(asyncio.run(payloads())) == [4, 5]


def test_outage_is_logged_when_it_begins_each_minute_and_when_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(retry_log.time, "monotonic", lambda: now)
    retries = retry_log.RetryLog()
    for _ in range(130):
        retries.failed("send rows", OSError("no route"))
        now += 1
    retries.worked("send rows")
    retries.worked("send rows")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "cannot send rows, retrying: OSError: no route",
        "still cannot send rows after 1 min: OSError: no route",
        "still cannot send rows after 2 min: OSError: no route",
        "can send rows again, after 2 min 10 s",
    ]


def test_row_sent_again_does_not_run_again_after_its_task_has_ended(
    app: Qsync, outbox: Outbox, engine: Engine
) -> None:
    ran: list[str] = []

    @app.task(name="send")
    def work() -> None:
        ran.append("ran")

    with Session(engine) as session:
        row = outbox.row(work.build())
        session.add(row)
        session.flush()
        copied = {name: getattr(row, name) for name in ("id", "queue", "message", "created_at")}
        session.commit()

    async def serve() -> None:
        async with app.server():
            await wait_until_async(lambda: ran)
        copied["created_at"] -= timedelta(minutes=1)
        with engine.begin() as connection:
            connection.execute(outbox.table.insert().values(copied))
        async with app.server(), outbox.relay(engine) as relay:
            await wait_until_async(lambda: relay.sent == 1)
            await app._connections.here().enqueue(Task("send", {}))
            await wait_until_async(lambda: len(ran) == 2)

    asyncio.run(serve())
    assert ran == ["ran", "ran"]  # the second run belongs to the task that was enqueued last
    assert count(engine, outbox) == 0


def test_requests_do_not_fail_while_the_store_is_away(
    prefix: str, own_store: Store, tmp_path: Path
) -> None:
    own_store.kill()
    with Qsync(own_store.url, prefix=prefix) as app:
        outbox = Outbox(app)
        engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
        outbox.metadata.create_all(engine)
        began = time.monotonic()
        for _ in range(20):
            with Session(engine) as session:
                row = outbox.row(Task("send"))
                row.created_at -= timedelta(minutes=2)
                session.add(row)
                session.commit()
        assert time.monotonic() - began < 5, "only the first call waits for the store"
        assert count(engine, outbox) == 20
        own_store.start()
        with outbox.relay(engine) as relay:
            wait_until(lambda: relay.sent == 20, timeout=30)
        assert len(pending(app)) == 20
        outbox.after_commit.close()
        engine.dispose()


@needs_postgres
def test_relays_share_the_rows(
    app: Qsync, outbox: Outbox, database: Postgres, held: Callable[[], None]
) -> None:
    engine = create_engine(database.address)
    outbox.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([outbox.row(Task("send", n)) for n in range(2000)])
        session.commit()
    make_old(engine, outbox)
    with contextlib.ExitStack() as stack:
        several = [stack.enter_context(outbox.relay(database.dsn)) for _ in range(3)]
        wait_until(lambda: sum(relay.sent for relay in several) >= 2000)
        assert all(relay.backlog is not None for relay in several)
    assert sum(relay.sent for relay in several) == 2000
    assert count(engine, outbox) == 0
    engine.dispose()


@pytest.mark.slow
@needs_postgres
def test_relay_sends_5000_rows_a_second(app: Qsync, outbox: Outbox, database: Postgres) -> None:
    count, before = 50_000, datetime.now(UTC) - timedelta(minutes=1)
    with psycopg.connect(database.dsn) as connection:
        connection.execute(outbox.create_table)
        name = outbox.table.name
        with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
            for number in range(count):
                row = outbox._make_row(Task("send", {"invoice": number}))
                copy.write_row((row.id, row.queue, row.message, before))
    began = time.monotonic()
    with outbox.relay(database.dsn) as relay:
        wait_until(lambda: relay.sent == count, timeout=60)
    rate = count / (time.monotonic() - began)
    sys.stdout.write(f"outbox relay, rows per second: {rate:.0f}\n")  # shown by `pytest -s`
    assert rate > 5000


@needs_postgres
def test_transaction_of_psycopg_sends_only_committed_tasks(
    app: Qsync, outbox: Outbox, database: Postgres
) -> None:
    with psycopg.connect(database.dsn, row_factory=dict_row) as connection:
        connection.execute(outbox.create_table)
        connection.commit()
        with outbox.transaction(connection) as rows:
            kept = [rows.add(Task("send", 1))]
            with contextlib.suppress(KeyError), connection.transaction():
                rows.add(Task("send", 2))
                raise KeyError
            with connection.transaction():
                kept.append(rows.add(Task("send", 3)))
        with outbox.transaction(connection) as rows:
            rows.add(Task("send", 4))
            raise psycopg.Rollback
        with outbox.transaction(connection) as rows:
            rows.add(Task("send", 5))
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")  # PostgreSQL rolls back at the COMMIT
        with pytest.raises(ConfigError, match="the block and its transaction have ended"):
            rows.add(Task("send", 6))
    assert sorted(pending(app)) == sorted(kept)

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            async with outbox.transaction(connection) as rows:
                kept.append(await rows.add(Task("send", 7)))
                with contextlib.suppress(KeyError):
                    async with connection.transaction():
                        await rows.add(Task("send", 8))
                        raise KeyError
            async with outbox.transaction(connection) as rows:
                await rows.add(Task("send", 9))
                raise psycopg.Rollback
        await app.aclose()

    asyncio.run(use())
    assert sorted(pending(app)) == sorted(kept)


@needs_postgres
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_session_sends_only_committed_tasks(
    app: Qsync, outbox: Outbox, database: Postgres, colour: str
) -> None:
    engine = create_engine(database.address)
    outbox.metadata.create_all(engine)

    def work(session: Session) -> str:
        kept = outbox.row(Task("send", 1))
        session.add(kept)
        session.flush()
        savepoint = session.connection().begin_nested()  # the session does not know this savepoint
        session.add(outbox.row(Task("send", 2)))
        session.flush()
        savepoint.rollback()
        id = str(kept.id)
        session.commit()
        session.add(outbox.row(Task("send", 3)))
        session.flush()
        with contextlib.suppress(DBAPIError):
            session.execute(text("SELECT 1 / 0"))  # PostgreSQL rolls back at the COMMIT
        session.commit()
        return id

    async def use() -> str:
        of_async = create_async_engine(database.address)
        async with AsyncSession(of_async) as session:
            id = await session.run_sync(work)
            await outbox.after_commit.drain()
        await of_async.dispose()
        await app.aclose()
        return id

    if colour == "async":
        kept = asyncio.run(use())
    else:
        with Session(engine) as session:
            kept = work(session)
    assert pending(app) == [kept]
    assert count(engine, outbox) == 0
    engine.dispose()


@needs_postgres
def test_psycopg_transaction_sends_its_rows(app: Qsync, outbox: Outbox, database: Postgres) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute(outbox.create_table)
        connection.commit()
        with outbox.transaction(connection) as rows:
            first = rows.add(Task("send", 7))
            assert pending(app) == []
        assert pending(app) == [first]
        with contextlib.suppress(ZeroDivisionError), outbox.transaction(connection) as rows:
            rows.add(Task("send", 8))
            _ = 1 / 0
        with (
            connection.transaction(),
            pytest.raises(ConfigError, match="is already in a transaction"),
            outbox.transaction(connection),
        ):
            pass
        with pytest.raises(InvalidTask), outbox.transaction(connection) as rows:
            rows.add(Task("send", object()))

    async def use() -> str:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            async with outbox.transaction(connection) as rows:
                second = await rows.add(Task("send", 9))
            await app.aclose()
            return second

    second = asyncio.run(use())
    assert pending(app) == [first, second]
    with psycopg.connect(database.dsn) as connection:
        found = connection.execute(f"SELECT count(*) FROM {outbox.table.name}").fetchone()  # noqa: S608
        assert found == (0,)


def test_unreadable_row_stays_without_stopping_others(
    app: Qsync, outbox: Outbox, engine: Engine, held: Callable[[], None]
) -> None:
    with Session(engine) as session:
        bad, good = outbox.row(Task("send", id="bad")), outbox.row(Task("send", id="good"))
        bad.message = b"\xc1"
        session.add_all([bad, good])
        session.commit()
    make_old(engine, outbox)
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.sent == 1 and relay.unreadable)
    assert (pending(app), list(relay.unreadable)) == (["good"], ["bad"])
    assert count(engine, outbox) == 1


def test_old_rows_are_logged(
    outbox: Outbox, engine: Engine, held: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Session(engine) as session:
        session.add(outbox.row(Task("send")))
        session.commit()
    make_old(engine, outbox)
    with outbox.relay(engine) as relay:
        wait_until(lambda: relay.backlog is not None)
    assert "waiting in the outbox: 1 row, the oldest for 12" in caplog.text


def test_count_that_fails_is_repeated_at_the_next_step() -> None:
    progress = relays._Progress()
    assert [progress.is_due(), progress.is_due()] == [True, True]
    progress.note(Backlog(rows=1, oldest_s=2.0))
    assert not progress.is_due()


def test_pauses_grow_while_the_store_is_away() -> None:
    progress = relays._Progress()
    pauses = [progress.pause_after_error(OSError("no route")) for _ in range(6)]
    assert pauses == [1, 2, 4, 8, 10, 10]


def test_table_is_in_the_metadata_of_the_program_from_the_start(app: Qsync) -> None:
    metadata = MetaData()
    Outbox(app, table="shop.rows", metadata=metadata)
    [table] = metadata.tables.values()
    assert (table.schema, table.name) == ("shop", "rows")
    sizes = CreateTable(table).compile(dialect=mysql.dialect())  # type: ignore[no-untyped-call]
    assert "LONGBLOB" in str(sizes), "a MySQL BLOB holds at most 64 KiB"
    assert "DATETIME(6)" in str(sizes)


@needs_postgres
def test_table_with_a_schema_is_the_same_for_sqlalchemy_and_psycopg(
    app: Qsync, client: Client, database: Postgres
) -> None:
    outbox = Outbox(app, table="shop.rows")
    engine = create_engine(database.address)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute(outbox.create_table)
        outbox.metadata.create_all(engine)
        outbox.after_commit._away_until = float("inf")
        with Session(engine) as session:
            session.add(outbox.row(Task("send", id="of-the-session")))
            session.commit()
        make_old(engine, outbox)
        with outbox.relay(database.dsn) as relay:
            wait_until(lambda: relay.sent == 1)
        connection.execute("DROP SCHEMA shop CASCADE")
    assert client.handle("of-the-session").info().state == "pending"
    engine.dispose()


def test_session_is_asked_for_its_engine_only_while_it_writes(
    app: Qsync, outbox: Outbox, engine: Engine
) -> None:
    class ToReplicaUnlessWriting(Session):
        def get_bind(self, mapper: Any = None, **options: Any) -> Any:
            if not self._flushing:
                raise OSError("the replica is away")
            return engine

    with ToReplicaUnlessWriting() as session:
        session.add(outbox.row(Task("send", id="written")))
        session.commit()
    assert (count(engine, outbox), pending(app)) == (0, ["written"])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda app: Outbox(app, table="a b"), "table: 'a b' is not the name of a table"),
        (
            lambda app: Outbox(Qsync("redis://localhost", remember_ids=0)),
            "remember_ids=0, so a row that is sent twice would run twice",
        ),
        (lambda app: Outbox(app).relay(7), "relay: 7 is neither an SQLAlchemy engine nor"),
        (lambda app: Outbox(7), "outbox: 7 is not a Qsync"),
        (
            lambda app: Outbox(app, metadata=DeclarativeBase),  # type: ignore[arg-type]
            "metadata: .*DeclarativeBase.* is not a MetaData",
        ),
        (
            lambda app: [Outbox(app, metadata=shared) for shared in [MetaData()] for _ in "ab"],
            "table: the metadata already has a table 'qsync_outbox'; create one Outbox",
        ),
        (lambda app: Outbox(app).relay("sqlite:///shop.db"), "not a PostgreSQL connection string"),
        (lambda app: Outbox(app).transaction(7), "int is not a psycopg connection; with SQLAl"),
    ],
)
def test_wrong_use_is_reported(app: Qsync, make: Callable[[Qsync], Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(app)
    with pytest.raises(InvalidTask, match="task: int is not a Task"):
        Outbox(app).row(7)  # type: ignore[arg-type]


def test_backlog_is_a_metric(outbox: Outbox, engine: Engine, held: Callable[[], None]) -> None:
    from prometheus_client import CollectorRegistry

    from qsync.contrib.outbox.metrics import OutboxCollector

    registry = CollectorRegistry()
    with Session(engine) as session:
        session.add(outbox.row(Task("send")))
        session.commit()
    make_old(engine, outbox)
    with outbox.relay(engine) as relay:
        registry.register(OutboxCollector(relay))
        wait_until(lambda: relay.sent == 1)
        assert registry.get_sample_value("qsync_outbox_rows") == 1
        assert registry.get_sample_value("qsync_outbox_oldest_seconds") == pytest.approx(120, abs=9)
        assert registry.get_sample_value("qsync_outbox_sent_total") == 1
        assert registry.get_sample_value("qsync_outbox_unreadable_rows") == 0


def test_row_carries_the_headers_of_extensions(
    app: Qsync, client: Client, outbox: Outbox, engine: Engine
) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    from qsync.contrib import opentelemetry

    opentelemetry.instrument(app, tracer_provider=TracerProvider())
    with Session(engine) as session:
        row = outbox.row(Task("send"))
        session.add(row)
        session.flush()
        id = row.id
        session.commit()
    assert "traceparent" in client.handle(id).info().headers


def test_rows_are_sent_to_the_store_of_a_test(app: Qsync, outbox: Outbox, engine: Engine) -> None:
    def buy(id: str) -> None:
        with Session(engine) as session:
            session.add(outbox.row(Task("send", id=id)))
            session.commit()

    buy("before")
    with SyncKit(app) as kit:
        buy("within")
        assert [task.id for task in kit.enqueued("send")] == ["within"]
    buy("after")
    assert pending(app) == ["before", "after"]
