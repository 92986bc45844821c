"""axe-core finds no problem on any page, light in English and dark in Russian, on phones and on a
wide screen; no element is wider than the window."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from qsync import Task
from qsync.web.app import VIEWS
from tests.support.browser import Visit, chromium
from tests.support.dashboard import Live, live
from tests.support.stores import Store, wait_until

WITHOUT_PAGE = {"/metrics", "/health", "/search/export", "/more"}
"""Addresses that are not pages, and a page that only a form opens."""

WIDTHS = (320, 400, 1440)

RUN = """() => axe.run(document, {resultTypes: ["violations"]}).then((found) =>
  found.violations.map((one) => one.id + ": " + one.nodes.map((node) => node.html).join(" "))
)"""

WIDER = """() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
  [...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth)
    .map((one) => "wider than the window: " + one.outerHTML.slice(0, 200)).slice(-3)"""

HIDDEN = "Object.defineProperty(document, 'hidden', {get: () => true});"
"""Script that makes the page hidden. A hidden page does not refresh, so it does not change during
the test."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def system(valkey: Store, prefix: str) -> Iterator[Live]:
    with live(valkey.url, prefix) as made:
        yield made


def filled(system: Live) -> list[str]:
    """Fill the pages with long strings; return the addresses of the pages."""
    system.serve()
    long = "x" * 128
    system.enqueue(
        Task(long + long, {"k" * 300: "v" * 300}, id=long, delay=60, headers={"h" * 200: "w"}),
        Task("order", id="d", retry=0), Task("long", id="a"), Task("none", id="unknown"),
        Task("order", id=long, queue="q" * 128),
        *[Task("order", queue="flood", fairness_key=key) for key in ["k" * 128] * 100 + ["b"]],
    )  # fmt: skip
    wait_until(lambda: system.inspect(lambda i: i.find("d"))[0].state == "dead", 20)
    wait_until(lambda: system.inspect(lambda i: i.find("a"))[0].state == "active", 20)
    wait_until(lambda: system.inspect(lambda i: i.unknown_types()), 20)
    system.inspect(lambda i: i.pause_type("order", by="b" * 200, why="w" * 300))
    system.inspect(lambda i: i.pause("default", by="b" * 200, why="w" * 300))
    system.inspect(lambda i: i.put_schedule("nightly", Task("order"), cron="0 3 * * *"))
    system.inspect(lambda i: i.set_weight("flood", "acme", 2.5))
    system.inspect(lambda i: i.pause_type("long", queue="default", by="b", why="w" * 300))
    server = system.inspect(lambda i: i.servers())[0].id
    error = system.inspect(lambda i: i.errors("default", "dead")).groups[0].id
    return [
        "/", "/queues", "/queue?queue=default", "/queue?queue=flood", f"/queue?queue={'q' * 128}",
        "/tasks?queue=default&state=scheduled&type=none", "/tasks?queue=default&state=active",
        f"/tasks?queue=default&state=scheduled&type={long}{long}", "/dead?queue=default",
        "/task?id=d", f"/task?id={long}", "/task?id=a", f"/edit?id={long}", "/servers",
        f"/server?id={server}", "/schedules", "/schedule",
        "/schedule/runs?name=nightly&queue=default", "/types", "/type?type=long&queue=default",
        "/limits", "/errors", "/events",
        f"/error?id={error}", f"/find?id={long}", f"/find?id={long[1:]}", "/search?q=age:1",
        f"/search?q=state:dead+type:{long}", f"/search?q=type:x*+{long}", "/keys", "/nowhere",
        "/types?queue=default", f"/types?queue={'q' * 128}&period=7d&sort=failed",
        "/type?queue=default&type=order", f"/type?queue=default&period=90d&type={long}{long}",
    ]  # fmt: skip


def look(web: Visit, where: str, number: int) -> list[Any]:
    """Return the problems of the open page, at all widths; one width, chosen by `number`, is also
    checked by axe: light in English, dark in Russian."""
    web.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    wrong: list[Any] = []
    scheme = "dark" if web.page.evaluate("document.documentElement.lang") == "ru" else "light"
    for width in WIDTHS:
        web.page.set_viewport_size({"width": width, "height": 900})
        wrong += [(where, width, one) for one in web.page.evaluate(WIDER)]
        if width == WIDTHS[number % 3]:
            web.page.emulate_media(color_scheme=scheme)
            wrong += [(where, scheme, width, one) for one in web.page.evaluate(RUN)]
    return wrong


@pytest.mark.parametrize("language", ["en", "ru"])
def test_all_pages_are_accessible_and_fit(browser: Any, system: Live, language: str) -> None:
    addresses = filled(system)
    missing = {*VIEWS} - WITHOUT_PAGE - {address.partition("?")[0] for address in addresses}
    assert not missing, "no test opens this page: add its address to `filled`"
    web = Visit(browser, system.open(), locale=language, reduced_motion="reduce")
    web.context.add_init_script(HIDDEN)
    wrong = []
    for number, address in enumerate(addresses, 2 * (language == "ru")):
        web.go(address)
        assert web.page.evaluate("document.documentElement.lang") == language
        wrong += look(web, address, number)
    web.go("/queue?queue=default")
    web.page.locator("button.danger").first.click()
    web.page.wait_for_url("**/queue/purge")
    wrong += look(web, "a question", 0)
    web.go("/servers")
    signing = Visit(
        browser,
        system.open(token="a-token-of-24-characters"),
        locale=language,
        reduced_motion="reduce",
    )
    signing.go("/")
    wrong += look(signing, "sign in", 1)
    signing.close()
    web.check()
    web.close()
    assert not wrong, "\n".join(map(str, wrong))
