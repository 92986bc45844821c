"""The dashboard's search over all queues and states. All results can be exported, or changed in one
step."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from qsync import Task
from qsync.state import TaskState
from qsync.web import create_app
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store


@asynccontextmanager
async def searched(
    store: Store, prefix: str, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Bed]]:
    """Yield a dashboard with two queues that have tasks in several states."""
    async with bed(store.url, prefix) as made:
        dead = [
            Task("mail.send", {"customer": "acme" if n % 2 else "zen", "n": n}, id=f"d{n}")
            for n in range(4)
        ]
        await made.dead(*dead, error="ValueError: no address")
        await made.dead(Task("pay", {"customer": "acme"}, id="d9"), queue="money", error="402")
        await made.enqueue(
            Task("mail.send", {"customer": "acme", "n": 1}, id="p1", fairness_key="vip"),
            Task("t", id="s1", delay=60), Task("big", {"customer": "x" * 20_000}, id="b1"),
        )  # fmt: skip
        options = {"auth": "host", "read_only": False, **options}
        async with create_app(made.inspector, **options) as app, visiting(app) as client:
            yield client, made


async def search(client: httpx.AsyncClient, query: str, **more: Any) -> list[str]:
    answer = await client.get("/search", params={"q": query, **more})
    assert answer.status_code == 200, answer.text
    return re.findall(r'data-key="task-([^"]*)"', answer.text)


FINDS = {
    "type:mail.*": "default/d3 default/d2 default/d1 default/d0 default/p1",
    "state:dead queue:money": "money/d9",
    "queue:mon* args.customer:acme": "money/d9",
    "state:dead,pending args.customer:acme args.n:1": "default/d1 default/p1",
    'error:"NO address" id:2': "default/d2",
    "address d3": "default/d3",
    "key:v?p": "default/p1",
    "state:scheduled": "default/s1",
    "age:<1h type:t": "default/s1",
    "age:>1h": "",
}


async def test_search_finds_tasks_of_all_queues_and_states(valkey: Store, prefix: str) -> None:
    async with searched(valkey, prefix) as (client, _):
        for query, found in FINDS.items():
            assert await search(client, query) == found.split(), query


async def sorted_over_all_pages(client: httpx.AsyncClient) -> None:
    """Check that, with one task per page, the pages show the same tasks in the same order as the
    whole list."""
    whole = await search(client, "type:*", sort="oldest")
    assert len(whole) > 3
    pages = [
        await search(client, "type:*", sort="oldest", limit="1", page=str(number + 1))
        for number in range(len(whole))
    ]
    assert [id for page in pages for id in page] == whole
    assert await search(client, "type:*", sort="newest") != whole
    text = (await client.get("/search?q=type:*&sort=oldest&limit=1&page=2")).text
    assert f"{len(whole)} matches, page 2 of {len(whole)}" in " ".join(text.split())
    assert "Only these are sorted" not in text


async def test_sort_says_that_it_has_not_seen_all(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(*[Task("t", bytes(n)) for n in range(1200)])
        app = create_app(made.inspector, auth="host")
        async with app, visiting(app) as client:
            text = (await client.get("/search?q=type:t&sort=size")).text
            assert "Only these are sorted: there may be more matches." in text
            assert re.search(r"1,000 matches, page 1 of|\d{3} matches, page 1 of", text)


async def test_search_page_shows_chips_export_and_errors_that_name_the_term(
    valkey: Store, prefix: str
) -> None:
    async with searched(valkey, prefix) as (client, _):
        text = (await client.get("/search?q=state:dead+type:mail.*&sort=newest")).text
        assert 'aria-label="Remove state:dead"' in text
        assert 'href="/search?q=type%3Amail.%2A&amp;sort=newest"' in text
        assert await search(client, "type:mail.*", sort="attempts")
        await sorted_over_all_pages(client)
        assert (
            (await client.get("/search?q=p1"))
            .headers["location"]
            .endswith("/task?queue=default&id=p1")
        )
        assert (
            "1 task over 16 KiB cannot be searched"
            in (await client.get("/search?q=args.customer:acme")).text
        )
        for query, why in (
            ("colour:red", "Unknown key “colour”"),
            ("state:gone", "Unknown state “gone”"),
            ("age:1h", "Write age:>1h"),
            ("age:>soon", "“soon” is not a duration"),
            ('error:"no', "is not closed"),
            ("type:", "Write a value after “type:”"),
            ("id:1 id:2", "“id:” is given twice"),
        ):
            answer = await client.get("/search", params={"q": query})
            shown = html.unescape(answer.text)
            assert (answer.status_code, why in shown) == (400, True), (query, shown)
            assert f"Search term “{query.split()[-1]}”" in shown

        empty = await client.get("/search/export?q=customer+state:dead&format=csv")
        assert empty.text.startswith("id,queue,state,type,")
        assert empty.text.count("\n") == 1
        answer = await client.get("/search/export?q=type:mail.*&format=csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [(row["id"], row["state"]) for row in rows][:2] == [("d3", "dead"), ("d2", "dead")]
        answer = await client.get("/search/export?q=state:dead&format=jsonl")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["id"] for line in lines] == ["d3", "d2", "d1", "d0", "d9"]
        assert (await client.get("/search/export?q=state:dead&format=xml")).status_code == 404
        assert (await client.get("/search/export?q=no:key&format=csv")).status_code == 400


async def test_masked_payloads_cannot_be_searched(valkey: Store, prefix: str) -> None:
    async with searched(valkey, prefix, mask=lambda *_: "hidden", read_only=True) as (client, _):
        for path in ("/search?", "/search/export?format=csv&"):
            answer = await client.get(f"{path}q=args.customer:acme")
            assert (answer.status_code, "Payloads are masked here" in answer.text) == (400, True)
        text = (await client.get("/search?q=state:dead")).text
        assert "Re-run all" not in text
        form = {"q": "state:dead", "verb": "retry", "scope": "all"}
        assert (await client.post("/search/act", data=form, headers=SAME)).status_code == 403


async def confirmed(client: httpx.AsyncClient, query: str, verb: str) -> tuple[str, str]:
    """Change all matches; return the confirmation page and the message at the end."""
    form: dict[str, str] = {"q": query, "verb": verb, "scope": "all"}
    question = ""
    while True:
        answer = await client.post("/search/act", data=form, headers=SAME)
        if answer.status_code == 303:
            page = await client.get(answer.headers["location"])
            flash = re.search(r'role="status">([^<]*)', page.text)
            assert flash is not None
            return question, flash[1]
        question = question or re.findall("<h1>(.*?)</h1>", answer.text)[0]
        form = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', answer.text))
        form = {name: html.unescape(value) for name, value in form.items()}


async def test_all_matching_tasks_change_after_a_confirmation_with_the_exact_number(
    valkey: Store, prefix: str
) -> None:
    async with searched(valkey, prefix) as (client, made):
        question, done = await confirmed(client, "args.customer:acme", "retry")
        assert (question, done) == ("Re-run 3 tasks?", "3 tasks re-queued.")
        assert await search(client, "state:pending args.customer:acme") == [
            "default/p1", "default/d1", "default/d3", "money/d9",
        ]  # fmt: skip
        question, done = await confirmed(client, "state:pending type:mail.*", "cancel")
        assert (question, done) == ("Cancel 3 tasks?", "3 tasks cancelled.")
        question, done = await confirmed(client, "state:dead", "delete")
        assert (question, done) == ("Delete 2 tasks?", "2 tasks deleted.")
        assert await search(client, "state:dead") == []
        question, done = await confirmed(client, "state:dead", "delete")
        assert (question, done) == ("", "No matching task is in a state that allows this change.")
        answer = await client.post(
            "/search/act", data={"q": "state:active", "verb": "retry", "scope": "all"}, headers=SAME
        )
        assert answer.status_code == 400

        form = {"q": "type:t", "verb": "retry", "id-ticked": "default/s1"}
        assert (await client.post("/search/act", data=form, headers=SAME)).status_code == 303
        task = await made.inspector.task("s1")
        assert task is not None
        assert task.row.state == "pending"
        form["verb"] = "delete"
        assert "Delete 1 task?" in (await client.post("/search/act", data=form, headers=SAME)).text
        await client.post("/search/act", data={**form, "sure": "yes"}, headers=SAME)
        assert await made.inspector.task("s1") is None
        none = await client.post("/search/act", data={"q": "x", "verb": "retry"}, headers=SAME)
        assert none.status_code == 303


async def test_completed_and_cancelled_tasks_are_deleted_separately(
    valkey: Store, prefix: str
) -> None:
    async with searched(valkey, prefix) as (client, made):
        await made.enqueue(*[Task("k", id=f"k{n}", retention=900) for n in range(2)], queue="kept")
        assert (await made.inspector.cancel("k0", queue="kept")).ok
        held = await made.lease(queue="kept")
        assert [one.id for one in held] == ["k1"]
        question, done = await confirmed(client, "state:cancelled type:k", "delete")
        assert (question, done) == ("Delete 1 task?", "1 task deleted.")
        assert await search(client, "queue:kept") == ["kept/k1"]


async def test_long_searches_and_changes_continue_from_page_to_page(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsync.web.search.SCAN_S", 0)
    monkeypatch.setattr("qsync.web.search_changes.BUDGET_S", 0)
    async with searched(valkey, prefix) as (client, made):
        await made.dead(*[Task("many", {"n": n}, id=f"m{n:04}") for n in range(1200)])
        path, seen, pages = "/search?q=args.n:7&limit=3", [], 0
        while path:
            text = (await client.get(path)).text
            seen += re.findall(r'data-key="task-([^"]*)"', text)
            following = re.search(r'href="([^"]*cursor=[^"]*)"', text)
            path, pages = html.unescape(following[1]) if following else "", pages + 1
        assert (seen, pages > 1) == (["default/m0007"], True)
        question, done = await confirmed(client, "type:many args.n:7", "retry")
        assert (question, done) == ("Counting the matching tasks", "1 task re-queued.")
        question, done = await confirmed(client, "state:dead type:many", "delete")
        assert done == "1,199 tasks deleted."
        info = await made.inspector.queue("default")
        assert info is not None
        assert info.states[TaskState.DEAD] == 6
