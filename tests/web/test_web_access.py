"""Access to the dashboard, and protection against requests from other sites."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from qsync import Task
from qsync.errors import ConfigError
from qsync.web import Dashboard, create_app
from qsync.web.app import ACTIONS
from qsync.web.auth import (
    COOKIE,
    MAX_ADDRESSES,
    LoginThrottle,
    TokenAccess,
    is_loopback,
    local_path,
)
from qsync.web.security import HEADERS
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store

TOKEN = "a-token-of-24-characters"


@asynccontextmanager
async def dashboard(
    store: Store, prefix: str, base: str = "http://localhost", **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Bed, Dashboard]]:
    async with bed(store.url, prefix) as made:
        await made.dead(Task("t", id="d1"))
        async with create_app(made.inspector, **options) as app, visiting(app, base=base) as client:
            yield client, made, app


def all_routes(app: Dashboard) -> list[tuple[str, str]]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) == len(app.routes) > 25
    return [(method, route.path) for route in routes for method in sorted(route.methods or ())]


@pytest.mark.parametrize(
    ("options", "status"),
    [({}, 403), ({"token": TOKEN}, 401), ({"auth": lambda request: False}, 403),
     ({"auth": lambda request: None}, 403), ({"auth": lambda request: object()}, 403),
     ({"auth": lambda request: ""}, 403)],
    ids=["nothing said", "token", "False", "None", "an object", "no name"],
)  # fmt: skip
async def test_every_route_is_denied_to_strangers(
    valkey: Store, prefix: str, options: dict[str, Any], status: int
) -> None:
    """Files, metrics and pages that do not exist are also denied, with every HTTP method."""

    async with dashboard(valkey, prefix, read_only=False, **options) as (client, made, app):
        routes = [
            *all_routes(app),
            ("GET", "/nothing"),
            ("POST", "/nothing"),
            ("GET", "/login"),
        ]
        for method, path in routes:
            answer = await client.request(method, path, headers=FORM)
            assert answer.status_code == status, (method, path)
            assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
            assert "d1" not in answer.text
        assert (await made.inspector.find("d1"))[0].state == "dead"


FORM = {**SAME, "Content-Type": "application/x-www-form-urlencoded"}


async def test_token_is_accepted_by_header_and_form(valkey: Store, prefix: str) -> None:
    async with dashboard(valkey, prefix, token=TOKEN) as (client, _, _app):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/", headers=bearer)).status_code == 200
        form = await client.get("/dead?queue=default")
        assert (form.status_code, form.headers["www-authenticate"][:6]) == (401, "Bearer")
        wanted = re.search(r'name="next" value="([^"]*)"', form.text)
        assert wanted and wanted[1] == "/dead?queue=default"
        answer = await client.post("/login", data={"token": TOKEN, "next": wanted[1]}, headers=SAME)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dead?queue=default")
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=strict", "Path=/"):
            assert part in cookie
        assert TOKEN not in cookie
        assert (await client.get("/")).status_code == 200, "by the cookie"
        assert "Sign out" in (await client.get("/")).text
        await client.post("/logout", headers=FORM)
        assert (await client.get("/")).status_code == 401


async def test_unauthenticated_visitor_gets_only_the_form_and_its_assets(
    valkey: Store, prefix: str
) -> None:
    async with dashboard(valkey, prefix, token=TOKEN) as (client, _, _app):
        form = (await client.get("/")).text
        assert re.findall(r'(?:href|src)="([^"]*)"', form) == ["data:,", "/login.css"]
        sheet = await client.get("/login.css")
        assert (sheet.status_code, sheet.headers["content-type"][:8]) == (200, "text/css")
        assert sheet.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        assert prefix not in form + sheet.text
    async with dashboard(valkey, prefix) as (client, _, _app):
        assert (await client.get("/login.css")).status_code == 403


async def test_cookie_is_secure_on_a_secure_page(valkey: Store, prefix: str) -> None:
    options = {"token": TOKEN, "base": "https://q.example"}
    async with dashboard(valkey, prefix, **options) as (client, _, _app):
        headers = {**SAME, "Origin": "https://q.example"}
        answer = await client.post("/login", data={"token": TOKEN}, headers=headers)
        assert "; Secure" in answer.headers["set-cookie"]


async def test_address_with_five_wrong_tokens_must_wait_and_others_need_not(
    valkey: Store, prefix: str
) -> None:
    async with dashboard(valkey, prefix, token=TOKEN) as (client, _, app):
        for _ in range(3):
            assert (await client.get("/", headers={"Authorization": "Bearer x"})).status_code == 401
        for _ in range(2):
            wrong = await client.post("/login", data={"token": "x" * 30}, headers=SAME)
            assert wrong.status_code == 401
            assert "Wrong token" in wrong.text
        locked = await client.post("/login", data={"token": TOKEN}, headers=SAME)
        assert (locked.status_code, int(locked.headers["retry-after"]) > 50) == (429, True)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/", headers=right)).status_code == 429
        async with visiting(app, client=("10.0.0.9", 1)) as other:
            assert (await other.get("/", headers=right)).status_code == 200


def test_wrong_tries_are_bounded_and_forgotten_after_a_minute() -> None:
    now = 0.0
    tries = LoginThrottle(lambda: now)
    for _ in range(5):
        assert tries.wait("1.2.3.4") == 0
        tries.failed("1.2.3.4")
    assert tries.wait("1.2.3.4") == 60
    assert tries.wait("1.2.3.5") == 0
    now = 60.5
    assert tries.wait("1.2.3.4") == 0
    for n in range(5):
        tries.failed(f"2001:db8::{n}")
    assert tries.wait("2001:db8::ffff") > 0, "an IPv6 network counts as one address"
    for n in range(MAX_ADDRESSES + 10):
        tries.failed(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(tries._failed) == MAX_ADDRESSES


@pytest.mark.parametrize("made", ["", ".", "9999999999.", "9999999999.00", "x.y", "٣.4", "1.2.3"])
async def test_forged_or_old_cookie_is_rejected(valkey: Store, prefix: str, made: str) -> None:
    async with dashboard(valkey, prefix, token=TOKEN) as (client, _, _app):
        old = TokenAccess(TOKEN).session(now=1_000_000)
        other = TokenAccess(TOKEN + "x").session()
        until, _, signature = TokenAccess(TOKEN).session().partition(".")
        for value in (made, old, other, f"{int(until) + 1}.{signature}"):
            headers = {b"cookie": f"{COOKIE}={value}".encode()}
            answer = await client.get("/", headers=headers)
            assert answer.status_code == 401, value


SITES = [None, "same-origin", "none", "same-site", "cross-site", "", "x"]
ORIGINS = [None, "http://localhost", "https://localhost", "null", "http://localhost.evil.example",
           "http://evil.example", "http://localhost:8080", "http://localhost/", "localhost", "",
           "http://"]  # fmt: skip


async def test_cross_site_requests_change_nothing(valkey: Store, prefix: str) -> None:
    """Of 77 kinds of requests, only requests from the dashboard's own pages have an effect."""

    async with dashboard(valkey, prefix, auth="host", read_only=False) as (client, made, _):
        for site, origin in itertools.product(SITES, ORIGINS):
            given = {"Sec-Fetch-Site": site, "Origin": origin}
            headers = {name: value for name, value in given.items() if value is not None}
            good = site in ("same-origin", "none") and origin in ORIGINS[1:3]
            answer = await client.post("/queue/pause", data={"queue": "default"}, headers=headers)
            assert answer.status_code == (303 if good else 403), (site, origin)
            info = await made.inspector.queue("default")
            assert info and bool(info.paused) is good, (site, origin)
            await made.inspector.resume("default")


async def test_plain_http_from_remote_hosts_is_checked_by_origin(
    valkey: Store, prefix: str
) -> None:
    """Browsers send Sec-Fetch-Site only for trustworthy origins."""

    options = {"token": TOKEN, "read_only": False, "base": "http://q.example:8080"}
    async with dashboard(valkey, prefix, **options) as (client, _, _app):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for origin, status in (("http://q.example:8080", 303), ("http://evil.example", 403),
                               ("http://q.example", 403), (None, 403)):  # fmt: skip
            headers = {} if origin is None else {"Origin": origin}
            answer = await client.post("/queue/pause", data={"queue": "default"}, headers=headers)
            assert answer.status_code == status, origin


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""]
)
async def test_only_form_bodies_are_accepted(valkey: Store, prefix: str, kind: str) -> None:
    async with dashboard(valkey, prefix, auth="host", read_only=False) as (client, _, _app):
        answer = await client.post(
            "/queue/pause", content=b"queue=default", headers={**SAME, "Content-Type": kind}
        )
        assert answer.status_code == 415


async def test_get_changes_nothing_and_other_methods_are_refused(
    valkey: Store, prefix: str
) -> None:
    async with dashboard(valkey, prefix, auth="host", read_only=False) as (client, made, app):
        query = "queue=default&id=d1&state=dead&sure=yes&scope=all&name=x"
        for path in ACTIONS:
            answer = await client.get(f"{path}?{query}", headers=SAME)
            assert answer.status_code == 405, path
        for method, (_, path) in itertools.product(
            ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"), all_routes(app)[:3]
        ):
            assert (await client.request(method, path, headers=FORM)).status_code == 405
        info = await made.inspector.queue("default")
        assert info and (info.states["dead"], info.paused) == (1, None)


async def test_read_only_is_the_default_and_refuses_every_change(
    valkey: Store, prefix: str
) -> None:
    async with dashboard(valkey, prefix, auth="host") as (client, _, _app):
        for path in ACTIONS:
            form = {"queue": "default", "id": "d1", "state": "dead", "sure": "yes"}
            answer = await client.post(path, data=form, headers=SAME)
            assert answer.status_code == 403, path
            assert answer.text == "Read-only: create_app(..., read_only=False) enables changes.\n"
        for path in ("/dead", "/queue?queue=default", "/task?id=d1", "/schedules"):
            page = (await client.get(path)).text
            assert re.findall(r'method="post" action="([^"]*)"', page) == ["/language"], path
            assert "<code>create_app(..., read_only=False)</code> enables changes." in page, path


async def test_bodies_and_addresses_are_limited(valkey: Store, prefix: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"a" * 1000

    async with dashboard(valkey, prefix, auth="host", read_only=False) as (client, _, _app):
        large = await client.post("/task/run", content=b"a" * 70_000, headers=FORM)
        assert large.status_code == 413
        chunked = await client.post("/task/run", content=parts(), headers=FORM)
        assert chunked.status_code == 413
        many = await client.post("/task/run", content=b"a=1&" * 5000, headers=FORM)
        assert many.status_code == 400
        assert (await client.get("/tasks?type=" + "a" * 9000)).status_code == 414


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("LOCALHOST", 200),
     ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.nip.io", 421), ("", 421),
     ("localhost:8080@evil.example", 421), ("[", 421)],
)  # fmt: skip
async def test_host_names_that_are_not_allowed_are_refused(
    valkey: Store, prefix: str, host: str, status: int
) -> None:
    """If any host name were accepted, a page of another site whose name resolves to this machine
    could read the dashboard."""

    options = {"auth": "host", "hosts": ["localhost", "127.0.0.1", "::1"]}
    async with dashboard(valkey, prefix, **options) as (client, _, _app):
        answer = await client.get("/", headers={"Host": host})
        assert answer.status_code == status
        assert ("allow it with hosts=." in answer.text) == (status == 421)


async def test_host_app_decides_access_and_user(valkey: Store, prefix: str) -> None:
    async def auth(request: Request) -> Any:
        match request.headers.get("x-user", ""):
            case "":
                return RedirectResponse("/sign-in", 303)
            case "mallory":
                return False
            case user:
                return user

    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t"))
        app = create_app(made.inspector, auth=auth, read_only=False)
        host = Starlette(routes=[Mount("/ops", app)])
        async with app, visiting(host) as client:
            assert (await client.get("/ops/")).headers["location"] == "/sign-in"
            assert (await client.get("/ops/", headers={"X-User": "mallory"})).status_code == 403
            headers = {"X-User": "ann", **SAME}
            await client.post(
                "/ops/queue/pause", data={"queue": "default", "why": "rest"}, headers=headers
            )
            info = await made.inspector.queue("default")
            assert info and info.paused
            assert (info.paused.by, info.paused.why) == ("ann", "rest")


async def test_slow_or_broken_page_shows_no_details(valkey: Store, prefix: str) -> None:
    async def slow(request: Request) -> bool:
        await asyncio.sleep(60)
        return True

    def broken(request: Request) -> bool:
        raise RuntimeError("the secret of the host app")

    for auth, status in ((slow, 504), (broken, 500)):
        async with dashboard(valkey, prefix, auth=auth, timeout=0.2) as (client, _, _app):
            answer = await client.get("/")
            assert (answer.status_code, "secret" in answer.text) == (status, False)
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "options",
    [{"token": "short"}, {"auth": "host", "token": TOKEN}, {"auth": "hosts"}, {"auth": 0},
     {"mask": 3}, {"timeout": 0}, {"timeout": True}, {"hosts": "localhost"}, {"hosts": 5},
     {"hosts": [1]}, {"token": 5}, {"token": b"short" * 4}, {"view_token": 5, "token": TOKEN},
     {"read_only": None}, {"read_only": 0}, {"read_only": ""}, {"read_only": "false"},
     {"language": []}, {"role": []}, {"trace_url": 5}, {"others": [1]}, {"others": 0},
     {"others": {"b": 1}}, {"others": {1: 1}}],
)  # fmt: skip
async def test_wrong_option_is_refused_at_once(
    valkey: Store, prefix: str, options: dict[str, Any]
) -> None:
    async with bed(valkey.url, prefix) as made:
        with pytest.raises(ConfigError, match=f"^{next(iter(options))}: ") as caught:
            create_app(made.inspector, **options)
        assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "root", "leads"),
    [("/dead?a=b", "", "/dead?a=b"), ("/q/dead", "/q", "/q/dead"), ("//evil", "", "/"),
     ("/\\evil", "", "/"), ("https://evil", "", "/"), ("/q/../x", "/q", "/q/"), ("/x", "/q", "/q/"),
     ("/a\r\nb", "", "/"), ("", "", "/"), ("/é", "", "/"), ("//evil", "/", "/")],
)  # fmt: skip
def test_redirects_stay_within_the_dashboard(wanted: str, root: str, leads: str) -> None:
    assert local_path(wanted, root.rstrip("/")) == leads


def test_loopback_addresses_are_recognised() -> None:
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "a.localhost"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.nip.io", "", "localhost.x"):  # noqa: S104 - not bound to
        assert not is_loopback(host), host
