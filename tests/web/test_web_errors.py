"""The error pages help operators to find, understand and resolve an outage. Each page reads a
bounded number of tasks, and pages share one scan."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from qsync import Task
from qsync.fingerprint import fingerprint_of
from qsync.web import create_app
from qsync.web.error_scan import ErrorScanner
from tests.support.browser import Visit, chromium
from tests.support.dashboard import SAME, TRACE, Live, live, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store, wait_until, wait_until_async

GROUP = fingerprint_of("mail", TRACE).id


@pytest.fixture
async def failed(valkey: Store, prefix: str) -> AsyncIterator[Bed]:
    """Yield a Bed with dead tasks that have two different errors, in two queues."""
    async with bed(valkey.url, prefix) as made:
        await made.dead(*[Task("mail", fairness_key="acme")] * 3, error=TRACE, queue="slow")
        await made.dead(*[Task("mail")] * 2, error=TRACE)
        await made.dead(Task("<b>bill</b>"), error="ValueError: <script>alert(1)</script>")
        yield made


async def page(made: Bed, path: str, **options: Any) -> httpx.Response:
    async with create_app(made.inspector, auth="host", **options) as app, visiting(app) as client:
        return await client.get(path)


async def test_errors_are_listed_with_their_counts(failed: Bed) -> None:
    text = (await page(failed, "/errors")).text
    assert text.index(f"/error?id={GROUP}") < text.index("&lt;script&gt;")
    assert "<script>alert" not in text
    assert "updates by itself" not in text


async def test_one_error_has_its_trace_keys_and_queues(failed: Bed) -> None:
    answer = await page(failed, f"/error?id={GROUP}")
    for part in ("5 tasks", "acme", "/dead?queue=slow", "/dead?queue=default", 'class="trace"'):
        assert part in answer.text, part
    assert "Re-run dead tasks" not in answer.text  # read-only
    writable = await page(failed, f"/error?id={GROUP}", read_only=False)
    assert "Re-run dead tasks" in writable.text
    gone = await page(failed, "/error?id=00000000")
    assert gone.status_code == 404
    assert "No failed task has this error any more." in gone.text


async def test_list_of_dead_tasks_can_be_filtered_by_error_group(failed: Bed) -> None:
    text = (await page(failed, f"/dead?queue=slow&group={GROUP}")).text
    assert "3 matches" in text
    assert f'name="group" value="{GROUP}"' in text
    assert "No dead task" in (await page(failed, "/dead?queue=slow&group=zzz")).text


async def test_change_is_visible_at_once(failed: Bed) -> None:
    async with (
        create_app(failed.inspector, auth="host", read_only=False) as app,
        visiting(app) as client,
    ):
        assert GROUP in (await client.get("/errors")).text
        for queue in ("slow", "default"):
            form = {"queue": queue, "group": GROUP, "scope": "all", "sure": "yes"}
            assert (await client.post("/dead/delete", data=form, headers=SAME)).status_code == 303
        assert GROUP not in (await client.get("/errors")).text
    queues = (await failed.inspector.overview()).queues
    assert {info.name: info.states["dead"] for info in queues} == {
        "slow": 0, "default": 1,
    }  # fmt: skip


async def test_pages_share_one_scan(failed: Bed) -> None:
    scanner = ErrorScanner(failed.inspector)
    scans = await asyncio.gather(*[scanner.read() for _ in range(20)])
    assert {scan.finished for scan in scans} == {True}
    assert len({id(scan.groups) for scan in scans}) == 1
    assert (scans[0].scanned, len(scans[0].groups)) == (6, 2)
    again = await scanner.read()
    assert again.groups is scans[0].groups  # fresh enough
    scanner.forget()
    later = await scanner.read()
    assert later.groups is not scans[0].groups
    assert (later.growth_s > 0, set(later.growth.values())) == (True, {0})
    await failed.dead(*[Task("mail")] * 2, error=TRACE)
    scanner.forget()
    grown = (await scanner.read()).growth
    assert grown.pop(GROUP) == 2
    assert set(grown.values()) == {0}
    await scanner.stop()


async def test_errors_show_how_they_grow_and_are_exported(failed: Bed) -> None:
    async with create_app(failed.inspector, auth="host") as app, visiting(app) as client:
        assert "Change in" not in (await client.get("/errors")).text
        await failed.dead(*[Task("mail")] * 3, error=TRACE)
        app.site.error_scanner.forget()
        text = (await client.get("/errors")).text
        assert re.search(r'data-label="Change in .*?">\+3</td>', text)
        assert text.count('data-label="Change in') == 2
        text = (await client.get(f"/error?id={GROUP}")).text
        assert re.search(r"<dt>Change in .*?</dt><dd>\+3</dd>", text)
        [address, _jsonl] = re.findall(r'<a download href="(.*?)">', text)
        rows = (await client.get(html.unescape(address))).text.splitlines()
        assert len(rows) == 1 + 8


async def test_long_scan_shows_progress(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        for _ in range(40):
            await made.dead(*[Task("mail")] * 250, error=TRACE)
        scanner = ErrorScanner(made.inspector)
        began = time.monotonic()
        first = await scanner.read()
        assert time.monotonic() - began < 1.5
        assert first.total in (0, 10_000)  # 0 until the store has answered

        async def finished() -> bool:
            return (await scanner.read()).finished

        await wait_until_async(finished, 60)
        scan = await scanner.read()
        assert (scan.groups[0].count, scan.scanned, scan.total) == (10_000, 10_000, 10_000)
        await scanner.stop()


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def system(valkey: Store, prefix: str) -> Iterator[Live]:
    with live(valkey.url, prefix) as made:
        yield made


def test_outage_is_resolved_in_four_clicks(browser: Any, system: Live) -> None:
    system.serve()
    system.enqueue(*[Task("order", {"order": n}, retry=0) for n in range(300)])

    def dead() -> int:
        info = system.inspect(lambda inspector: inspector.queue("default"))
        return 0 if info is None else info.states["dead"]

    wait_until(lambda: dead() == 300, 30)
    system.fixed = True
    web = Visit(browser, system.open())
    web.go("/")
    web.click("Errors", "link")
    web.page.locator("tbody th a").click()
    web.clicks += 1
    web.says("300 tasks")
    assert web.page.locator("pre.trace").inner_text().count("\n") > 5
    web.click("Re-run dead tasks…")
    web.says("Re-run 300 dead tasks in queue default with error")
    web.click("Re-run 300 tasks")
    web.says("300 tasks re-queued.")
    assert web.clicks == 4
    wait_until(lambda: dead() == 0, 30)
    web.go("/errors")
    web.says("No task has failed.")
    web.check()
    web.close()
