"""An operator finds each incident on the overview and resolves it with at most four clicks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.state import TaskState
from tests.support.browser import Visit, chromium
from tests.support.dashboard import Live, live
from tests.support.incidents import missed_cron, outage, poison
from tests.support.stores import Store, wait_until

MOST_CLICKS = 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten intervals that take minutes to at most a second."""
    monkeypatch.setattr("qsync.web.forecast.MIN_WINDOW_S", 0.5)
    monkeypatch.setattr("qsync.inspector.servers.LONG_RUN_S", 1)


@pytest.fixture
def system(valkey: Store, prefix: str, quick: None) -> Iterator[Live]:
    with live(valkey.url, prefix) as made:
        yield made


@pytest.fixture
def web(browser: Any, system: Live) -> Iterator[Visit]:
    """Yield a dashboard that is opened before the incident."""
    visit = Visit(browser, system.open())
    visit.go("/")
    yield visit
    visit.check()
    visit.close()


def number(system: Live, queue: str, state: TaskState) -> int:
    info = system.inspect(lambda inspector: inspector.queue(queue))
    return info.states[state] if info else 0


def opened(web: Visit, problem: str, link: str = "Open") -> None:
    """Wait until the overview shows the problem, and follow its link."""
    sentence = web.page.locator("main .flash", has_text=problem)
    sentence.wait_for()
    sentence.get_by_role("link", name=link, exact=True).click()
    web.clicks += 1


def mended(web: Visit) -> None:
    assert web.clicks <= MOST_CLICKS


def test_an_outage_of_an_api(system: Live, web: Visit) -> None:
    system.do(outage(system.url, system.prefix, queue="payments", type="order", count=5000))
    system.fixed = True
    opened(web, "payments: 5,000 tasks died")
    web.page.locator("tbody th a").click()
    web.clicks += 1
    web.says("5,000 tasks")
    assert "ConnectionError" in web.page.locator("pre.trace").inner_text()
    web.click("Re-run dead tasks…")
    web.says("Re-run 5,000 dead tasks in queue payments")
    web.click("Re-run 5,000 tasks")
    web.says("5,000 tasks re-queued.")
    assert number(system, "payments", TaskState.DEAD) == 0
    mended(web)


def test_a_growing_queue(system: Live, web: Visit) -> None:
    system.serve(queues={"images": 1}, concurrency=1)
    system.enqueue(*[Task("long", queue="images") for _ in range(200)])
    wait_until(lambda: number(system, "images", TaskState.ACTIVE), 20)
    sentence = web.page.get_by_text("the backlog grows by")
    for _ in range(30):
        system.enqueue(*[Task("long", queue="images") for _ in range(50)])
        web.refresh()
        if sentence.count():
            break
    opened(web, "images: the backlog grows by")
    web.says("1 server takes its tasks: 1 of 1 slot is busy.")
    web.says("Start more servers")
    system.gate.set()
    system.serve(queues={"images": 1}, concurrency=100)
    web.page.locator(".tile.pending b", has_text=re.compile("^0$")).wait_for()
    mended(web)


def test_a_poison_task_that_kills_processes(system: Live, web: Visit) -> None:
    killed = poison(system.url, system.prefix, Task("thumbnail", id="poison"), queue="images")
    system.do(killed)
    system.serve(queues={"images": 1})
    opened(web, "images: servers died 3 times")
    web.page.locator("tbody th a").click()
    web.clicks += 1
    web.page.get_by_role("link", name="poison").wait_for()
    web.click("Delete dead tasks…")
    web.click("Delete 1 task")
    web.says("1 task deleted.")
    assert number(system, "images", TaskState.DEAD) == 0
    mended(web)


def test_a_flooding_tenant(system: Live, web: Visit) -> None:
    system.serve(queues={"mail": 1}, concurrency=1)
    system.enqueue(Task("long", queue="mail"))
    wait_until(lambda: number(system, "mail", TaskState.ACTIVE), 20)
    system.enqueue(
        *[Task("order", queue="mail", fairness_key="acme") for _ in range(900)],
        *[Task("order", queue="mail", fairness_key=f"other-{n % 30}") for n in range(100)],
    )
    opened(web, "pending tasks have the fairness key acme.")
    web.says("Most of the backlog has the key acme.")
    web.click("acme", "link")
    web.click("Cancel all that match…")
    web.click("Cancel 900 tasks")
    web.says("900 tasks cancelled.")
    assert number(system, "mail", TaskState.PENDING) == 100
    mended(web)


def test_a_cron_that_did_not_run(system: Live, web: Visit) -> None:
    report = Task("order", queue="mail", retention=60)
    system.fixed = True
    system.do(missed_cron(system.url, system.prefix, "nightly", report))
    system.serve(queues={"mail": 1})
    opened(web, "Schedule nightly missed its run")
    web.says("missed")
    web.click("Run now")
    web.page.locator(".badge.completed").first.wait_for()
    mended(web)


def test_tasks_of_an_unknown_type_after_a_deploy(system: Live, web: Visit) -> None:
    older = system.serve(queues={"mail": 1})
    system.enqueue(*[Task("invoice.v2", queue="mail", retention=60) for _ in range(300)])
    web.says("has a handler for invoice.v2 (300)")
    opened(web, "No running server of queue mail has a handler for", "invoice.v2")
    web.says("No running server has a handler for invoice.v2. Deploy a server that has one")
    mux = Mux()

    @mux.handle("invoice.v2")
    async def invoice(task: TaskInfo) -> None:
        pass

    system.do(older.stop())
    newer = Qsync(system.url, prefix=system.prefix, mux=mux)
    system.do(system.enter(newer.server(queues={"mail": 1}, lease=5, shutdown_timeout=1)))
    web.click("Run all matching now…")
    web.click("Run 300 tasks now")
    wait_until(lambda: number(system, "mail", TaskState.COMPLETED) == 300, 20)
    mended(web)


def test_a_stuck_task(system: Live, web: Visit) -> None:
    system.serve(queues={"mail": 1}, lease=2)
    system.enqueue(Task("long", id="stuck", queue="mail", retention=60))
    opened(web, "task stuck has been running for")
    web.says("Running for")
    web.click("Cancel")
    web.says("Cancelled at")
    mended(web)


def test_one_type_is_paused(system: Live, web: Visit) -> None:
    server = system.serve(queues={"mail": 1}, concurrency=1)
    system.enqueue(*[Task("long", queue="mail", fairness_key="a") for _ in range(3)])
    wait_until(lambda: number(system, "mail", TaskState.ACTIVE), 20)
    web.page.locator("tbody th").get_by_role("link", name="mail").click()
    web.page.locator("tbody th").get_by_role("link", name="long").first.click()
    web.clicks += 2
    web.page.get_by_label("Reason").fill("the provider is down")
    web.click("Pause…")
    web.click("Pause type")
    web.says("Type long is paused.")
    system.gate.set()
    system.fixed = True
    system.enqueue(Task("order", id="other", queue="mail", retention=60))
    wait_until(lambda: number(system, "mail", TaskState.COMPLETED) == 1, 20)
    assert number(system, "mail", TaskState.LIMITED) == 2
    mended(web)
    web.go("/")
    web.says("of queue mail is paused")
    web.says("the provider is down. 2 tasks are set aside.")
    assert server.condition().stopping is False
