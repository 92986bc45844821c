"""QsyncBackend puts tasks of django.tasks into the store and runs them on qsync servers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import checks
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from qsync import ConfigError, DuplicateTask, InvalidTask, Qsync, Task
from qsync.message import decode_message
from tests.support import django_project
from tests.support.stores import Store


@pytest.fixture
def shop(project: Qsync) -> Any:
    """Return the tasks of the installed app."""
    from tests.support.django_shop import tasks

    return tasks


@pytest.fixture
def api(project: Qsync) -> Any:
    """Return the namespace of django.tasks, from Django or from the backport."""
    from qsync.contrib.django import tasks_api

    return tasks_api


def finish(project: Qsync, *results: Any) -> None:
    """Run a server until the tasks have ended, and refresh their results."""

    async def serve() -> None:
        async with project.server(queues=["default", "mail"], sweep=0.2), asyncio.timeout(20):
            for result in results:
                while not result.is_finished:
                    await asyncio.sleep(0.01)
                    await result.arefresh()

    async_to_sync(serve)()


@contextmanager
def receiving(signal: Any) -> Iterator[list[Any]]:
    seen: list[Any] = []

    def note(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((task_result.id, str(task_result.status), sender.__name__))

    signal.connect(note)
    try:
        yield seen
    finally:
        signal.disconnect(note)


def test_task_runs_and_its_result_is_read(project: Qsync, shop: Any, api: Any) -> None:
    result = shop.send.enqueue("ann", copies=2)
    assert result.status == api.TaskResultStatus.READY
    assert shop.send.get_result(result.id) == result
    finish(project, result)
    assert result.status == api.TaskResultStatus.SUCCESSFUL
    assert result.return_value == {"to": "ann", "copies": 2}
    assert (result.args, result.kwargs) == (["ann"], {"copies": 2})
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert result.attempts == 1
    assert result.task == shop.send
    assert all(result.worker_ids)


def test_failure_is_shown_with_class_and_traceback_of_each_attempt(
    project: Qsync, shop: Any, api: Any
) -> None:
    result = shop.send.enqueue("nobody")
    finish(project, result)
    assert result.status == api.TaskResultStatus.FAILED
    assert result.attempts == 2
    assert [error.exception_class for error in result.errors] == [shop.OutOfStock] * 2
    first, last = result.errors
    assert first.traceback == "OutOfStock: 1 for nobody\n"
    assert last.traceback.startswith('Traceback (most recent call last):\n  File "')
    assert 'raise OutOfStock(f"{copies} for {address}")' in last.traceback
    assert last.traceback.endswith("\nOutOfStock: 1 for nobody\n")
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


def test_context_has_the_result_and_the_attempt(project: Qsync, shop: Any) -> None:
    result = shop.describe.enqueue("a", "b")
    finish(project, result)
    assert result.return_value == [result.id, 1, "RUNNING", ["a", "b"]]


def test_returned_object_that_is_not_json_fails_the_task(project: Qsync, shop: Any) -> None:
    result = shop.return_object.enqueue()
    finish(project, result)
    [error] = result.errors
    assert issubclass(error.exception_class, TypeError)
    assert "Unsupported type" in error.traceback


def test_signals_are_sent_for_each_step(project: Qsync, shop: Any, api: Any) -> None:
    signals = api.signals
    with (
        receiving(signals.task_enqueued) as enqueued,
        receiving(signals.task_started) as started,
        receiving(signals.task_finished) as finished,
    ):
        good, bad = shop.send.enqueue("ann"), shop.send.enqueue("nobody")
        assert enqueued == [(one.id, "READY", "QsyncBackend") for one in (good, bad)]
        finish(project, good, bad)
    assert sorted(started) == sorted(
        (one.id, "RUNNING", "QsyncBackend") for one in (good, bad, bad)
    )
    assert sorted(finished) == sorted([
        (good.id, "SUCCESSFUL", "QsyncBackend"), (bad.id, "FAILED", "QsyncBackend"),
    ])  # fmt: skip


def test_task_finished_is_sent_once_for_runs_that_are_stopped(
    project: Qsync, shop: Any, api: Any
) -> None:
    """A task that a stopping server hands back has not finished."""
    ended: list[tuple[str, str, list[str]]] = []

    def note(task_result: Any, **_: Any) -> None:
        classes = [error.exception_class_path for error in task_result.errors]
        ended.append((task_result.id, str(task_result.status), classes))

    async def serve(results: dict[str, Any], cancelled: Any, handed_back: Any) -> None:
        queues = ["default", "mail"]
        async with (
            project.server(queues=queues, sweep=0.2, shutdown_timeout=0.1),
            project.async_client() as client,
            asyncio.timeout(20),
        ):
            for result in (cancelled, handed_back):
                while result.status != api.TaskResultStatus.RUNNING:
                    await asyncio.sleep(0.01)
                    await result.arefresh()
            await (await client.find(cancelled.id)).cancel()
            while len(ended) < len(results) or not all(one.is_finished for one in results.values()):
                await asyncio.sleep(0.01)
                for result in results.values():
                    await result.arefresh()

    api.signals.task_finished.connect(note)
    try:
        results = {
            "builtins.TimeoutError": shop.hang.enqueue(),
            "TimeoutError in a thread": shop.hang_in_thread.enqueue(),
            "builtins.RuntimeError": shop.cancel_itself.enqueue(),
            "qsync.TaskCancelled": (cancelled := shop.wait_long.enqueue()),
        }
        async_to_sync(serve)(results, cancelled, handed_back := shop.wait_long.enqueue())
    finally:
        api.signals.task_finished.disconnect(note)
    handed_back.refresh()
    assert handed_back.status == api.TaskResultStatus.READY
    assert sorted(ended) == sorted(
        (result.id, "FAILED", [name if "." in name else "builtins.TimeoutError"])
        for name, result in results.items()
    )
    for name, result in results.items():
        assert name.partition(" ")[0] in result.errors[-1].exception_class_path


def test_run_after_delays_the_task(project: Qsync, shop: Any) -> None:
    due = timezone.now() + timedelta(hours=1)
    result = shop.send.using(run_after=due).enqueue("ann")
    with project.client() as client:
        assert client.handle(result.id, queue="mail").info().due_at == due
    assert shop.send.get_result(result.id).task.run_after == due


def test_options_of_the_decorator_apply_to_the_task(project: Qsync, shop: Any) -> None:
    result = shop.send.enqueue("ann")
    with project.client() as client:
        info = client.handle(result.id, queue="mail").info()
    assert (info.retry, info.retention_us) == (1, 86_400_000_000)
    assert info.type == "tests.support.django_shop.tasks.send"


def test_backend_options_are_defaults_of_tasks(project: Qsync, shop: Any) -> None:
    changed = {**django_project.TASKS["default"], "OPTIONS": {"retry": 7, "retention": 9}}
    with override_settings(TASKS={"default": changed}):
        results = [shop.describe.enqueue(), shop.send.enqueue("ann")]
    with project.client() as client:
        infos = [client.find(result.id).info() for result in results]
    assert [(info.retry, info.retention_us) for info in infos] == [(7, 9_000_000), (1, 9_000_000)]


def test_unique_task_is_refused_while_another_waits(project: Qsync, shop: Any) -> None:
    first = shop.tidy.enqueue()
    with pytest.raises(DuplicateTask) as refused:
        shop.tidy.enqueue()
    assert refused.value.id == first.id


@pytest.mark.parametrize("in_transaction", [False, True])
def test_result_of_a_replaced_task_is_that_of_the_task_in_its_place(
    project: Qsync, shop: Any, api: Any, in_transaction: bool
) -> None:
    def twice(task: Any) -> list[Any]:
        with transaction.atomic() if in_transaction else nullcontext():
            return [task.enqueue("lamp"), task.enqueue("desk")]

    with receiving(api.signals.task_enqueued) as enqueued:
        skipped, replaced = twice(shop.restock), twice(shop.index)
    for results in (skipped, replaced):
        assert results[0].id == results[1].id
        assert results[1].enqueued_at is not None
        results[1].refresh()
    stored = shop.restock.get_result(skipped[1].id), shop.index.get_result(replaced[1].id)
    assert [result.args for result in stored] == [["lamp"], ["desk"]]
    assert [id for id, *_ in enqueued] == [skipped[0].id, replaced[0].id]


def test_enqueue_in_a_transaction_is_sent_at_the_commit(
    project: Qsync, shop: Any, api: Any
) -> None:
    with receiving(api.signals.task_enqueued) as enqueued:
        with transaction.atomic():
            result = shop.send.enqueue("ann")
            assert result.enqueued_at is None
            assert enqueued == []
            with pytest.raises(api.TaskResultDoesNotExist):
                result.refresh()
        assert result.enqueued_at is not None
        assert len(enqueued) == 1
    result.refresh()


def test_async_methods_of_the_backend_work(project: Qsync, shop: Any, api: Any) -> None:
    async def use() -> Any:
        result = await shop.send.aenqueue("ann")
        assert await shop.send.aget_result(result.id) == result
        with pytest.raises(api.TaskResultDoesNotExist):
            await shop.send.aget_result("unknown")
        return result

    finish(project, async_to_sync(use)())


@pytest.mark.parametrize(
    ("of_django", "priority"), [(-100, 1), (-12, 5), (0, 5), (12, 5), (13, 6), (60, 7), (100, 9)]
)
def test_priority_of_django_becomes_a_priority_of_qsync(
    project: Qsync, shop: Any, api: Any, of_django: int, priority: int
) -> None:
    result = shop.send.using(priority=of_django).enqueue("ann")
    with project.client() as client:
        handle = client.find(result.id)
        shown = handle._queries.show(handle.id, handle.queue)
    options = decode_message(shown.message).options
    assert (options.priority or 5) == priority


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda shop: shop.send.using(queue_name="lower"), "Queue 'lower' is not valid"),
        (lambda shop: shop.send.using(priority=101), "priority must be a whole number"),
        (lambda shop: shop.send.using(priority="high"), "It is .high.$"),
        (lambda shop: shop.send.using(run_after=5), "run_after: 5 is not a datetime"),
        (lambda shop: _copy(shop.send, debounce=5), "debounce: 5 needs a unique_key"),
        (lambda shop: _copy(shop.send, retry=-1), "retry: -1 is not a whole number"),
        (lambda shop: _copy(shop.send, timeout="soon"), "timeout: "),
        (
            lambda shop: _copy(shop.send, executor="process"),
            "executor: 'process' cannot be used for ta",
        ),
        (lambda shop: _decorated(queue="mail"), "no option 'queue'; did you mean 'queue_name'"),
        (
            lambda shop: _decorated(colour=1),
            "no option 'colour'; the options are queue_name, takes_con",
        ),
    ],
)
def test_wrong_task_is_refused(
    project: Qsync, shop: Any, api: Any, make: Callable[[Any], Any], text: str
) -> None:
    with pytest.raises(api.InvalidTask, match=text):
        make(shop)


def _decorated(**options: Any) -> Any:
    from qsync.contrib.django import task

    @task(**options)
    def decorated() -> None: ...


def _copy(task: Any, **options: Any) -> Any:
    import dataclasses

    return dataclasses.replace(task, **options)


def test_cancelled_task_has_failed(project: Qsync, shop: Any, api: Any) -> None:
    result = shop.send.enqueue("ann")
    with project.client() as client:
        assert client.find(result.id).cancel()
    result.refresh()
    assert result.status == api.TaskResultStatus.FAILED
    assert [error.exception_class.__name__ for error in result.errors] == ["TaskCancelled"]


def test_unknown_option_of_the_backend_is_named(project: Qsync, shop: Any, api: Any) -> None:
    changed = {**django_project.TASKS["default"], "OPTIONS": {"colour": 1}}
    with (
        override_settings(TASKS={"default": changed}),
        pytest.raises(
            api.InvalidTaskBackend, match="no such option: 'colour'; the options are retry, "
        ),
    ):
        shop.send.enqueue("ann")


def test_wrong_option_of_the_backend_is_named_by_the_system_checks(
    project: Qsync, shop: Any, api: Any, valkey: Store
) -> None:
    from qsync.contrib.django import task

    assert checks.run_checks() == []
    changed = {**django_project.TASKS["default"], "OPTIONS": {"timeout": 0}}
    with override_settings(TASKS={"default": changed}):
        [error] = checks.run_checks()
        with pytest.raises(api.InvalidTask, match="TASKS: 'default': OPTIONS: timeout: 0 leaves"):
            task(shop.send.func)
    assert error.id == "qsync.E006"
    assert "timeout: 0 leaves no time to run" in error.msg
    changed = {**django_project.TASKS["default"], "QUEUES": "mail"}
    with (
        override_settings(TASKS={"default": changed}),
        pytest.raises(api.InvalidTaskBackend, match=r"QUEUES: 'mail' is not a list; use \['mail'"),
    ):
        task(shop.send.func)


def test_limits_are_filled_from_the_arguments(project: Qsync, shop: Any) -> None:
    result = shop.bill.enqueue(7)
    assert asyncio.run(limits_of(project, result.id)) == ["customer:7-eu"]
    result = shop.bill.enqueue(customer_id="a", region="us")
    assert asyncio.run(limits_of(project, result.id)) == ["customer:a-us"]


async def limits_of(project: Qsync, id: str) -> list[str]:
    async with project.inspector() as inspector:
        detail = await inspector.task(id)
        assert detail is not None
        return detail.limits


def test_key_that_looks_like_a_template_is_refused_at_the_decorator(
    project: Qsync, shop: Any, api: Any
) -> None:
    from qsync.contrib.django import task

    for options in ({"unique": True, "unique_key": "x:{region}"}, {"fairness_key": "{region}"}):
        with pytest.raises(api.InvalidTask, match="is not filled from the arguments"):
            task(**options)(shop.bill.func)


def test_template_without_a_parameter_is_refused_at_the_decorator(
    project: Qsync, shop: Any, api: Any
) -> None:
    from qsync.contrib.django import task

    with pytest.raises(api.InvalidTask, match="no parameter 'custmer', only customer_id, region"):
        task(limits=["customer:{custmer}"])(shop.bill.func)


def test_limit_that_is_not_declared_is_named_by_checks_and_by_the_server(
    project: Qsync, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qsync.contrib.django import project as parts

    assert [one.id for one in checks.run_checks(tags=["qsync"])] == []
    uses = {"t": ("default", ["custmer"])}
    monkeypatch.setattr(parts, "limited_tasks", {**parts.limited_tasks, **uses})
    monkeypatch.setattr(project, "_declared", copy.deepcopy(project._declared))
    [found] = checks.run_checks(tags=["qsync"])
    assert found.id == "qsync.E007"
    assert "no limit 'custmer', only customer; did you mean 'customer'?" in found.msg
    with pytest.raises(ConfigError, match="custmer"):
        project.server()


def test_arguments_of_operators_are_encoded_or_refused(project: Qsync, shop: Any) -> None:
    from qsync.cli.new_task import task_of

    path, stored = shop.send.module_path, {"args": ["ann"], "kwargs": {"copies": 2}}
    built = shop.send.build("ann", copies=2)
    for value in (["ann"], {"address": "ann"}, {"args": ["ann"], "kwargs": {}}):
        task = task_of(path, value, {"queue": "default", "headers": {"by": "cli"}}, project)
        args, kwargs = task.payload["args"], task.payload["kwargs"]
        assert args == ["ann"] or kwargs == {"address": "ann"}
        assert (task.queue, task.headers) == ("default", {"by": "cli", "django-backend": "default"})
    assert (built.payload, built.queue, built.retry) == (stored, "mail", 1)
    for value in (b"", {"adress": "ann"}, ["ann", "bob"], 3, {"args": ["ann"], "kwargs": {"a": 1}}):
        with pytest.raises(InvalidTask, match=r"send': |arguments: must be a JSON list"):
            task_of(path, value, {}, project)
    for bad in ((object(),), (), ("ann", 2)):
        with pytest.raises(InvalidTask, match="task 'tests"):
            shop.send.build(*bad)

    async def edit(id: str) -> None:
        async with project.inspector() as inspector:
            for payload in ({"address": "bob"}, {"args": [], "kwargs": {}}):
                with pytest.raises(InvalidTask, match=r"has the form|missing a required"):
                    await inspector.copy_task(id, payload, queue="mail")
                with pytest.raises(InvalidTask, match=r"has the form|missing a required"):
                    await inspector.edit_task(id, payload, queue="mail")
            assert (await inspector.edit_task(id, stored, queue="mail")).ok

    with project.client() as client:
        handle = client.enqueue(built.replace(delay=3600))
        put = client.schedules.put("nightly", built, cron="0 3 * * *")
        with pytest.raises(InvalidTask, match=r"QsyncTask is not a Task; pass send\.build\("):
            client.schedules.put("other", shop.send, cron="0 3 * * *")
    asyncio.run(edit(handle.id))
    assert (put.type, put.queue) == (path, "mail")


def test_run_and_result_of_a_payload_of_another_form(project: Qsync, shop: Any, api: Any) -> None:
    with project.client() as client:
        ids = [
            client.enqueue(Task(shop.send.module_path, payload, queue="mail", retry=3)).id
            for payload in ({"address": "ann"}, b"ann")
        ]
    with pytest.raises(api.exceptions.TaskResultMismatch):
        shop.describe.get_result(ids[0])
    results = [shop.send.get_result(id) for id in ids]
    finish(project, *results)
    for result in results:
        [error] = result.errors
        assert 'of django.tasks has the form {"args": [...], "kwargs": {...}}' in error.traceback
        assert (result.attempts, result.args, result.kwargs) == (1, [], {})
