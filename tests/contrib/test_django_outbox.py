"""With ENQUEUE = "outbox", tasks stay in the database of a Django project until the store has
them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from qsync import DuplicateTask, InvalidTask, Qsync
from qsync.contrib.outbox.database import DueRows
from qsync.testing import SyncKit, inline
from tests.contrib.test_django import enqueue_async, enqueue_sync, pending
from tests.support import django_project
from tests.support.postgres import needs_postgres
from tests.support.stores import Store, wait_until, wait_until_async


@pytest.fixture
def rows(project: Qsync, valkey: Store) -> Iterator[Any]:
    """Yield the model of the outbox, whose table is empty."""
    from qsync.contrib.django.models import OutboxRow
    from qsync.contrib.django.project import project_sender

    OutboxRow.objects.all().delete()
    with override_settings(QSYNC=django_project.options(valkey.url, ENQUEUE="outbox")):
        yield OutboxRow.objects
    project_sender().outbox.close()


@pytest.fixture
def held(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send nothing after a commit, as if the process had died."""
    from qsync.contrib.django.project import project_sender

    monkeypatch.setattr(project_sender().outbox._after_commit, "_away_until", float("inf"))


@pytest.mark.parametrize("enqueue", [enqueue_sync, enqueue_async])
def test_row_is_sent_after_the_commit(project: Qsync, rows: Any, enqueue: Any) -> None:
    with transaction.atomic():
        handle = enqueue("tea")
        assert [row.id for row in rows.all()] == [handle.id]
        assert pending(project) == []
    assert pending(project) == [handle.id]
    assert rows.count() == 0
    assert enqueue("tea").id in pending(project), "even without a transaction"


def test_rollback_leaves_no_row(project: Qsync, rows: Any) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        enqueue_sync("tea")
        _ = 1 / 0
    assert (rows.count(), pending(project)) == (0, [])


def test_row_that_is_not_committed_is_not_sent(project: Qsync, rows: Any) -> None:
    with transaction.atomic():
        kept = enqueue_sync("tea")
        enqueue_sync("coffee")
        rows.exclude(pk=kept.id).delete()  # as when PostgreSQL rolls back at the COMMIT
    assert (rows.count(), pending(project)) == (0, [kept.id])


def test_wrong_task_is_refused_and_leaves_no_row(project: Qsync, rows: Any) -> None:
    with pytest.raises(InvalidTask, match="over the limit"):
        enqueue_sync("x" * 2_000_000)
    assert rows.count() == 0


def test_chosen_id_of_a_waiting_row_is_refused_and_the_transaction_continues(
    project: Qsync, rows: Any
) -> None:
    from tests.support.django_shop.tasks import pack

    order = pack.options(id="order-7")
    with transaction.atomic():
        order.enqueue_sync("tea")
        with pytest.raises(
            DuplicateTask, match="id 'order-7': a task that waits in the outbox already has"
        ):
            order.enqueue_sync("coffee")
        other = enqueue_sync("milk")
    assert pending(project) == ["order-7", other.id]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def alias(request: pytest.FixtureRequest, rows: Any) -> Iterator[str]:
    """Yield the alias of a project database whose outbox is empty."""
    if request.param == "sqlite":
        yield "default"
        return
    server = request.getfixturevalue("database")
    engine = "django.db.backends.postgresql"
    options = {"ENGINE": engine, "NAME": "postgres", "HOST": server.folder, "USER": server.user}
    connections.settings["postgres"] = connections.configure_settings(
        {"default": {}, "postgres": options}
    )["postgres"]
    with connections["postgres"].schema_editor() as editor:
        editor.create_model(rows.model)
    yield "postgres"
    with connections["postgres"].schema_editor() as editor:
        editor.delete_model(rows.model)
    connections["postgres"].close()
    del connections["postgres"], connections.settings["postgres"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_outbox_works_without_use_tz(
    project: Qsync, alias: str, held: None, valkey: Store, zone: str
) -> None:
    from qsync.contrib.django.outbox import DjangoDatabase

    changes = {"ENQUEUE": "outbox", "DATABASE": alias}
    with override_settings(USE_TZ=False, TIME_ZONE=zone):
        with (
            patch.dict(settings.DATABASES, {alias: settings.DATABASES.get(alias)}),
            override_settings(QSYNC=django_project.options(valkey.url, **changes)),
        ):
            handle = enqueue_sync("tea")
        database = DjangoDatabase(alias)
        backlog = database.backlog()
        assert backlog.rows == 1
        assert 0 <= backlog.oldest_s < 30
        now = datetime.now(UTC)
        later = now + timedelta(minutes=1)
        with database.take(DueRows(before=now - timedelta(minutes=1), after=later)) as young:
            assert young.rows == []
        with database.take(DueRows(before=later, after=later, queues=["default"])) as batch:
            assert batch.rows == []
        with database.take(DueRows(before=later, after=later)) as batch:
            assert [row.id for row in batch.rows] == [handle.id]
            batch.delete([handle.id])
        assert database.backlog().rows == 0
        connections[alias].close()  # later tests need the configured time zone


def test_relay_of_a_server_sends_remaining_rows(project: Qsync, rows: Any, held: None) -> None:
    from tests.support.django_shop.tasks import weigh

    with transaction.atomic():
        handle = weigh.enqueue_sync("coffee")
    assert rows.count() == 1
    rows.update(created_at=timezone.now() - timedelta(seconds=5))

    def is_empty() -> bool:
        try:
            return bool(rows.count() == 0)
        finally:
            connections.close_all()  # close the connections of this thread

    async def serve() -> int:
        async with project.server():
            await wait_until_async(lambda: asyncio.to_thread(is_empty))
            return await asyncio.to_thread(handle.result, 10)

    assert async_to_sync(serve)() == 6


def test_lifespan_of_the_project_runs_beside_the_relay(project: Qsync, rows: Any) -> None:
    from contextlib import asynccontextmanager

    events: list[str] = []

    @asynccontextmanager
    async def lifespan() -> Any:
        events.append("begun")
        yield "state"
        events.append("ended")

    async def serve() -> None:
        async with project.server(lifespan=lifespan):
            assert events == ["begun"]

    async_to_sync(serve)()
    assert events == ["begun", "ended"]


def test_request_does_not_fail_while_the_store_is_away(
    project: Qsync, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qsync.contrib.django.outbox import DjangoOutbox, relay_of
    from qsync.contrib.django.project import project_sender

    away = Qsync("redis://127.0.0.1:1", prefix=project.prefix)
    monkeypatch.setattr(project_sender(), "outbox", DjangoOutbox(away._connections))
    for _ in range(3):
        enqueue_sync("tea")
    assert rows.count() == 3
    rows.update(created_at=timezone.now() - timedelta(seconds=5))
    with relay_of(project._connections) as relay:
        wait_until(lambda: relay.sent == 3)
    assert (rows.count(), len(pending(project))) == (0, 3)
    away.close()


def test_task_of_django_tasks_goes_through_the_outbox(project: Qsync, rows: Any) -> None:
    from tests.support.django_shop.tasks import send

    with transaction.atomic():
        result = send.enqueue("ann")
        assert (rows.count(), result.enqueued_at) == (1, None)
    assert result.enqueued_at is not None
    assert pending(project, "mail") == [result.id]


def test_inline_tasks_use_no_outbox(project: Qsync, rows: Any) -> None:
    from tests.support.django_shop.tasks import weigh

    with inline(project):
        with transaction.atomic():
            handle = weigh.enqueue_sync("tea")
            assert rows.count() == 0
        assert handle.result(1) == 3


def test_rows_are_sent_to_the_store_of_a_test(project: Qsync, rows: Any) -> None:
    from tests.support.django_shop.tasks import weigh

    with SyncKit(project) as kit:
        with transaction.atomic():
            handle = weigh.enqueue_sync("tea")
        kit.assert_enqueued(weigh, product="tea")
        kit.drain()
        assert handle.result(1) == 3
    assert (rows.count(), pending(project)) == (0, [])
