"""The content of the dashboard's pages, with any query and under any mount path."""

from __future__ import annotations

import ast
import asyncio
import html
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import qsync.web
from qsync import Task, codec
from qsync.fingerprint import fingerprint_of
from qsync.web import create_app
from qsync.web.app import STATIC, VIEWS
from qsync.web.pages import make_environment
from qsync.web.security import HEADERS
from tests.support.dashboard import SAME, TRACE, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Cluster, Store, wait_until_async

WEB = Path(qsync.web.__file__).parent
IDS = {"/queue": "queue=default", "/task": "id=d1", "/edit": "id=d1",
       "/server": "id=w", "/find": "id=d1",
       "/search": "q=state:dead", "/search/export": "q=state:dead&format=csv",
       "/more": "work=run&queue=default&cursor=x&done=500",
       "/error": f"id={fingerprint_of('mail.send', TRACE).id}"}  # fmt: skip


@asynccontextmanager
async def filled(
    store: Store | Cluster, prefix: str, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Bed]]:
    """Yield a dashboard of a queue with all kinds of data."""
    async with bed(store.url, prefix) as made:
        dead = [Task("mail.send", {"n": n}, id=f"d{n}", headers={"h": "v"}) for n in range(3)]
        await made.dead(*dead, error=TRACE)
        await made.enqueue(Task("t", "run", id="a1"))
        await made.lease(server="w")
        await made.enqueue(Task("t", [1, 2], id="p1"), Task("t", b"x", id="s1", delay=60))
        await made.serve("w", types=["t"])
        options = {"auth": "host", "read_only": False, **options}
        async with create_app(made.inspector, **options) as app, visiting(app) as client:
            yield client, made


def pages() -> list[str]:
    paths = [f"{path}?{IDS[path]}" if path in IDS else path for path in VIEWS]
    states = ("scheduled", "active", "retry", "completed")
    return [*paths, *(f"/tasks?queue=default&state={state}" for state in states)]


async def test_every_page_has_all_security_headers(valkey: Store, prefix: str) -> None:
    async with filled(valkey, prefix) as (client, _):
        for path in [*pages(), *(f"/static/{name}" for name in STATIC), "/none", "/task?id=x"]:
            answer = await client.get(path)
            assert answer.status_code in (200, 303, 404), (path, answer.text)
            for name, value in HEADERS.items():
                assert answer.headers[name] == value, (path, name)
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_times_count_from_the_clock_of_the_store(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """The clock of the dashboard's host is an hour off, but every "... ago" and "in ..." is
    correct."""
    async with filled(valkey, prefix) as (client, made):
        await made.inspector.pause("default", by="ann", why="x")
        await made.inspector.put_schedule("s", Task("t"), every=60)
        await made.inspector.trigger("s", queue="default")
        exact = time.time
        monkeypatch.setattr(time, "time", lambda: exact() + ahead_s)
        seen = Counter[str]()
        for path in [*pages(), "/task?id=a1", "/task?id=s1", "/schedule?queue=default&name=s"]:
            answer = await client.get(path)
            text = html.unescape(re.sub(r"<[^>]+>", " ", answer.text))
            for match in re.finditer(
                r"\bin ([\d.]+) (s|min|h)\b|(\d+) (s|min|h)[^<]{0,9} ago", text
            ):
                if path.endswith("id=d1"):
                    continue  # this page also shows the times of attempts, which differ
                number, unit = match[1] or match[3], match[2] or match[4]
                assert unit == "s" or (unit == "min" and int(number) <= 20), (path, match[0])
                seen["ago" if match[3] else "in"] += 1
        assert min(seen["ago"], seen["in"]) > 5, seen
        text = (await client.get("/task?id=a1")).text
        assert re.search(r"Running for [\d.]+ m?s|ran [\d.]+ m?s", text), text


async def test_a_task_is_shown_whole(store: Store, prefix: str) -> None:
    async with filled(store, prefix) as (client, _):
        text = (await client.get("/task", params={"queue": "default", "id": "d1"})).text
        for part in (
            "mail.send",
            " at 204",
            "&#34;n&#34;: 1",
            "Dead since",
            "Run now",
        ):
            assert part in text, part
        active = (await client.get("/task?id=a1")).text
        assert "Running for " in active
        assert "Cancel" in active
        assert "Run now" not in active
        gone = await client.get("/task?id=nope")
        assert (gone.status_code, "was never enqueued" in gone.text) == (404, True)


async def test_tasks_are_found_by_id_error_and_type(store: Store, prefix: str) -> None:
    async with filled(store, prefix) as (client, made):
        found = await client.get("/find?id=p1")
        assert found.headers["location"] == "/task?queue=default&id=p1"
        await made.enqueue(Task("t", id="p1"), queue="other")
        both = (await client.get("/find?id=p1")).text
        assert "/task?queue=other&amp;id=p1" in both
        assert (await client.get("/find?id=none")).status_code == 404
        assert (await client.get("/find?id=a%20b")).status_code == 400
        assert ids((await client.get("/dead?queue=default&error=4711")).text) == [
            "d2",
            "d1",
            "d0",
        ]
        assert ids((await client.get("/dead?queue=default&error=4712")).text) == []
        assert ids((await client.get("/dead?type=mail.*&id=d1")).text) == ["d1"]
        assert ids((await client.get("/dead?type=sms")).text) == []
        assert ids((await client.get("/dead?age=over-1d")).text) == []
        assert ids((await client.get("/tasks?queue=default")).text) == ["p1"]


def ids(text: str) -> list[str]:
    return re.findall(r'data-key="task-([^"]*)"', text)


async def test_paging_shows_every_task(valkey: Store, prefix: str) -> None:
    async with filled(valkey, prefix) as (client, made):
        await made.enqueue(*[Task("t", id=f"n{n}") for n in range(120)])
        path, seen = "/tasks?queue=default&limit=50", []
        while path:
            text = (await client.get(path)).text
            seen += ids(text)
            following = re.search(r'href="([^"]*cursor=[^"]*)"', text)
            path = following[1].replace("&amp;", "&") if following else ""
        assert seen == ["p1", *(f"n{n}" for n in range(120))]


@pytest.mark.parametrize(
    ("query", "shown"),
    [("limit=1e9", 100), ("limit=-5", 1), ("limit=nan", 50), ("limit=x", 50), ("limit=7", 7),
     ("page=1e99", 50), ("limit=" + "9" * 5000, 100)],
)  # fmt: skip
async def test_any_query_string_returns_a_page(
    valkey: Store, prefix: str, query: str, shown: int
) -> None:
    async with filled(valkey, prefix) as (client, made):
        await made.enqueue(*[Task("t", id=f"n{n}") for n in range(150)])
        answer = await client.get(f"/tasks?queue=default&{query}")
        assert len(ids(answer.text)) == shown


@pytest.mark.parametrize(
    "path",
    ["/tasks?state=none", "/tasks?queue=a%00b", "/tasks?queue=default&cursor=zzz",
     "/queue?queue=%2F", "/task?id=a%0ab", "/tasks?queue=default&cursor=" + "A" * 3000],
)  # fmt: skip
async def test_invalid_query_is_explained(valkey: Store, prefix: str, path: str) -> None:
    async with filled(valkey, prefix) as (client, _):
        answer = await client.get(path)
        assert (answer.status_code, "Invalid request" in answer.text) == (400, True)


async def test_dashboard_works_at_any_mount_path(valkey: Store, prefix: str) -> None:
    """Every link and form on every page stays below the mount path, and so do the static files."""

    async with bed(valkey.url, prefix) as made:
        await made.dead(Task("t", id="d1"))
        dashboard = create_app(made.inspector, auth="host", read_only=False)
        host = Starlette(routes=[Mount("/a b/ops", dashboard)])
        async with visiting(host) as client, dashboard:
            for path in pages():
                text = (await client.get(f"/a%20b/ops{path}")).text
                links = re.findall(r'(?:href|src|action|formaction)="([^"]*)"', text)
                outside = [link for link in links if not link.startswith(("/a%20b/ops/", "#"))]
                assert outside == [], path
            assert (await client.get("/a%20b/ops/static/style.css")).status_code == 200
            answer = await client.get("/a%20b/ops/find?id=d1")
            assert answer.headers["location"].startswith("/a%20b/ops/task?")


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/style.css/",
     "/static/", "/static//etc/passwd", "//evil.example/", "/static/style.css%00.js"],
)  # fmt: skip
async def test_only_static_files_are_served(valkey: Store, prefix: str, path: str) -> None:
    async with filled(valkey, prefix) as (client, _):
        answer = await client.get(f"http://localhost{path}")
        assert answer.status_code == 404
        assert "def create_app" not in answer.text


async def test_payloads_are_shown_through_the_mask(valkey: Store, prefix: str) -> None:
    seen = []

    def mask(type: str, payload: bytes) -> str | bytes:
        seen.append((type, payload))
        if payload == b"boom":
            raise ValueError(payload)
        if payload == b"odd":
            return 3  # type: ignore[return-value]
        value = codec.decode(payload)
        return codec.encode({**value, "card": "xxxx"}) if "card" in value else f"len {len(value)}"

    async with filled(valkey, prefix, mask=mask) as (client, made):
        await made.enqueue(
            Task("pay", {"card": "4111", "sum": 3}, id="m1"), Task("pay", {"a": 1}, id="m2"),
            Task("pay", b"boom", id="m3"), Task("pay", b"odd", id="m4"),
        )  # fmt: skip
        texts = [(await client.get(f"/task?id=m{n}")).text for n in (1, 2, 3, 4)]
        assert "4111" not in texts[0]
        assert "xxxx" in texts[0]
        assert "len 1" in texts[1]
        assert "boom" not in texts[2]
        assert "failed with ValueError" in texts[2]
        assert "neither text nor bytes" in texts[3]
        assert seen[0] == ("pay", codec.encode({"card": "4111", "sum": 3}))


async def test_results_are_not_shown_where_payloads_are_masked(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        from qsync.message import Result

        await made.enqueue(Task("t", id="a", retention=60))
        result = codec.encode(Result(codec.encode("the secret"), is_value=True))
        await made.complete(await made.lease(), 60, result)
        for mask, shown in ((None, True), (lambda type, payload: "-", False)):
            app = create_app(made.inspector, auth="host", mask=mask)
            async with app, visiting(app) as client:
                assert ("the secret" in (await client.get("/task?id=a")).text) is shown


async def test_completed_task_shows_the_attempt_that_completed(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t", id="a", retry=3, retention=60))
        await made.complete(await made.lease(), 60, b"")
        app = create_app(made.inspector, auth="host")
        async with app, visiting(app) as client:
            for path in ("/task?id=a", "/tasks?queue=default&state=completed"):
                assert ">1 / 4<" in (await client.get(path)).text, path


async def test_metrics_and_health_are_served(store: Store, prefix: str) -> None:
    async with filled(store, prefix) as (client, _):
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        assert 'qsync_queue_tasks{queue="default",state="dead"} 3.0' in metrics.text
        health = (await client.get("/health")).json()
        assert (health["ok"], health["queues"], health["servers"]) == (True, 1, 1)


@pytest.mark.faults(17)
async def test_unreachable_store_is_reported_in_time(own_store: Store, prefix: str) -> None:
    async with filled(own_store, prefix, timeout=1.5) as (client, _):
        own_store.kill()
        answers = await asyncio.gather(
            *(client.get(path) for path in ("/", "/task?id=d1", "/dead", "/health"))
        )
        assert {answer.status_code for answer in answers} <= {503, 504}
        own_store.start()

        async def is_back() -> bool:
            return (await client.get("/health")).status_code == 200

        await wait_until_async(is_back)


@pytest.mark.faults(17)
async def test_action_without_a_store_leads_back_to_its_form(own_store: Store, prefix: str) -> None:
    """The page that answers a form does not refresh itself: it has the path of an action."""
    async with filled(own_store, prefix, timeout=60) as (client, _):
        own_store.kill()
        back = "/queue?queue=default"
        headers = {**SAME, "Referer": f"{client.base_url}{back}"}
        answer = await client.post("/queue/resume", data={"queue": "default"}, headers=headers)
    assert answer.status_code == 503
    assert "the change may not have been made" in answer.text
    assert 'data-live="' not in answer.text
    assert f'href="{back}">Back' in answer.text


async def test_failed_action_leads_back_only_to_pages_of_the_dashboard(
    valkey: Store, prefix: str
) -> None:
    async with filled(valkey, prefix) as (client, _):
        for referer, back in (("/queue?queue=a", True), ("/queue/purge", False), ("", False)):
            address = f"{client.base_url}{referer}" if referer else "https://other.example/queue"
            headers, form = {**SAME, "Referer": address}, {"queue": "a/b c", "type": "x"}
            answer = await client.post("/queue/pause", data=form, headers=headers)
            assert answer.status_code == 400
            assert (f'href="{referer}">Back' in answer.text) == back
            assert 'data-live="' not in answer.text


@pytest.mark.faults(17)
async def test_action_that_takes_too_long_is_not_reported_as_undone(
    own_store: Store, prefix: str
) -> None:
    async with filled(own_store, prefix, timeout=1.5) as (client, _):
        own_store.kill()
        answer = await client.post("/queue/resume", data={"queue": "default"}, headers=SAME)
        assert answer.status_code == 504
        assert "The change may not have been made" in answer.text


async def test_charts_show_sampled_values(valkey: Store, prefix: str) -> None:
    async with filled(valkey, prefix) as (client, made):
        app = client._transport.app  # type: ignore[attr-defined]
        sampler = app.site.sampler
        await sampler.stop()
        await sampler.sample()
        await made.enqueue(*[Task("t") for _ in range(10)])
        await sampler.sample()
        steps = sampler.series()
        took, grown = steps[-1]
        assert (grown.enqueued, grown.completed, took > 0) == (10, 0, True)
        assert sampler.series("default")[-1] == steps[-1]
        assert sampler.series("none")[-1] is None, "the last sample does not contain this queue"
        text = (await client.get("/")).text
        assert text.count("<svg") == 7, "the logo, three charts by minute and three charts by day"
        for _ in range(400):
            sampler._samples.append(sampler._samples[-1])
        assert len(sampler.series()) == 180, "it is bounded"


async def test_pages_show_a_cluster(cluster: Cluster, prefix: str) -> None:
    async with filled(cluster, prefix) as (client, made):
        await made.enqueue(Task("t", id="other"), queue="elsewhere")
        for path in pages():
            answer = await client.get(path)
            known = (404,) if path == "/schedule/runs" else (200, 303)  # unknown schedule
            assert answer.status_code in known, (path, answer.text)
        form = {"id": "d1", "queue": "default", "state": "dead"}
        await client.post("/task/run", data=form, headers=same())
        assert (await made.inspector.find("d1"))[0].state == "pending"
        found = await client.get("/find?id=other")
        assert "queue=elsewhere" in found.headers["location"]


def same() -> dict[str, str]:
    return {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}


BANNED = (
    "|safe", "| safe", "innerHTML", "outerHTML", "insertAdjacent", "eval(", "document.write",
    "autoescape false", "<style", " style=",
)  # fmt: skip


def test_templates_and_scripts_escape_all_markup() -> None:
    """No string is marked as safe, no script or style is inline, and no page loads anything from
    other sites."""
    for path in [*WEB.glob("templates/*"), *WEB.glob("static/*")]:
        text = path.read_text()
        for banned in BANNED:
            assert banned not in text, (path.name, banned)
        assert not re.search(r"<script(?![^>]* src=)", text), path.name
        assert not re.search(r"\son\w+=", text), path.name
        assert path.suffix != ".css" or "url(" not in text
        others = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert others == set(), path.name
    for path in WEB.glob("*.py"):
        # Strings in the catalogue contain tags, so they are marked as safe; values in them are
        # escaped.
        allowed = 1 if path.name == "template_filters.py" else 0
        assert path.read_text().count("Markup(") == allowed, path.name


def test_only_the_web_part_knows_starlette_and_it_reaches_the_store_through_the_inspector() -> None:
    for path in WEB.parent.rglob("*.py"):
        names = {name.partition(".")[0] for name in imports(path)}
        if path in (WEB.parent / "contrib" / "fastapi.py", WEB.parent / "contrib" / "starlette.py"):
            continue  # these integrations mount the dashboard
        if WEB not in path.parents:
            assert not names & {"starlette", "jinja2", "markupsafe"}, path
        else:
            assert not [name for name in imports(path) if name.startswith("qsync.broker")], path


def imports(path: Path) -> list[str]:
    """Return the modules that a file imports, and words after `from` or `import` in its texts."""
    return re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text("utf-8"), re.MULTILINE)


def test_no_page_replaces_a_value_that_all_pages_have() -> None:
    common = make_environment().globals.keys()
    calls = [
        (path.name, call)
        for path in WEB.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".page")
    ]
    assert len(calls) > 20
    for name, call in calls:
        assert not {word.arg for word in call.keywords} & common, f"{name}, line {call.lineno}"
