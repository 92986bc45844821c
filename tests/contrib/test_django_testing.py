"""The test kit works in a Django project, with tasks of django.tasks and enqueues that wait for a
commit."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.test import TestCase, override_settings

from qsync import ConfigError, InvalidTask, Qsync, Task
from qsync.testing import SyncKit, inline
from tests.support import django_project
from tests.support.stores import Store


@pytest.fixture
def shop(project: Qsync) -> Any:
    """Return the tasks of the installed app."""
    from tests.support.django_shop import tasks

    return tasks


def test_tasks_of_django_are_found_with_their_arguments(
    project: Qsync, shop: Any, valkey: Store
) -> None:
    with SyncKit(project, url=valkey.url) as kit:
        result = shop.send.enqueue("ann", copies=2)
        shop.describe.enqueue("a", "b")
        found = kit.assert_enqueued(shop.send, address="ann", copies=2, queue="mail")
        assert found.id == result.id
        [described] = kit.enqueued(shop.describe)
        assert described.arguments == {"words": ("a", "b")}
        with pytest.raises(AssertionError, match=r"send\(address='ann', copies=2\) on queue mail"):
            kit.assert_enqueued(shop.send, address="bob")
        with pytest.raises(InvalidTask, match="no parameter 'to', only address, copies"):
            kit.assert_enqueued(shop.send, to="ann")
        with pytest.raises(InvalidTask, match="no parameter 'context', only words"):
            kit.assert_enqueued(shop.describe, context=1)
        kit.drain()
        result.refresh()
        assert result.return_value == {"to": "ann", "copies": 2}
        with project.client() as client:
            client.enqueue(Task(shop.send.module_path, {"address": "bob"}, queue="mail"))
        assert [task.arguments for task in kit.enqueued(shop.send)] == [
            {"payload": {"address": "bob"}}
        ]


@pytest.mark.parametrize("enqueue", ["on_commit", "outbox"])
def test_failed_assertion_lists_enqueues_waiting_for_the_commit(
    project: Qsync, shop: Any, valkey: Store, enqueue: str
) -> None:
    changed = django_project.options(valkey.url, ENQUEUE=enqueue)
    with override_settings(QSYNC=changed), SyncKit(project, url=valkey.url) as kit:
        with transaction.atomic():
            shop.pack.enqueue_sync("tea")
            shop.send.enqueue("ann")
            with pytest.raises(AssertionError) as failed:
                kit.assert_enqueued(shop.pack)
            with TestCase.captureOnCommitCallbacks(execute=True):
                shop.pack.enqueue_sync("milk")
            kit.assert_enqueued(shop.pack, product="milk")
            with pytest.raises(AssertionError, match="transaction: 2 enqueues"):
                kit.assert_enqueued(shop.pack, product="tea")
        kit.assert_enqueued(shop.pack, product="tea")
        with pytest.raises(AssertionError) as other:
            kit.assert_enqueued(shop.pack, product="oil")
    assert "waiting for the commit of this transaction: 2 enqueues" in str(failed.value)
    assert "with self.captureOnCommitCallbacks(execute=True):" in str(failed.value)
    assert "commit" not in str(other.value)


def test_failed_assertion_of_an_async_test_says_that_nothing_is_captured(
    project: Qsync, shop: Any, valkey: Store
) -> None:
    async def test(kit: SyncKit) -> str:
        with TestCase.captureOnCommitCallbacks(execute=True):
            await shop.pack.enqueue("tea")
        with pytest.raises(AssertionError) as failed:
            kit.assert_enqueued(shop.pack)
        return str(failed.value)

    with SyncKit(project, url=valkey.url) as kit:
        with transaction.atomic():  # like a TestCase
            text = async_to_sync(test)(kit)
        kit.assert_enqueued(shop.pack, product="tea")
    assert "waiting for the commit of this transaction: 1 enqueue" in text
    assert "nothing in an async test: use a TransactionTestCase" in text


def test_no_relay_runs_beside_a_database_in_memory(project: Qsync) -> None:
    from qsync.contrib.django.outbox import _is_in_memory

    engine = "django.db.backends.sqlite3"
    connections.settings["memory"] = connections.configure_settings(
        {"default": {}, "memory": {"ENGINE": engine, "NAME": ":memory:"}}
    )["memory"]
    try:
        assert [_is_in_memory(alias) for alias in ("default", "memory")] == [False, True]
    finally:
        del connections["memory"], connections.settings["memory"]


def test_result_of_an_inline_task_is_read_by_its_id(project: Qsync, shop: Any) -> None:
    with inline(project):
        result = shop.send.enqueue("ann", copies=2)
        read = shop.send.get_result(result.id)
        result.refresh()
        assert str(read.status) == str(result.status) == "SUCCESSFUL"
        assert read.return_value == {"to": "ann", "copies": 2}
        assert (read.args, read.kwargs) == (["ann"], {"copies": 2})
        assert read.started_at is None or read.enqueued_at <= read.finished_at


def test_test_case_kit_works_in_an_async_test(project: Qsync, shop: Any, valkey: Store) -> None:
    async def test(kit: SyncKit) -> Any:
        result = await shop.send.aenqueue("ann", copies=2)
        with pytest.raises(ConfigError, match=r"`await sync_to_async\(self\.qsync\.drain\)\(\)`"):
            kit.drain()
        kit.assert_enqueued(shop.send, address="ann")
        await sync_to_async(kit.drain)()
        await result.arefresh()
        return result.return_value

    with SyncKit(project, url=valkey.url) as kit:
        assert async_to_sync(test)(kit) == {"to": "ann", "copies": 2}
