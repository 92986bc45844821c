"""ENQUEUE = "outbox": tasks in the database of a Django project until the store has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from qsync import InvalidTask, Qsync
from qsync.testing import SyncKit, inline
from tests.contrib.test_django import enqueue_async, enqueue_sync, pending
from tests.support import django_project
from tests.support.stores import Store, wait_until, wait_until_async


@pytest.fixture
def rows(project: Qsync, valkey: Store) -> Iterator[Any]:
    """The rows of the outbox, which is empty."""
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
    assert enqueue("tea").id in pending(project), "also without a transaction"


def test_rollback_leaves_no_row(project: Qsync, rows: Any) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        enqueue_sync("tea")
        _ = 1 / 0
    assert (rows.count(), pending(project)) == (0, [])


def test_row_that_the_commit_does_not_keep_is_not_sent(project: Qsync, rows: Any) -> None:
    with transaction.atomic():
        kept = enqueue_sync("tea")
        enqueue_sync("coffee")
        rows.exclude(pk=kept.id).delete()  # as when PostgreSQL rolls back at the COMMIT
    assert (rows.count(), pending(project)) == (0, [kept.id])


def test_wrong_task_is_refused_and_leaves_no_row(project: Qsync, rows: Any) -> None:
    with pytest.raises(InvalidTask, match="over the limit"):
        enqueue_sync("x" * 2_000_000)
    assert rows.count() == 0


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
            connections.close_all()  # of this thread

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
