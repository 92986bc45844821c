"""qsync.contrib.fastapi and qsync.contrib.starlette provide a client, a lifespan and the
dashboard."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    WebSocket,
)
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from qsync import AsyncClient, ConfigError, Qsync, QsyncError, Task
from qsync.contrib import starlette as for_starlette
from qsync.contrib.fastapi import QueueClient, lifespan, mount_dashboard
from qsync.web import create_app
from tests.support.dashboard import SAME
from tests.support.stores import Store

FORM = {**SAME, "Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def app(valkey: Store, prefix: str) -> Iterator[Qsync]:
    with Qsync(valkey.url, prefix=prefix) as app:
        yield app


def shop(app: Qsync, **options: Any) -> tuple[FastAPI, list[AsyncClient]]:
    """Return an API, and the clients that its requests received."""
    api = FastAPI(**{"lifespan": lifespan(app), **options})
    seen: list[AsyncClient] = []

    @api.post("/buy")
    async def buy(client: QueueClient) -> str:
        seen.append(client)
        return (await client.enqueue(Task("send", [7]))).id

    @api.websocket("/live")
    async def live(socket: WebSocket, client: QueueClient) -> None:
        await socket.accept()
        seen.append(client)
        await socket.send_text((await client.enqueue(Task("send", [8]))).id)
        await socket.close()

    return api, seen


def test_requests_and_websockets_share_the_client_of_the_app(app: Qsync) -> None:
    api, seen = shop(app)
    with TestClient(api) as web:
        ids = [web.post("/buy").json() for _ in range(2)]
        with web.websocket_connect("/live") as socket:
            ids.append(socket.receive_text())
    assert len(seen) == 3
    assert len(set(map(id, seen))) == 1
    with app.client() as client:
        assert [client.handle(id).info().type for id in ids] == ["send"] * 3


async def test_async_test_client_works_within_the_lifespan(app: Qsync) -> None:
    api, seen = shop(app)
    async with (
        lifespan(app)(api),
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop") as web,
    ):
        id = (await web.post("/buy")).json()
        assert (await seen[0].handle(id).info()).type == "send"


def test_client_is_closed_when_the_site_stops_and_recreated_when_it_restarts(app: Qsync) -> None:
    api, seen = shop(app)
    for _ in range(2):
        with TestClient(api) as web:
            web.post("/buy").raise_for_status()
    first, second = seen
    assert first is not second
    for client in seen:
        with pytest.raises(QsyncError, match="closed"):
            client.enqueue(Task("send")).send(None)
    with pytest.raises(ConfigError, match="the lifespan of the site is not running"):
        TestClient(api).post("/buy")
    with pytest.raises(ConfigError, match="lifespan: 7 is not a Qsync"):
        lifespan(7)  # type: ignore[arg-type]


def test_own_lifespan_runs_while_the_client_is_open(app: Qsync) -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def own(site: FastAPI) -> AsyncIterator[dict[str, str]]:
        client = for_starlette.client_of(Request({"type": "http", "app": site}))
        events.append((await client.enqueue(Task("start"))).id)
        yield {"database": "a pool"}
        events.append((await client.enqueue(Task("stop"))).id)

    api, _ = shop(app, lifespan=lifespan(app, own))

    @api.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.database)

    with TestClient(api) as web:
        assert web.get("/state").json() == "a pool"
        web.post("/buy").raise_for_status()
    with app.client() as client:
        assert [client.handle(id).info().type for id in events] == ["start", "stop"]


def test_lifespan_can_be_entered_in_a_lifespan(app: Qsync) -> None:
    @contextlib.asynccontextmanager
    async def own(site: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(app)(site) as state:
            yield {**(state or {}), "more": 1}

    api, seen = shop(app, lifespan=own)
    with TestClient(api) as web:
        web.post("/buy").raise_for_status()
    assert len(seen) == 1


def test_second_app_in_one_lifespan_is_refused(app: Qsync) -> None:
    other = Qsync("redis://127.0.0.1:1", prefix="other")

    @contextlib.asynccontextmanager
    async def side_by_side(site: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(app)(site) as first, lifespan(other)(site) as second:
            yield {**first, **second}

    for both in (lifespan(app, lifespan(other)), lifespan(app, lifespan(app)), side_by_side):
        api, _ = shop(app, lifespan=both)
        with pytest.raises(ConfigError, match=r"client of another .*other\.async_client\(\)"):
            TestClient(api).__enter__()
        with pytest.raises(ConfigError, match="is not running"):
            TestClient(api).post("/buy")
    other.close()


def test_test_clients_of_one_site_may_overlap(app: Qsync) -> None:
    api, seen = shop(app)
    with TestClient(api) as outer:
        with TestClient(api) as inner:
            inner.post("/buy").raise_for_status()
        outer.post("/buy").raise_for_status()
    assert len(seen) == 2


def test_client_without_lifespan_raises_an_error_with_advice(app: Qsync) -> None:
    api, _ = shop(app, lifespan=None)
    with pytest.raises(ConfigError, match=r"lifespan=lifespan\(app\)"):
        TestClient(api).post("/buy")


def test_application_mounted_in_another_uses_the_client_of_the_outer_one(app: Qsync) -> None:
    inner, seen = shop(app, lifespan=None)
    outer = FastAPI(lifespan=lifespan(app))
    outer.mount("/v1", inner)
    with TestClient(outer) as web:
        web.post("/v1/buy").raise_for_status()
    assert len(seen) == 1


def test_lifespan_works_where_the_server_passes_no_state(app: Qsync) -> None:
    api, seen = shop(app)
    web = TestClient(api)
    with web as started:
        started.app_state.clear()
        started.post("/buy").raise_for_status()
    assert len(seen) == 1


# The dashboard.


async def staff(request: Request) -> None:
    await request.body()  # a dependency that reads a form does this
    if request.headers.get("x-user") != "ann":
        raise HTTPException(401, "sign in")


def operated(app: Qsync, **options: Any) -> FastAPI:
    api, _ = shop(app)
    mount_dashboard(api, "/ops/", app, **{"dependencies": [Depends(staff)], **options})
    return api


def test_dependencies_guard_every_path_of_the_dashboard(app: Qsync) -> None:
    with TestClient(operated(app)) as web:
        for path in ("/ops/", "/ops/queues", "/ops/static/style.css", "/ops/metrics", "/ops/none"):
            assert web.get(path).status_code == 401, path
            assert web.post(path, headers=SAME).status_code == 401, path
        web.headers["x-user"] = "ann"
        page = web.get("/ops")
        assert page.url.path == "/ops/"
        assert '<html lang="en">' in page.text
        assert '<html lang="ru">' in web.get("/ops/", headers={"Accept-Language": "ru"}).text
        assert 'href="/ops/static/style.css"' in page.text
        assert web.get("/ops/static/style.css").headers["content-type"].startswith("text/css")
        assert web.get("/ops/none").status_code == 404
        assert web.head("/ops/queues").status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_dashboard_allows_changes_only_if_enabled(app: Qsync) -> None:
    api = operated(app, read_only=False)
    mount_dashboard(api, "/look", app, dependencies=[Depends(staff)])
    with TestClient(api, base_url="http://localhost", headers={"x-user": "ann"}) as web:
        web.post("/buy").raise_for_status()
        form = "queue=default&sure=1"
        refused = web.post("/look/queue/pause", content=form, headers=FORM)
        assert refused.status_code == 403
        assert "mount_dashboard(..., read_only=False) enables" in refused.text
        assert "Resume" not in web.get("/ops/queue?queue=default").text
        answer = web.post("/ops/queue/pause", content=form, headers=FORM, follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/ops/queue")
        assert "Resume" in web.get("/ops/queue?queue=default").text
        assert web.post("/ops/queue/resume", content=form, headers={
            **FORM, "Origin": "http://elsewhere",
        }).status_code == 403  # fmt: skip


def test_auth_runs_after_the_dependencies_and_names_the_user(app: Qsync) -> None:
    async def sign_in(request: Request) -> None:
        request.state.user = request.headers.get("x-user")

    def named(request: Any) -> Any:
        return request.state.user or False

    api = operated(app, dependencies=[Depends(sign_in)], auth=named, read_only=False)
    with TestClient(api, base_url="http://localhost") as web:
        web.post("/buy").raise_for_status()
        assert web.get("/ops/").status_code == 403
        web.headers["x-user"] = "bob"
        form = "queue=default&sure=1"
        answer = web.post("/ops/queue/pause", content=form, headers=FORM)
        assert "bob" in answer.text


def test_large_body_is_refused_by_the_dashboard(app: Qsync) -> None:
    api = operated(app, read_only=False, auth=lambda request: True, dependencies=[])
    with TestClient(api, base_url="http://localhost") as web:
        body = (b"x" * 1000 for _ in range(70))
        assert web.post("/ops/queue/pause", content=body, headers=FORM).status_code == 413


@pytest.mark.parametrize("path", ["/ops/", "/api/ops/"])
def test_dashboard_behind_a_proxy_links_below_its_root_path(app: Qsync, path: str) -> None:
    """The links are right whether or not the proxy strips the root path."""
    with TestClient(operated(app), root_path="/api", headers={"x-user": "ann"}) as web:
        assert 'href="/api/ops/static/style.css"' in web.get(path).text


def test_dashboard_is_left_out_of_the_openapi_schema(app: Qsync) -> None:
    assert set(operated(app).openapi()["paths"]) == {"/buy"}


def test_yielding_dependency_and_background_task_end_after_the_page(app: Qsync) -> None:
    events: list[str] = []

    async def tidy(later: BackgroundTasks) -> AsyncIterator[None]:
        later.add_task(events.append, "background")
        yield
        events.append("closed")

    with TestClient(operated(app, dependencies=[Depends(tidy)])) as web:
        assert web.get("/ops/").status_code == 200
    assert sorted(events) == ["background", "closed"]


def test_dashboard_without_access_is_refused(app: Qsync) -> None:
    with pytest.raises(ConfigError, match="all requests would be refused; pass dependencies="):
        mount_dashboard(FastAPI(), "/ops", app)
    with pytest.raises(ConfigError, match="all requests would be refused; pass auth="):
        for_starlette.mount_dashboard(Starlette(), "/ops", app)


@pytest.mark.parametrize("path", ["", "/", "ops", None, "/{shop}/ops"])
def test_path_of_the_dashboard_is_checked(app: Qsync, path: Any) -> None:
    with pytest.raises(ConfigError, match=r"path: .* pass one such as '/ops'"):
        mount_dashboard(FastAPI(), path, app, auth="host")


def test_wrong_arguments_of_the_dashboard_are_named(app: Qsync) -> None:
    def staff() -> None: ...

    api: Any = FastAPI()
    wrong_site: Any = APIRouter()
    wrong: Any = staff
    with pytest.raises(ConfigError, match=r"api: <.*APIRouter.* is not a FastAPI application"):
        mount_dashboard(wrong_site, "/ops", app, auth="host")
    with pytest.raises(ConfigError, match=r"site: <.*APIRouter.* is not a Starlette application"):
        for_starlette.mount_dashboard(wrong_site, "/ops", app, auth="host")
    for mount in (mount_dashboard, for_starlette.mount_dashboard):
        with pytest.raises(ConfigError, match=r"app: <fastapi.* is not a Qsync"):
            mount(api, "/ops", api, auth="host")
    for dependencies in ([wrong], Depends(staff), [Depends(staff), wrong]):
        with pytest.raises(ConfigError, match=r"dependencies: .*; pass \[Depends\(...\)\]"):
            mount_dashboard(api, "/ops", app, dependencies=dependencies)
    assert len(api.routes) == len(FastAPI().routes)


def test_dashboard_is_mounted_with_all_options_of_create_app(app: Qsync) -> None:
    own = inspect.signature(create_app).parameters
    for mount in (mount_dashboard, for_starlette.mount_dashboard):
        options = inspect.signature(mount).parameters
        assert {name: one.default for name, one in own.items() if name != "inspector"} == {
            name: one.default
            for name, one in options.items()
            if one.kind is one.KEYWORD_ONLY and name != "dependencies"
        }


@pytest.mark.parametrize(
    "option",
    [{"auth": 0}, {"role": "admin"}, {"token": "short"}, {"token": 5}, {"view_token": "x" * 20},
     {"language": "de"}, {"trace_url": "http://x/"}, {"mask": 5}, {"timeout": 0},
     {"read_only": None}, {"hosts": "shop.example"}, {"others": [1]}, {"others": {"b": 1}},
     {"others": {"/": None}}],
)  # fmt: skip
def test_wrong_option_of_the_dashboard_is_refused_when_it_is_mounted(
    app: Qsync, option: dict[str, Any]
) -> None:
    access: dict[str, Any] = {} if {"auth", "token"} & option.keys() else {"auth": "host"}
    for mount, site in (
        (mount_dashboard, FastAPI()),
        (for_starlette.mount_dashboard, Starlette()),
    ):
        routes, context = len(site.routes), site.router.lifespan_context
        with pytest.raises(ConfigError, match=f"^{next(iter(option))}: "):
            mount(site, "/ops", app, **access, **option)  # type: ignore[arg-type]
        assert (len(site.routes), site.router.lifespan_context) == (routes, context)


def test_mounted_dashboard_shows_other_stores(app: Qsync, valkey: Store, prefix: str) -> None:
    with (
        Qsync(valkey.url, prefix=f"{prefix}-b") as other,
        TestClient(
            operated(app, dependencies=[], auth="host", others={"b": other, "c": other.inspector()})
        ) as web,
    ):
        with other.client() as client:
            client.enqueue(Task("t", queue="only-in-b"))
        for store in "bc":
            assert "only-in-b" in web.get(f"/ops/store/{store}/queues").text
        assert "only-in-b" not in web.get("/ops/queues").text
    with pytest.raises(ConfigError, match=f"others: {prefix} is already the name"):
        mount_dashboard(FastAPI(), "/ops", app, auth="host", others={prefix: other})


def test_dashboard_without_lifespan_raises_an_error(app: Qsync) -> None:
    inner = FastAPI()
    mount_dashboard(inner, "/ops", app, auth="host")
    outer = FastAPI()
    outer.mount("/v1", inner)
    with TestClient(outer) as web, pytest.raises(ConfigError, match="in the outermost application"):
        web.get("/v1/ops/")


# Starlette.


def test_starlette_has_the_same_client_and_dashboard(app: Qsync) -> None:
    async def buy(request: Any) -> Response:
        handle = await for_starlette.client_of(request).enqueue(Task("send"))
        return PlainTextResponse(handle.id)

    site = Starlette(
        routes=[Mount("/shop", routes=[Route("/buy", buy, methods=["POST"])])],
        lifespan=for_starlette.lifespan(app),
    )
    for_starlette.mount_dashboard(
        site, "/ops", app, token="a-token-of-24-characters", language="ru"
    )
    with TestClient(site) as web:
        task = web.post("/shop/buy").text
        assert web.get("/ops/").status_code == 401
        web.headers["authorization"] = "Bearer a-token-of-24-characters"
        assert task in web.get("/ops/tasks?queue=default&state=pending").text
        assert '<html lang="ru">' in web.get("/ops/").text


def test_annotated_alias_is_the_type_of_the_client() -> None:
    assert QueueClient == Annotated[AsyncClient, QueueClient.__metadata__[0]]
