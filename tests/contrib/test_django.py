"""qsync.contrib.django creates the project's app, and enqueues wait for the commit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

import qsync
from qsync import AsyncHandle, ConfigError, DuplicateTask, InvalidTask, Qsync, TaskNotFound
from qsync.contrib.django.configuration import configuration
from tests.support import django_project
from tests.support.stores import Store


class Undo(Exception):
    """Raised to roll back a transaction."""


def pending(app: Qsync, queue: str = "default") -> list[str]:
    """Return the ids of the pending tasks, in the order in which they run."""

    async def read() -> list[str]:
        async with app.inspector() as inspector:
            page = await inspector.tasks(queue, "pending")
            return [row.id for row in page.tasks]

    return async_to_sync(read)()


def enqueue_sync(product: str) -> Any:
    from tests.support.django_shop.tasks import pack

    return pack.enqueue_sync(product)


def enqueue_async(product: str) -> Any:
    """Enqueue on an event loop in another thread, as when sync code of Django calls async code."""
    from tests.support.django_shop.tasks import pack

    async def send() -> Any:
        return await pack.enqueue(product)

    return async_to_sync(send)()


BOTH = pytest.mark.parametrize("enqueue", [enqueue_sync, enqueue_async])
Enqueue = Callable[[str], Any]


def test_project_has_one_app_that_knows_the_tasks_of_its_apps(project: Qsync) -> None:
    from qsync.contrib import django as package
    from qsync.contrib.django import app

    assert app is project is package.app
    assert project.prefix == django_project.PREFIX
    assert "tests.support.django_shop.tasks.pack" in project.functions


@BOTH
def test_enqueue_outside_of_a_transaction_is_sent_at_once(project: Qsync, enqueue: Enqueue) -> None:
    handle = enqueue("tea")
    assert handle.created
    assert pending(project) == [handle.id]


@BOTH
def test_enqueue_in_a_transaction_is_sent_at_the_commit(project: Qsync, enqueue: Enqueue) -> None:
    from tests.support.django_shop.models import Order

    with transaction.atomic():
        Order.objects.create(product="tea")
        handle = enqueue("tea")
        assert not handle.created
        assert pending(project) == []
    assert pending(project) == [handle.id]
    with project.client() as client:
        assert client.handle(handle.id).info().value() == {"product": "tea"}


@BOTH
def test_rollback_sends_nothing(project: Qsync, enqueue: Enqueue) -> None:
    with pytest.raises(Undo), transaction.atomic():
        handle = enqueue("tea")
        raise Undo
    assert pending(project) == []
    with project.client() as client, pytest.raises(TaskNotFound):
        client.handle(handle.id).info()


@pytest.mark.parametrize("mode", ["on_commit", "outbox"])
def test_handle_explains_that_its_task_waits_for_the_commit(
    project: Qsync, valkey: Store, mode: str
) -> None:
    from tests.support.django_shop.tasks import weigh

    changed = django_project.options(valkey.url, ENQUEUE=mode)
    text = "is not in queue 'default' yet: it is sent when the database transaction"

    async def refused() -> None:
        handle: AsyncHandle[Any] = await weigh.enqueue("milk")
        for call in (handle.info(), handle.result(1), handle.cancel(), handle.reschedule(delay=5)):
            with pytest.raises(TaskNotFound, match=text):
                await call

    with override_settings(QSYNC=changed):
        with transaction.atomic():
            handle = weigh.enqueue_sync("tea")
            calls: list[Callable[[], Any]] = [
                handle.info, lambda: handle.result(1), handle.cancel,
                lambda: handle.reschedule(delay=5),
            ]  # fmt: skip
            for call in calls:
                with pytest.raises(TaskNotFound, match=text):
                    call()
            async_to_sync(refused)()
        assert handle.info().state == "pending"
        assert handle.cancel()
        with pytest.raises(Undo), transaction.atomic():
            lost = weigh.enqueue_sync("tea")
            raise Undo
        with pytest.raises(TaskNotFound, match="and never after a rollback"):
            lost.cancel()
        outside = weigh.enqueue_sync("tea")
        assert outside.info().state == "pending"


def test_rollback_to_a_savepoint_sends_only_tasks_enqueued_outside(
    project: Qsync,
) -> None:
    with transaction.atomic():
        first = enqueue_sync("one")
        with pytest.raises(Undo), transaction.atomic():
            enqueue_sync("two")
            raise Undo
        with transaction.atomic():
            third = enqueue_sync("three")
        assert pending(project) == []
    assert pending(project) == [first.id, third.id]


def test_transaction_of_another_database_delays_nothing(project: Qsync) -> None:
    with transaction.atomic(using="other"):
        handle = enqueue_sync("tea")
        assert pending(project) == [handle.id]


def test_transactions_of_the_database_in_the_settings_count(project: Qsync, valkey: Store) -> None:
    changed = django_project.options(valkey.url, DATABASE="other")
    with override_settings(QSYNC=changed), transaction.atomic(using="other"):
        enqueue_sync("tea")
        assert pending(project) == []


def test_enqueue_now_is_sent_within_the_transaction(project: Qsync, valkey: Store) -> None:
    changed = django_project.options(valkey.url, ENQUEUE="now")
    with override_settings(QSYNC=changed), transaction.atomic():
        sent = [enqueue_sync("tea"), enqueue_async("coffee")]
        assert pending(project) == [handle.id for handle in sent]


def test_wrong_task_is_refused_within_the_transaction(project: Qsync) -> None:
    from tests.support.django_shop.tasks import pack

    with transaction.atomic():
        with pytest.raises(InvalidTask, match=r"payload: .* are over the limit"):
            pack.enqueue_sync("x" * 2_000_000)
        assert transaction.get_connection().run_on_commit == []


def test_error_about_a_django_object_names_a_replacement(
    project: Qsync,
) -> None:
    from tests.support.django_shop.models import Order

    values: list[tuple[Any, str]] = [
        (Order(), "type Order cannot be encoded; pass its primary key, value.pk"),
        (SimpleLazyObject(Order), "SimpleLazyObject cannot be encoded; pass its primary key"),
        ([gettext_lazy("tea")], r"\[0\]: a lazy string cannot be encoded; pass str\(value\)"),
    ]
    other = Qsync("redis://127.0.0.1:1")

    @other.task
    def paint(it: Any) -> None: ...

    for value, text in values:
        with pytest.raises(InvalidTask, match=text):
            paint.build(value)

    def draw(it: Any) -> None: ...

    draw.__annotations__["it"] = Order
    with pytest.raises(ConfigError, match="annotate the type of its primary key, and read the obj"):
        other.task(draw)


def test_id_that_the_caller_chose_is_kept(project: Qsync) -> None:
    from tests.support.django_shop.tasks import pack

    with transaction.atomic():
        assert pack.options(id="order-7").enqueue_sync("tea").id == "order-7"
    assert pending(project) == ["order-7"]


def test_duplicate_at_the_commit_does_not_fail_the_request(project: Qsync) -> None:
    from tests.support.django_shop.tasks import count

    first = count.enqueue_sync()
    with pytest.raises(DuplicateTask):
        count.enqueue_sync()
    with transaction.atomic():
        count.enqueue_sync()
        after = enqueue_sync("tea")
    assert pending(project) == [first.id, after.id]


def test_result_of_a_task_that_was_sent_at_the_commit(project: Qsync) -> None:
    from tests.support.django_shop.tasks import weigh

    with transaction.atomic():
        handle = weigh.enqueue_sync("coffee")

    async def serve() -> int:
        async with project.server():
            return await asyncio.to_thread(handle.result, 10)

    assert async_to_sync(serve)() == 6


def found_by_the_checks() -> list[tuple[str, str]]:
    return [(error.id, error.msg) for error in checks.run_checks(tags=["qsync"])]


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"URL": ""}, "qsync.E001", "QSYNC: the URL is missing"),
        ({"COLOUR": 1, "Prefix": 2}, "qsync.E002", "no such option: 'COLOUR', 'Prefix'"),
        ({"prefixx": 2}, "qsync.E002", "no such option: 'prefixx'; did you mean 'PREFIX'?"),
        ({"DASHBOARD": {"MASK": 7}}, "qsync.E004", "MASK: 7 is neither a function nor its dotted"),
        ({"ENQUEUE": "later"}, "qsync.E003", "ENQUEUE: 'later' is neither 'on_commit', 'now' nor"),
        ({"DATABASE": "third"}, "qsync.E004", "DATABASE: 'third' is not in DATABASES, which has"),
        ({"ON_ERROR": "no.such"}, "qsync.E004", "ON_ERROR: No module named 'no'"),
        ({"DASHBOARD": {"READONLY": 1}}, "qsync.E004", "DASHBOARD: {'READONLY': 1} is not a dict"),
        ({"DASHBOARD": {"LANGUAGE": "de"}}, "qsync.E004", "LANGUAGE: 'de' is not 'en' or 'ru'"),
        ({"DASHBOARD": {"READ_ONLY": 1}}, "qsync.E004", "READ_ONLY: 1 is neither True nor False"),
        ({"DASHBOARD": {"ROLE": "boss"}}, "qsync.E004", "ROLE: 'boss' is neither a function of"),
        ({"DASHBOARD": {"ROLE": "no.such"}}, "qsync.E004", "DASHBOARD: ROLE: No module named 'no'"),
        ({"DASHBOARD": {"MASK": "no.such"}}, "qsync.E004", "DASHBOARD: MASK: No module named 'no'"),
        ({"DASHBOARD": {"MASK": "os.sep"}}, "qsync.E004", "MASK: 'os.sep' is neither a function"),
        (
            {"DASHBOARD": {"TRACE_URL": "traces/{trace_id}"}},
            "qsync.E004",
            "TRACE_URL: 'traces/{trace_id}' is not an address",
        ),
    ],
)
def test_wrong_setting_is_named_by_the_system_checks(
    project: Qsync, valkey: Store, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], code: str, text: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("QSYNC_URL", raising=False)
    assert found_by_the_checks() == []
    with override_settings(QSYNC=django_project.options(valkey.url, **changes)):
        [(found, message)] = found_by_the_checks()
        assert found == code
        assert text in message
        with pytest.raises(ImproperlyConfigured, match="QSYNC: "):
            configuration()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("'ON_ERROR': 'shop.tasks.tell'", "ON_ERROR: the module 'shop.tasks' imports the app of"),
        ("'MIDDLEWARE': ['shop.tasks.tell']", "MIDDLEWARE: the module 'shop.tasks' imports the"),
        ("'ON_ERROR': 'shop.errors.tell'", "ON_ERROR: the module 'shop.errors' imports the app"),
        (
            "'DASHBOARD': {'ROLE': 'shop.views.role'}",
            "DASHBOARD: ROLE: the module 'shop.views' imports 'shop.tasks', which imports the app",
        ),
        (
            "'DASHBOARD': {'MASK': 'shop.views.role'}",
            "DASHBOARD: MASK: the module 'shop.views' imports 'shop.tasks', which imports the app",
        ),
        ("'ON_ERROR': 'shop.broken.tell'", "ON_ERROR: No module named 'no_such_module'"),
        ("'ON_ERROR': 'shop.apart.tell'", ""),
    ],
)
def test_dotted_path_into_a_module_that_imports_the_app_is_explained(
    tmp_path: Path, option: str, text: str
) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    tell = "def tell(error, task): ...\n"
    tasks = "from qsync.contrib.django import app\n@app.task\ndef pack(order: int) -> None: ...\n"
    files = {
        "__init__": "", "tasks": tasks + tell, "views": "from shop.tasks import pack\n" + tell,
        "errors": "from qsync.contrib.django import app\n" + tell, "apart": tell,
        "broken": "import no_such_module\n" + tell,
    }  # fmt: skip
    for name, code in files.items():
        (shop / f"{name}.py").write_text(code.replace("tell", "role") if name == "views" else code)
    program = (
        "import django; from django.conf import settings\n"
        f"options = {{'URL': 'redis://127.0.0.1:1', {option}}}\n"
        "settings.configure(QSYNC=options, INSTALLED_APPS=['qsync.contrib.django', 'shop'])\n"
        "django.setup()\n"
        "from qsync.contrib.django import app\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    last = done.stderr.rstrip().rpartition("\n")[2]
    assert f"QSYNC: {text}" in last if text else done.stderr == ""
    assert not text or "no_such" in text or "move the function to a module that does not" in last


def test_option_of_the_app_that_is_wrong_is_named_when_the_project_starts(valkey: Store) -> None:
    program = (
        "from django.conf import settings; import django\n"
        f"options = {{'URL': {valkey.url!r}, 'CONCURRENCY': 'many'}}\n"
        "settings.configure(QSYNC=options, INSTALLED_APPS=['qsync.contrib.django'])\n"
        "django.setup()\n"
        "from qsync.contrib.django import app\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "ImproperlyConfigured" in last or "SettingError" in last
    assert "QSYNC: concurrency: 'many' is not a whole number" in last


def test_project_on_django_5_2_needs_no_package_for_django_tasks() -> None:
    program = (
        "import sys\n"
        "sys.modules['django.tasks'] = sys.modules['django_tasks'] = None\n"
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(\n"
        "    INSTALLED_APPS=['django.contrib.admin', 'django.contrib.auth',\n"
        "                    'django.contrib.contenttypes', 'qsync.contrib.django'],\n"
        "    QSYNC={'URL': 'embedded://'},\n"
        ")\n"
        "django.setup()\n"
        "from qsync.contrib.django import app, task_choices\n"
        "@app.task(name='send')\n"
        "def send(invoice: int) -> None: ...\n"
        "print(task_choices.choices(), task_choices.built('send', '[7]', '').type)\n"
        "from qsync.contrib.django import QsyncBackend\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[('send', 'send')] send\n", done.stderr
    assert "for Django 5.2: pip install django-tasks" in done.stderr.splitlines()[-1]


def test_all_options_of_the_app_are_settings() -> None:
    from qsync.contrib.django.configuration import app_options

    assert {"PREFIX", "REMEMBER_IDS", "PATIENCE", "CONCURRENCY", "LIFESPAN"} <= set(app_options())
    assert "URL" not in app_options()


def test_task_of_another_app_is_named_by_the_system_checks(
    project: Qsync, valkey: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.django_shop import tasks

    def lonely() -> None:
        pass

    lonely.__module__ = tasks.__name__
    other = qsync.Qsync(valkey.url).task(lonely)
    monkeypatch.setattr(tasks, "lonely", other, raising=False)
    assert found_by_the_checks() == [
        (
            "qsync.W001",
            "tests.support.django_shop.tasks.lonely is a task of another Qsync: "
            "manage.py qsync_worker does not run it.",
        )
    ]


def test_store_that_does_not_answer_is_named_by_the_deployment_checks(project: Qsync) -> None:
    changed = django_project.options("redis://127.0.0.1:1")
    with override_settings(QSYNC=changed):
        assert found_by_the_checks() == []
        [warning] = checks.run_checks(tags=["qsync"], include_deployment_checks=True)
    assert warning.id == "qsync.W002"
    assert "127.0.0.1:1" in warning.msg
