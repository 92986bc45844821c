"""The Django admin checks permissions for schedules, and its forms reject what the store would
refuse."""

from __future__ import annotations

import asyncio
import html
import io
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.test import Client, override_settings

from qsync import Qsync, StoredSchedule
from qsync.inspector import ScheduleInfo
from tests.contrib.test_django_tasks import limits_of
from tests.support import django_project
from tests.support.stores import Store, wait_until_async

LIST = "/admin/qsync/schedule/"
ADD = f"{LIST}add/"
PACK = "tests.support.django_shop.tasks.pack"
STAMP = "tests.support.django_shop.tasks.stamp"
SEND = "tests.support.django_shop.tasks.send"
BILL = "tests.support.django_shop.tasks.bill"
NEW = {
    "name": "report-42", "task": PACK, "queue": "", "arguments": '["tea"]', "cron": "0 9 * * 1-5",
    "tz": "Asia/Tokyo", "every": "", "missed": "once",
}  # fmt: skip


@pytest.fixture(autouse=True)
def admin_urls(project: Qsync) -> Iterator[None]:
    with override_settings(ROOT_URLCONF="tests.support.django_admin_urls"):
        yield


def signed_in(*permissions: str) -> Client:
    """Return a test client, signed in as a staff user with these permissions."""
    from django.contrib.auth.models import Permission, User

    User.objects.all().delete()
    user = User.objects.create_user("ann", is_staff=True)
    for name in permissions:
        user.user_permissions.add(Permission.objects.get(codename=f"{name}_schedule"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def staff() -> Client:
    return signed_in("view", "add", "change", "delete")


def stored(project: Qsync, name: str = "report-42") -> StoredSchedule | None:
    with project.client() as client:
        return client.schedules.get(name)


def put(project: Qsync, name: str = "report-42") -> None:
    from tests.support.django_shop.tasks import pack

    with project.client() as client:
        client.schedules.put(name, pack.build("tea"), every=3600)


def info(project: Qsync, name: str = "report-42") -> ScheduleInfo | None:
    async def read() -> ScheduleInfo | None:
        async with project.inspector() as inspector:
            return await inspector.schedule(name, queue="default")

    return asyncio.run(read())


def pending(project: Qsync) -> Any:
    """Return the arguments of the only pending task."""

    async def read() -> Any:
        async with project.inspector() as inspector:
            [row] = (await inspector.tasks("default", "pending")).tasks
            task = await inspector.task(row.id, queue="default")
            assert task is not None
            return task.value()

    return asyncio.run(read())


def operators(project: Qsync) -> set[tuple[str, str]]:
    """Return the recorded actions, each with its user."""

    async def read() -> Any:
        async with project.inspector() as inspector:
            return await inspector.events()

    return {(event.action, event.by) for event in asyncio.run(read())}


def text_of(answer: Any) -> str:
    return html.unescape(answer.content.decode())


def act(client: Client, action: str, *names: str, **more: str) -> Any:
    ids = [name if ":" in name else f"default:{name}" for name in names]
    form = {"action": action, "_selected_action": ids, **more}
    return client.post(LIST, form, follow=True)


def test_schedule_is_created_and_enqueues_its_task(project: Qsync, staff: Client) -> None:
    form = staff.get(ADD)
    assert form.status_code == 200
    assert PACK in text_of(form)
    assert SEND in text_of(form)
    answer = staff.post(ADD, NEW, follow=True)
    assert answer.redirect_chain == [(LIST, 302)]
    assert "was added successfully" in text_of(answer)
    schedule = stored(project)
    assert schedule is not None
    assert (schedule.cron, schedule.tz, schedule.missed) == ("0 9 * * 1-5", "Asia/Tokyo", "once")
    assert (schedule.type, schedule.queue) == (PACK, "default")
    assert "Schedule report-42: enqueued its task" in text_of(act(staff, "run", "report-42"))
    assert pending(project) == {"product": "tea"}


def test_arguments_are_converted_to_the_types_of_the_parameters(
    project: Qsync, staff: Client
) -> None:
    key, when = "e252b3ae-62f2-4be5-8b3b-f6eadd964338", "2026-01-02T03:04:05Z"
    arguments = f'{{"key": "{key}", "when": "{when}", "prices": ["1.50"]}}'
    answer = staff.post(ADD, {**NEW, "task": STAMP, "arguments": arguments}, follow=True)
    assert "was added successfully" in text_of(answer)
    act(staff, "run", "report-42")
    assert pending(project) == {"key": key, "when": when, "prices": ["1.50"]}
    for arguments, text in (
        ('["7", "2026-01-02T03:04:05Z", []]', "argument 'key': Invalid UUID"),
        ("[18446744073709551616]", "cannot be encoded as msgpack: only integers from"),
        (f'["{key}", "{when}", [], 1]', "too many positional arguments"),
        (f'{{"key": "{key}", "colour": 1}}', "it has no parameter 'colour'"),
    ):
        new = {**NEW, "name": "other", "task": STAMP, "arguments": arguments}
        errors = re.findall(r"errorlist[^>]*>(.*?)</ul>", text_of(staff.post(ADD, new)))
        assert text in errors[0]


def test_user_whose_name_is_a_number_is_recorded(project: Qsync, staff: Client) -> None:
    from django.contrib.auth.models import User

    put(project)
    with patch.object(User, "get_username", lambda user: 5551):
        assert "Paused by 5551" in text_of(act(staff, "pause", "report-42"))


def test_task_of_django_tasks_runs_from_a_schedule(project: Qsync, staff: Client) -> None:
    from tests.support.django_shop.tasks import send

    arguments = '{"address": "bob", "copies": 2}'
    staff.post(ADD, {**NEW, "task": SEND, "arguments": arguments})
    schedule = stored(project)
    assert schedule is not None
    assert (schedule.type, schedule.queue) == (SEND, "mail")
    text = text_of(act(staff, "run", "mail:report-42"))
    [(_, id)] = re.findall(r"(enqueued its task) ([^<\s]+)\.", text)

    async def serve() -> Any:
        async with project.server(queues=["mail"], sweep=0.2):
            return await wait_until_async(lambda: finished(id))

    async def finished(id: str) -> Any:
        result = await send.aget_result(id)
        return result if result.is_finished else None

    assert async_to_sync(serve)().return_value == {"to": "bob", "copies": 2}


def test_limits_of_a_scheduled_task_of_django_tasks_are_filled(
    project: Qsync, staff: Client
) -> None:
    staff.post(ADD, {**NEW, "task": BILL, "arguments": '{"customer_id": 7}'})
    text = text_of(act(staff, "run", "default:report-42"))
    [(_, id)] = re.findall(r"(enqueued its task) ([^<\s]+)\.", text)
    assert asyncio.run(limits_of(project, id)) == ["customer:7-eu"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cron": "0 25 * * *"}, "Bad hour '25'"),
        (
            {"cron": "", "tz": "", "every": "0"},
            "must be seconds or a timedelta, 0.1 s to 100 years",
        ),
        ({"every": "60"}, "Enter a cron expression or an interval, not both."),
        ({"cron": ""}, "Enter a cron expression or an interval."),
        ({"cron": "", "every": "60"}, "Leave the time zone empty for an interval"),
        ({"tz": "Mars"}, "not in the time zone database"),
        ({"name": "a b"}, "must be 1 to 128 of A-Z"),
        ({"queue": "a b"}, "is not 1 to 128 characters"),
        (
            {"queue": "nope"},
            "no running server serves it; the queues are default, mail",
        ),
        ({"arguments": "{"}, "not JSON"),
        ({"arguments": "1"}, "must be a JSON list, or an object"),
        ({"arguments": "[1, 2]"}, "pack"),
        ({"task": SEND, "arguments": '{"adress": "bob"}'}, "send': missing a required argument"),
        ({"task": "shop.none"}, "is not one of the available choices"),
        ({"task": ""}, "This field is required"),
    ],
)
def test_wrong_field_is_named_and_nothing_is_stored(
    project: Qsync, staff: Client, changed: dict[str, str], message: str
) -> None:
    answer = staff.post(ADD, {**NEW, **changed})
    assert answer.status_code == 200
    assert message in text_of(answer)
    assert stored(project) is None


def test_name_in_use_is_refused(project: Qsync, staff: Client) -> None:
    put(project)
    assert "schedule report-42 already exists" in text_of(staff.post(ADD, NEW))
    schedule = stored(project)
    assert schedule is not None
    assert schedule.every == 3600


def test_edit_changes_the_times_and_keeps_the_task(project: Qsync, staff: Client) -> None:
    put(project)
    page = f"{LIST}default_3Areport-42/change/"
    assert page in text_of(staff.get(LIST))
    form = text_of(staff.get(page))
    assert 'value="3600.0"' in form
    assert PACK in form
    assert 'name="task"' not in form
    changed = {"cron": "*/5 * * * *", "every": "", "tz": "", "missed": "all", "task": SEND}
    assert "not both" in text_of(staff.post(page, {**changed, "every": "5"}))
    answer = staff.post(page, changed, follow=True)
    assert "was changed successfully" in text_of(answer)
    schedule = stored(project)
    assert schedule is not None
    assert (schedule.cron, schedule.every, schedule.missed) == ("*/5 * * * *", None, "all")
    assert schedule.type == PACK
    history = text_of(staff.get(f"{LIST}default_3Areport-42/history/"))
    assert "Changed Cron expression, Interval in seconds and Missed runs." in history


def test_schedule_is_paused_and_resumed_from_the_list(project: Qsync, staff: Client) -> None:
    put(project)
    text = text_of(act(staff, "pause", "report-42", why="stocktaking"))
    assert "Schedule report-42: paused: stocktaking." in text
    assert "Paused by ann: stocktaking" in text
    shown = info(project)
    assert shown is not None
    assert shown.paused is not None
    assert (shown.paused.by, shown.paused.why) == ("ann", "stocktaking")
    assert "Schedule report-42: resumed." in text_of(act(staff, "resume", "report-42"))
    assert "it is not paused" in text_of(act(staff, "resume", "report-42"))
    shown = info(project)
    assert shown is not None
    assert shown.paused is None
    text = text_of(act(staff, "run", "report-42"))
    [id] = re.findall(r"enqueued its task ([^<\s]+Z)\.", text)
    history = text_of(staff.get(f"{LIST}default_3Areport-42/history/"))
    assert f"Enqueued its task {id}." in history
    assert "Paused: stocktaking." in history
    assert operators(project) == {
        ("schedule.pause", "ann"), ("schedule.resume", "ann"), ("schedule.trigger", "ann"),
    }  # fmt: skip


def test_queue_of_a_running_server_is_accepted(project: Qsync, staff: Client) -> None:
    async def serve() -> Any:
        async with project.server(queues=["elsewhere"]), project.inspector() as inspector:
            await wait_until_async(lambda: inspector.servers())
            return await asyncio.to_thread(staff.post, ADD, {**NEW, "queue": "elsewhere"})

    assert asyncio.run(serve()).status_code == 302
    schedule = stored(project)
    assert schedule is not None
    assert schedule.queue == "elsewhere"


def test_delete_asks_first_from_the_page_and_from_the_list(project: Qsync, staff: Client) -> None:
    put(project)
    put(project, "report-43")
    page = f"{LIST}default_3Areport-42/delete/"
    assert "Are you sure" in text_of(staff.get(page))
    assert stored(project) is not None
    assert "was deleted successfully" in text_of(staff.post(page, {"post": "yes"}, follow=True))
    assert stored(project) is None
    assert "Delete these schedules?" in text_of(act(staff, "delete", "report-43"))
    assert stored(project, "report-43") is not None
    text = text_of(act(staff, "delete", "report-43", post="yes"))
    assert "Schedule report-43: deleted." in text
    assert stored(project, "report-43") is None
    assert "it is not in the store" in text_of(act(staff, "delete", "report-43", post="yes"))


def test_each_permission_allows_its_actions_only(project: Qsync) -> None:
    put(project)
    page = f"{LIST}default_3Areport-42/"
    forms = {
        "add": (ADD, NEW),
        "change": (LIST, {"action": "pause", "_selected_action": "default:report-42"}),
        "delete": (f"{page}delete/", {"post": "yes"}),
    }
    runs = {"action": "run", "_selected_action": "default:report-42"}
    assert signed_in().get(LIST).status_code == 403
    viewer = signed_in("view")
    text = text_of(viewer.get(LIST))
    assert "report-42" in text
    assert "Pause selected" not in text
    assert "add/" not in text
    assert 'name="cron"' not in text_of(viewer.get(f"{page}change/"))
    for url, form in [*forms.values(), (LIST, runs), (f"{page}change/", NEW)]:
        assert viewer.post(url, form).status_code == 403
    assert stored(project) is not None
    changer = signed_in("change")
    assert changer.post(LIST, forms["change"][1]).status_code == 302
    assert changer.post(LIST, {**runs, "action": "delete", "post": "yes"}).status_code == 403
    assert changer.post(*forms["delete"]).status_code == 403
    assert signed_in("view", "add").post(*forms["delete"]).status_code == 403
    assert signed_in("view", "delete").post(*forms["delete"]).status_code == 302
    assert stored(project) is None


def test_form_without_a_token_is_refused(project: Qsync, staff: Client) -> None:
    from django.contrib.auth.models import User

    put(project)
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get())
    assert act(client, "delete", "report-42", post="yes").status_code == 403
    assert stored(project) is not None


def test_visitor_is_redirected_to_the_login_page(project: Qsync) -> None:
    answer = Client().get(LIST)
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/login/?next={LIST}")


def test_list_is_searched_by_the_beginning_of_a_name(project: Qsync, staff: Client) -> None:
    put(project, "report-1")
    put(project, "tidy")
    text = text_of(staff.get(LIST, {"q": "rep"}))
    assert "report-1" in text
    assert "tidy" not in text
    assert "must be 1 to 128 of A-Z" in text_of(staff.get(LIST, {"q": "<b>"}))


def test_periodic_task_of_a_program_can_be_paused_and_not_edited(
    project: Qsync, staff: Client, valkey: Store
) -> None:
    program = Qsync(valkey.url, prefix=django_project.PREFIX)

    @program.periodic(cron="0 3 * * *", name="nightly")
    async def nightly() -> None: ...

    async def publish() -> None:
        async with program.server(), program.inspector() as inspector:
            await wait_until_async(lambda: inspector.schedule("nightly", queue="default"))

    asyncio.run(publish())
    page = f"{LIST}default_3Anightly/"
    text = text_of(staff.get(f"{page}change/"))
    assert "View schedule" in text
    assert 'name="cron"' not in text
    assert staff.post(f"{page}change/", NEW).status_code == 403
    assert staff.post(f"{page}delete/", {"post": "yes"}).status_code == 403
    refused = text_of(staff.post(ADD, {**NEW, "name": "nightly"}))
    assert "a program has a periodic task nightly" in refused
    assert "Schedule nightly: paused." in text_of(act(staff, "pause", "nightly"))


@pytest.mark.parametrize("id", ["default_3Anone", "none", "a b_3Ac", "default_3A_7B_7D"])
def test_unknown_schedule_leads_back_with_a_message(project: Qsync, staff: Client, id: str) -> None:
    answer = staff.get(f"{LIST}{id}/change/", follow=True)
    assert "doesn’t exist" in text_of(answer)
    assert act(staff, "pause", "no such name").status_code == 409


def test_unreachable_store_shows_an_error_page(
    project: Qsync, staff: Client, valkey: Store
) -> None:
    valkey.stop()
    try:
        answer = staff.get(LIST)
        assert answer.status_code == 503
        assert "store" in text_of(answer)
    finally:
        valkey.start()


def test_django_commands_query_no_table(project: Qsync) -> None:
    call_command("dumpdata", "qsync", stdout=io.StringIO())
    call_command("dumpdata", "qsync", use_base_manager=True, stdout=io.StringIO())
    call_command("makemigrations", "qsync", check_changes=True, dry_run=True, verbosity=0)
    call_command("check")
