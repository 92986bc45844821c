"""In a Django site, only staff users see the dashboard. The pages and forms of the dashboard
work under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import reverse

from qsync import Qsync, Task
from tests.support import django_project
from tests.support.stores import Store

PAGE = "/admin/queue/"
SAME = {"sec-fetch-site": "same-origin", "origin": "http://testserver"}


@pytest.fixture
def users(project: Qsync) -> dict[str, Any]:
    from django.contrib.auth.models import User

    User.objects.all().delete()
    return {
        "staff": User.objects.create_user("ann", is_staff=True),
        "customer": User.objects.create_user("bob"),
        "former": User.objects.create_user("carl", is_staff=True, is_active=False),
    }


@pytest.fixture
def staff(users: dict[str, Any]) -> Client:
    client = Client(enforce_csrf_checks=True)
    client.force_login(users["staff"])
    return client


@pytest.fixture
def writable(project: Qsync, valkey: Store) -> Iterator[None]:
    """Enable actions on the dashboard."""
    changed = django_project.options(valkey.url, DASHBOARD={"READ_ONLY": False})
    with override_settings(QSYNC=changed):
        yield


def test_staff_user_sees_the_queues(project: Qsync, staff: Client) -> None:
    with project.client() as client:
        client.enqueue(Task("pack", [1], queue="parcels"))
    page = staff.get(PAGE)
    assert page.status_code == 200
    assert page["Content-Type"] == "text/html; charset=utf-8"
    assert page["Cache-Control"] == "no-store"
    text = page.content.decode()
    assert "parcels" in text
    assert f'href="{PAGE}static/style.css' in text
    assert 'QSYNC["DASHBOARD"] = {"READ_ONLY": False}</code> enables' in html.unescape(text)
    style = staff.get(f"{PAGE}static/style.css")
    assert (style.status_code, style["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert staff.get(f"{PAGE}queue?queue=parcels").status_code == 200
    assert staff.get(f"{PAGE}no-such-page").status_code == 404
    assert reverse("qsync:dashboard", args=[""]) == PAGE


def language_of(client: Client, accepted: str) -> str:
    page = client.get(PAGE, headers={"accept-language": accepted}).content.decode()
    return page.partition('<html lang="')[2][:2]


def test_language_comes_from_browser_setting_site_or_choice(
    project: Qsync, valkey: Store, users: dict[str, Any], staff: Client
) -> None:
    from qsync.contrib.django.dashboard import close_dashboard

    assert [language_of(staff, code) for code in ("ru", "en", "fr")] == ["ru", "en", "en"]
    english = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    with override_settings(
        MIDDLEWARE=english, USE_I18N=True, LANGUAGE_CODE="en", LANGUAGES=[("en", "English")]
    ):
        of_site = Client()  # Django loads the middleware when it handles its first request
        of_site.force_login(users["staff"])
        assert language_of(of_site, "ru") == "en"
    close_dashboard()
    setting = django_project.options(valkey.url, DASHBOARD={"LANGUAGE": "ru"})
    with override_settings(QSYNC=setting):
        assert language_of(staff, "en") == "ru"
        chosen = staff.post(
            f"{PAGE}language", f"language=en&next={PAGE}queues",
            content_type="application/x-www-form-urlencoded", headers=SAME,
        )  # fmt: skip
        assert (chosen.status_code, chosen["Location"]) == (303, f"{PAGE}queues")
        assert chosen["Set-Cookie"].startswith("qsync_language=en; HttpOnly;")
        staff.cookies["qsync_language"] = "en"
        assert language_of(staff, "ru") == "en", "read-only pages also have the switch"
    close_dashboard()


def test_visitors_must_sign_in_and_other_users_are_refused(users: dict[str, Any]) -> None:
    client = Client()
    answer = client.get(f"{PAGE}queue?queue=a")
    assert answer.status_code == 302
    assert answer["Location"] == "/accounts/login/?next=/admin/queue/queue%3Fqueue%3Da"
    for name in ("customer", "former"):
        client.force_login(users[name])
        assert client.get(PAGE).status_code in (302, 403)
        assert client.post(f"{PAGE}queue/pause").status_code in (302, 403)


def test_user_model_without_staff_is_named(project: Qsync) -> None:
    from qsync.contrib.django.dashboard import dashboard

    meta = SimpleNamespace(label="shop.Customer")
    request: Any = RequestFactory().get(PAGE)
    request.user = SimpleNamespace(is_authenticated=True, is_active=True, _meta=meta)
    with pytest.raises(ImproperlyConfigured, match=r"shop\.Customer has no is_staff"):
        dashboard(request, "")


def test_dashboard_works_under_asgi(project: Qsync, users: dict[str, Any], staff: Client) -> None:
    async def get() -> Any:
        client = AsyncClient()
        await client.aforce_login(users["staff"])
        return await asyncio.gather(*(client.get(PAGE) for _ in range(4)))

    pages = asyncio.run(get())
    assert [page.status_code for page in pages] == [200] * 4


def pause(client: Client, **headers: str) -> Any:
    form = "queue=parcels&why=stocktaking"
    return client.post(
        f"{PAGE}queue/pause", form, content_type="application/x-www-form-urlencoded",
        headers={**SAME, **headers},
    )  # fmt: skip


def paused(project: Qsync) -> Any:
    async def read() -> Any:
        async with project.inspector() as inspector:
            [queue] = (await inspector.overview(names=["parcels"])).queues
            return queue.paused

    return asyncio.run(read())


def test_form_of_the_dashboard_is_accepted_and_names_the_user(
    project: Qsync, staff: Client, writable: None
) -> None:
    with project.client() as client:
        client.enqueue(Task("pack", [1], queue="parcels"))
    answer = pause(staff)
    assert answer.status_code == 303, answer.content
    assert "ann" in repr(paused(project))


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
    ],
)
def test_form_of_another_site_is_refused(
    project: Qsync, staff: Client, writable: None, headers: dict[str, str]
) -> None:
    with project.client() as client:
        client.enqueue(Task("pack", [1], queue="parcels"))
    refused = pause(staff, **headers)
    assert refused.status_code == 403
    assert b"Origin and Sec-Fetch-Site" in refused.content
    assert not paused(project)


def test_dashboard_is_read_only_by_default(project: Qsync, staff: Client) -> None:
    assert pause(staff).status_code == 403


def role_by_permission(request: Any) -> str:
    """Return the role of a test user. The permission to delete schedules grants `delete`."""
    return "delete" if request.user.has_perm("qsync.delete_schedule") else "view"


def test_role_of_a_user_comes_from_the_setting(
    project: Qsync, valkey: Store, users: dict[str, Any], staff: Client
) -> None:
    from django.contrib.auth.models import Permission

    with project.client() as client:
        client.enqueue(Task("pack", [1], queue="parcels"))

    def answers(role: Any) -> tuple[int, bool]:
        dashboard = {"READ_ONLY": False, "ROLE": role}
        with override_settings(QSYNC=django_project.options(valkey.url, DASHBOARD=dashboard)):
            shown = "queue/purge" in staff.get(f"{PAGE}queue?queue=parcels").content.decode()
            return pause(staff).status_code, shown

    path = f"{__name__}.role_by_permission"
    assert answers(path) == (403, False)
    assert answers("view") == (403, False)
    assert answers(lambda request: "boss") == (403, False)
    assert answers("operate") == (303, False)
    users["staff"].user_permissions.add(Permission.objects.get(codename="delete_schedule"))
    assert answers(path) == (303, True)


def test_new_schedule_encodes_the_arguments_of_django_tasks(
    project: Qsync, staff: Client, writable: None
) -> None:
    from tests.support.django_shop.tasks import send

    def put(payload: str) -> Any:
        form = {
            "new": "yes", "name": "nightly", "type": send.module_path, "queue": "mail",
            "payload": payload, "cron": "0 3 * * *", "missed": "skip",
        }  # fmt: skip
        kind = "application/x-www-form-urlencoded"
        return staff.post(f"{PAGE}schedule/put", urlencode(form), content_type=kind, headers=SAME)

    refused = put('{"adress": "ann"}')
    assert refused.status_code == 400
    assert "missing a required argument: 'address'" in html.unescape(refused.content.decode())
    assert put('{"address": "ann"}').status_code == 303

    async def payload() -> Any:
        async with project.inspector() as inspector:
            change = await inspector.trigger("nightly", queue="mail")
            task = await inspector.task(change.holder or "", queue="mail")
            assert task is not None
            return task.value()

    assert asyncio.run(payload()) == {"args": [], "kwargs": {"address": "ann"}}
