"""The content and the forms of the limits page, as a browser without scripts would use them."""

from __future__ import annotations

import html
import re

import pytest

from qsync import Task
from qsync.broker import limit_ops
from qsync.limit import LimitRule
from qsync.web import create_app
from tests.support.dashboard import visiting
from tests.support.inspector_driver import bed
from tests.support.stores import Store
from tests.web.test_web_actions import Visitor, said, visitor


async def fill(web: Visitor) -> None:
    """Give a limit one slot in use and two waiting tasks."""
    rules = {"customer": LimitRule(concurrency=1)}
    await web.bed.broker.run(limit_ops.put_limit_rules(web.bed.keys(), rules))
    await web.bed.enqueue(*[Task("t", id=id, limits=["customer:42"]) for id in ("a", "b", "c")])


async def page(web: Visitor, path: str, **query: str) -> str:
    answer = await web.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.text)))


async def test_page_shows_limits_and_waiting_tasks(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        assert "No limits in this queue" in await page(web, "/limits", queue="default")
        await fill(web)
        text = await page(web, "/limits", queue="default")
        assert "customer:42 1 of 1 2" in text
        assert "1 at a time" in text
        text = await page(web, "/limits", queue="default", limit="customer:42")
        assert "1 of 1: 0 running, 1 ready" in text
        text = await page(web, "/task", queue="default", id="c")
        assert "Limited by customer:42: 1 of 1 slot taken by a pending task (a)" in text
        assert "Limits customer:42" in text
        text = await page(web, "/tasks", queue="default", state="limited")
        assert "Limited 2" in text
        assert "Limited 2" in await page(web, "/queue", queue="default")
        assert "Limited 2" in await page(web, "/")


async def test_rule_is_set_and_reset_without_a_script(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await fill(web)
        text = await web.send(
            "/limit/set", queue="default", limit="customer:42", concurrency="3", rate="", per="",
            burst="",
        )  # fmt: skip
        assert said(text) == "customer:42: 3 at a time."
        assert "set by dashboard" in text
        info = await web.bed.inspector.limit("customer:42")
        assert info.rule == LimitRule(concurrency=3)
        text = await web.press(text, "Reset")
        assert said(text) == "The program's rule applies again to customer:42."
        assert (await web.bed.inspector.limit("customer:42")).source == "program"


async def test_closed_limit_is_opened(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await fill(web)
        [held] = await web.bed.lease(free=1)
        await web.bed.hand_back(held, limit="customer:42", closed_us=3_600_000_000)
        text = await page(web, "/limits", queue="default")
        assert "customer:42 0 of 1 3 closed" in text
        assert "Open now" in text
        query = {"queue": "default", "limit": "customer:42"}
        shown = (await web.client.get("/limits", params=query)).text
        assert shown.count("/limit/open") == 2, "one button beside the limit and one in the list"
        text = await web.press(shown, "Open now")
        assert said(text) == "customer:42 is open."
        assert "Limit opened" in text
        assert "Open now" not in text
        again = await web.send("/limit/open", queue="default", limit="customer:42")
        assert said(again) == "customer:42 was not closed."
        assert (await web.bed.inspector.limit("customer:42")).closed_until is None


async def test_task_that_is_run_but_must_wait_for_its_limit_is_said_to_wait(
    store: Store, prefix: str
) -> None:
    async with visitor(store, prefix) as web:
        await fill(web)
        await web.bed.enqueue(Task("t", id="later", limits=["customer:42"], delay=3600))
        text = await web.send("/task/run", queue="default", id="later", state="scheduled")
        assert said(text) == "The task waits for its limits, or for the end of a pause of its type."


async def test_waiting_tasks_are_cancelled_together(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await fill(web)
        fields = {"queue": "default", "state": "limited", "id-ticked": "b", "sure": "yes"}
        assert said(await web.send("/tasks/cancel", **fields)) == "1 task cancelled."
        fields = {"q": "state:limited", "verb": "cancel", "scope": "all", "sure": "yes"}
        assert said(await web.send("/search/act", **fields)) == "1 task cancelled."
        assert (await web.bed.inspector.limit("customer:42")).waiting == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": "customer:42"}, "pass rate= and per=, or concurrency=, or all three"),
        ({"limit": "customer:42", "concurrency": "0"}, "concurrency: 0 is not a whole number"),
        ({"limit": "customer:42", "concurrency": "x"}, "concurrency: 'x' is not a whole number"),
        ({"limit": "customer:42", "rate": "5", "per": "soon"}, "per: 'soon' is not a number"),
        ({"limit": "a b", "concurrency": "1"}, "the name in 'a b' must be"),
    ],
)
async def test_error_in_the_form_is_shown(
    store: Store, prefix: str, fields: dict[str, str], message: str
) -> None:
    async with visitor(store, prefix) as web:
        await fill(web)
        text = await web.send("/limit/set", queue="default", **fields)
        assert message in said(text)


async def test_read_only_dashboard_changes_no_rule(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        app = create_app(made.inspector, auth="host")
        async with app, visiting(app) as client:
            await made.enqueue(Task("t", limits=["x"]))
            text = (await client.get("/limits", params={"queue": "default"})).text
            assert "/limit/set" not in text
            fields = {"queue": "default", "limit": "x", "concurrency": "1"}
            answer = await client.post("/limit/set", data=fields)
            assert answer.status_code == 403
