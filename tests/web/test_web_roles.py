"""Roles decide which changes users may make and which buttons they see."""

from __future__ import annotations

import re

import pytest
from starlette.requests import Request

from qsync import ConfigError, Qsync, Task
from qsync.web import create_app
from qsync.web.app import ACTIONS
from qsync.web.roles import RANK, ROLES, Role
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import bed
from tests.support.stores import Store

DELETES = {"/queue/purge", "/queue/delete", "/task/delete", "/tasks/delete", "/dead/delete",
           "/schedule/delete", "/schedule/forget"}  # fmt: skip
PAGES = ("/", "/queue?queue=default", "/dead?queue=default", "/task?id=d1", "/schedules",
         "/tasks?queue=default&state=scheduled", "/search?q=state:dead",
         "/schedule/runs?name=s&queue=default", "/tasks?queue=default&state=completed")  # fmt: skip
BUTTON = re.compile(r'<form method="post" action="([^"?]*)"|formaction="([^"?]*)"')


def test_each_route_that_changes_something_has_a_role() -> None:
    assert set(ROLES) == set(ACTIONS)
    assert {path for path, role in ROLES.items() if role == "delete"} == DELETES
    assert "view" not in ROLES.values()


def test_name_of_a_store_cannot_change_a_path() -> None:
    inspector = Qsync("redis://127.0.0.1:1").inspector()
    for name in (".", "..", "a/b"):
        with pytest.raises(ConfigError, match=r"others: .* is not a valid name"):
            create_app(inspector, auth="host", others={name: inspector})


async def role_of_header(request: Request) -> Role:
    return request.headers.get("x-role", "nothing")  # type: ignore[return-value]


async def test_every_change_needs_its_role_and_pages_show_only_allowed_changes(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.dead(Task("t", id="d1"), Task("t", id="d2"))
        await made.enqueue(Task("t", id="s1", delay=60), Task("t", id="c1", retention=60))
        await made.complete([one for one in await made.lease() if one.id == "c1"], 60, b"")
        await made.inspector.put_schedule("s", Task("t"), cron="0 3 * * *")
        app = create_app(
            made.inspector, auth="host", read_only=False, role=role_of_header,
            others={"more": made.inspector},
        )  # fmt: skip
        async with app, visiting(app) as client:
            for role, rank in {**RANK, "nothing": 0}.items():
                headers = {**SAME, "x-role": role}
                for path, needed in ROLES.items():
                    for route in (path, f"/store/more{path}"):
                        answer = await client.post(route, headers=headers, data={"queue": "none"})
                        refused = answer.status_code == 403
                        assert refused == (rank < RANK[needed]), (role, route, answer.text)
                        if refused:
                            assert f"which requires the role {needed}" in answer.text
                seen: set[str] = set()
                for page in PAGES:
                    text = (await client.get(page, headers=headers)).text
                    found = {one or other for one, other in BUTTON.findall(text)}
                    has_verbs = 'name="verb"' in text  # otherwise, the form has no button
                    seen |= found if has_verbs else found - {"/search/act"}
                seen -= {"/language"}
                allowed = {path for path, needed in ROLES.items() if rank >= RANK[needed]}
                assert seen <= allowed, (role, seen - allowed)
                assert bool(seen) == (rank > 0)
                assert (DELETES & seen != set()) == (role == "delete")
            form = {"verb": "delete", "q": "id:d1", "scope": "all", "sure": "yes"}
            for role, status in (("operate", 403), ("delete", 303)):
                headers = {**SAME, "x-role": role}
                answer = await client.post("/search/act", headers=headers, data=form)
                assert answer.status_code == status, role
            assert await made.inspector.task("d1") is None
            assert await made.inspector.task("d2") is not None


async def test_view_token_reads_and_changes_nothing(valkey: Store, prefix: str) -> None:
    tokens = {"token": "t" * 16, "view_token": "v" * 16}
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t"))
        app = create_app(made.inspector, read_only=False, **tokens)  # type: ignore[arg-type]
        async with app, visiting(app) as client:
            for token, status in ((tokens["view_token"], 403), (tokens["token"], 303)):
                bearer = {**SAME, "Authorization": f"Bearer {token}"}
                pause = {"queue": "default"}
                answer = await client.post("/queue/pause", headers=bearer, data=pause)
                assert answer.status_code == status
                client.cookies.clear()
                login = await client.post("/login", headers=SAME, data={"token": token})
                assert login.status_code == 303
                page = await client.get("/queue?queue=default")
                assert ('action="/queue/pause"' in page.text) == (status == 303)
                answer = await client.post("/queue/pause", headers=SAME, data=pause)
                assert answer.status_code == status
                value = client.cookies["qsync_session"]
                assert value.endswith(".view") == (status == 403)
                client.cookies.clear()
                client.cookies.set("qsync_session", value.removesuffix(".view") + "x")
                assert (await client.get("/queues")).status_code == 401
                client.cookies.clear()


def test_wrong_options_are_refused_at_once() -> None:
    inspector = Qsync("redis://127.0.0.1:1").inspector()
    with pytest.raises(ConfigError, match="role: 'admin' is neither a function"):
        create_app(inspector, auth="host", role="admin")  # type: ignore[arg-type]
    for options in ({"view_token": "v" * 16}, {"token": "t" * 16, "view_token": "t" * 16},
                    {"token": "t" * 16, "view_token": "short"}):  # fmt: skip
        with pytest.raises(ConfigError, match="view_token: "):
            create_app(inspector, **options)  # type: ignore[arg-type]
