"""The dashboard in a real browser with running servers, used as in an incident."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from qsync import Task
from tests.support.browser import Visit, chromium
from tests.support.dashboard import Live, live, serving
from tests.support.stores import Cluster, Store, wait_until

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def system(valkey: Store, prefix: str) -> Iterator[Live]:
    with live(valkey.url, prefix) as made:
        yield made


@pytest.fixture
def visit(browser: Any, system: Live) -> Iterator[Callable[..., Visit]]:
    """Yield a function that opens a dashboard; at the end, check that no page had errors."""
    visits = []

    def make(*, context: dict[str, Any] | None = None, **options: Any) -> Visit:
        visits.append(Visit(browser, system.open(**options), **(context or {})))
        return visits[-1]

    yield make
    for one in visits:
        if one.page.url.startswith("http"):
            one.check()
        one.close()


def state_of(system: Live, id: str, queue: str = "default") -> str | None:
    found = system.inspect(lambda inspector: inspector.task(id, queue=queue))
    return None if found is None else found.row.state


def until(system: Live, id: str, state: str, queue: str = "default") -> None:
    wait_until(lambda: state_of(system, id, queue) == state, 20, message=f"{id} is not {state}")


def test_a_dead_task_is_found_by_its_error_read_and_run_again_in_five_clicks(
    system: Live, visit: Callable[..., Visit]
) -> None:
    system.serve()
    system.enqueue(*[Task("none", id=f"n{n}", delay=60) for n in range(3)])
    system.enqueue(Task("order", {"order": 4711}, id="the-one", retry=0, retention=60))
    until(system, "the-one", "dead")
    web = visit()
    web.go("/")
    web.click("Dead", "link")
    web.page.get_by_label("Error text").fill("4711 HAS NO address")
    web.click("Filter")
    web.click("order the-one", "link")
    trace = web.page.locator("pre.trace")
    assert trace.inner_text().count("\n") >= 200
    assert " at 204" in trace.inner_text()
    box = trace.evaluate("(node) => [node.clientHeight, node.scrollHeight]")
    assert box[0] < 600 < box[1], "a long error scrolls in its own block"
    system.fixed = True
    web.click("Run now")
    web.page.locator(".badge.completed").wait_for()
    assert web.clicks <= 5
    web.says("delivered")


def test_a_queue_is_paused_with_a_reason_and_resumed(
    system: Live, visit: Callable[..., Visit]
) -> None:
    system.serve()
    system.fixed = True
    system.enqueue(Task("order", id="first", retention=60))
    until(system, "first", "completed")
    web = visit()
    web.go("/queues")
    web.click("default", "link")
    web.page.get_by_label("Reason").fill("the bank is closed")
    web.click("Pause")
    web.says("Queue default is paused.")
    wait_until(lambda: system.inspect(lambda i: i.queue("default")).paused)  # type: ignore[union-attr]
    web.go("/")
    web.says("the bank is closed")
    web.go("/queue?queue=default")
    web.click("Resume")
    web.says("Queue default is resumed.")
    system.enqueue(Task("order", id="second", retention=60))
    until(system, "second", "completed")


def test_ticks_focus_scroll_and_open_details_survive_a_refresh(
    system: Live, visit: Callable[..., Visit]
) -> None:
    system.serve()
    system.enqueue(*[Task("order", id=f"d{n:02}", retry=0, retention=60) for n in range(40)])
    wait_until(lambda: system.inspect(lambda i: i.queue("default")).states["dead"] == 40, 20)  # type: ignore[union-attr]
    web = visit()
    web.go("/dead?queue=default&limit=30")
    rows = web.page.locator("tbody tr")
    names = rows.locator("th .id").all_inner_texts()
    ticked = [names[0], names[7], names[29]]
    for name in ticked:
        web.page.get_by_label(f"Task {name}").check()
    web.page.get_by_label("Error text").fill("half typed")
    web.page.evaluate("window.scrollTo(0, 300)")
    # A new task dies, a dead task is deleted, and a selected task moves off the page.
    system.enqueue(Task("order", id="newest", retry=0))
    until(system, "newest", "dead")
    system.inspect(lambda i: i.delete(names[3]))
    web.refresh()
    web.page.locator('[data-key="task-newest"]').wait_for()
    now = rows.locator("th .id").all_inner_texts()
    assert now[0] == "newest"
    assert names[3] not in now
    assert [name for name in now if web.page.get_by_label(f"Task {name}").is_checked()] == ticked
    assert web.page.get_by_label("Error text").input_value() == "half typed"
    assert web.page.evaluate("document.activeElement.name") == "error"
    assert web.page.evaluate("window.scrollY") == 300
    system.fixed = True
    web.click("Re-run selected (3)")
    web.says("3 tasks re-queued.")
    for name in ticked:
        until(system, name, "completed")
    web.click("Re-run all 37…")
    web.says("Re-run 37 dead tasks in queue default? The tasks get a fresh set of attempts.")
    web.click("Re-run 37 tasks")
    web.says("37 tasks re-queued.")
    wait_until(lambda: system.inspect(lambda i: i.queue("default")).states["dead"] == 0, 20)  # type: ignore[union-attr]


def test_one_click_selects_the_whole_page(system: Live, visit: Callable[..., Visit]) -> None:
    system.serve()
    system.enqueue(*[Task("order", id=f"d{n}", retry=0) for n in range(3)])
    for n in range(3):
        until(system, f"d{n}", "dead")
    web = visit()
    web.go("/dead?queue=default")
    every = web.page.get_by_label("Select all on this page")
    web.page.get_by_label("Task d1").check()
    assert every.evaluate("(box) => box.indeterminate")
    every.check()
    web.refresh()
    assert every.is_checked()
    web.click("Delete selected (3)…")
    web.says("Delete 3 dead tasks in queue default?")
    web.click("Delete 3 tasks")
    web.says("3 tasks deleted.")


def test_open_details_stay_open_and_a_hidden_page_sends_no_request(
    system: Live, visit: Callable[..., Visit]
) -> None:
    system.enqueue(Task("order", id="a"))
    web = visit()
    web.go("/")
    web.page.get_by_text("Last 30 days as a table").click()
    table = web.page.get_by_role("table", name="Counters by day, UTC")
    assert table.is_visible()
    system.enqueue(*[Task("order") for _ in range(4)])
    web.refresh()
    web.page.locator("a.tile.pending b", has_text="5").wait_for()
    assert table.is_visible()
    asked: list[str] = []
    web.page.on("request", lambda request: asked.append(request.url))
    hidden = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s})"
    web.page.evaluate(hidden % "true")
    web.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    web.page.wait_for_timeout(2500)  # a visible page would refresh in this time
    assert asked == []
    web.page.evaluate(hidden % "false")
    web.refresh()
    assert len(asked) == 1


def test_task_is_found_by_its_id_in_any_queue(system: Live, visit: Callable[..., Visit]) -> None:
    system.enqueue(Task("order", b'{"a": [1, 2]}', id="odd/id?&#%41", queue="elsewhere", delay=60))
    web = visit()
    web.go("/servers")
    web.page.get_by_label("Search tasks").fill("odd/id?&#%41")
    web.page.keyboard.press("Enter")
    web.says("Scheduled for")
    assert web.page.locator("#task-id").inner_text() == "odd/id?&#%41"
    web.click("Run now")
    web.says("No running server takes tasks from queue elsewhere")
    web.click("Cancel")
    web.says("The task is cancelled.")
    assert state_of(system, "odd/id?&#%41", "elsewhere") is None


def test_a_running_task_is_watched_and_cancelled(system: Live, visit: Callable[..., Visit]) -> None:
    system.serve()
    system.enqueue(Task("long", id="slow", retention=60))
    until(system, "slow", "active")
    web = visit()
    web.go("/servers")
    web.page.locator("tbody th a").first.click()
    web.click("long slow", "link")
    web.says("30%")
    web.says("Running since")
    web.click("Show stack")
    web.says("The server sent the stack of the handler.")
    assert "await asyncio.sleep(0.02)" in web.page.locator("pre.trace").inner_text()
    web.context.grant_permissions(["clipboard-read", "clipboard-write"])
    web.click("Copy id")
    web.page.get_by_role("button", name="Copied").wait_for()
    assert web.page.evaluate("navigator.clipboard.readText()") == "slow"
    web.click("Cancel")
    web.says("The server was told to stop the task.")
    web.says("Cancelled at")
    assert state_of(system, "slow") == "cancelled"


def test_a_schedule_is_triggered_and_paused(system: Live, visit: Callable[..., Visit]) -> None:
    ran = []

    @system.app.periodic(cron="0 0 1 1 *", name="yearly", retention=60)
    async def yearly() -> None:
        ran.append(1)

    system.serve()
    wait_until(lambda: system.inspect(lambda i: i.schedules()), 20)
    web = visit()
    web.go("/schedules")
    web.click("Run now")
    web.says("Schedule yearly was triggered. This is its task.")
    web.page.locator(".badge.completed").wait_for()
    assert ran == [1]
    web.go("/schedules")
    web.page.get_by_label("Reason to pause yearly").fill("no more")
    web.click("Pause")
    web.says(": no more")
    web.click("Resume")
    web.says("resumes with its next run")


def test_server_is_drained_and_stopped(system: Live, visit: Callable[..., Visit]) -> None:
    server = system.serve()
    web = visit()
    web.go("/servers")
    web.page.locator("tbody th a").first.click()
    web.click("Drain")
    web.says("The server was told to take no new tasks.")
    web.page.locator(".badge", has_text="draining").wait_for()
    web.click("Stop…")
    web.click("Stop server")
    web.says("The server was told to stop.")
    wait_until(lambda: server.condition().stopping, 20)


def test_signed_in_viewer_can_change_nothing(system: Live, visit: Callable[..., Visit]) -> None:
    system.serve()
    system.enqueue(Task("order", id="d", retry=0))
    until(system, "d", "dead")
    web = visit(token=TOKEN, read_only=True)
    web.go("/dead?queue=default")
    web.page.get_by_label("Token").fill("wrong")
    web.click("Sign in")
    web.says("Wrong token.")
    web.page.get_by_label("Token").fill(TOKEN)
    web.click("Sign in")
    web.says("Dead tasks in")
    assert web.page.url.endswith("/dead?queue=default"), (
        "the user returns to the page that was requested first"
    )
    web.click("order d", "link")
    web.says("Dead since")
    buttons = web.page.get_by_role("button").all_inner_texts()
    assert buttons == ["Search", "Copy id", "Русский", "Sign out"]
    assert web.page.evaluate("document.cookie") == "", "scripts cannot read it"
    web.click("Sign out")
    web.says("Enter the dashboard token.")


def test_dashboard_works_without_scripts(system: Live, visit: Callable[..., Visit]) -> None:
    system.serve()
    system.enqueue(*[Task("order", id=f"d{n}", retry=0, retention=60) for n in range(3)])
    for n in range(3):
        until(system, f"d{n}", "dead")
    web = visit(context={"java_script_enabled": False})
    web.go("/")
    web.click("Dead", "link")
    web.page.get_by_label("Task d1").check()
    system.fixed = True
    web.click("Re-run selected")
    web.says("1 task re-queued.")
    until(system, "d1", "completed")
    web.click("Delete all 2…")
    web.says("Delete 2 dead tasks in queue default?")
    web.click("Delete 2 tasks")
    web.says("2 tasks deleted.")
    web.click("Overview", "link")
    assert web.page.locator("svg[role=img]").count() == 6
    web.page.locator("a.tile.completed").click()
    web.click("order d1", "link")
    web.says("delivered")
    web.click("Русский")
    web.says("Хронология")
    web.says("delivered")
    web.click("Очереди", "link")
    wait_until(lambda: web.page.title() == f"Очереди · {system.prefix}")
    web.click("English")
    web.page.goto("about:blank")  # leave the page, because the fixture cannot check it


def test_search_goes_on_by_itself_and_changes_all_that_match(
    system: Live, visit: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsync.web.search.SCAN_S", 0)
    monkeypatch.setattr("qsync.web.search_changes.BUDGET_S", 0)
    many = [Task("note", {"n": n}, id=f"n{n}", delay=60, queue="notes") for n in range(3000)]
    system.enqueue(*many)
    web = visit()
    web.go("/")
    web.page.get_by_label("Search tasks").fill("queue:notes args.n:*999 state:scheduled")
    web.page.route("**/search?*cursor*", lambda route: None)  # the next part never arrives
    web.click("Search")
    web.click("Stop")
    web.page.get_by_role("link", name="Continue searching").wait_for()
    web.page.unroute("**/search?*cursor*")
    web.click("Search")
    web.says("Matches on this page: 3. Searched 3,000 of 3,000 tasks.")
    assert web.page.locator("tbody tr").count() == 3, "the matches of all parts are shown together"
    assert web.page.get_by_role("button", name="Stop").count() == 0
    web.click("Cancel all that match…")
    web.click("Cancel 3 tasks")
    web.says("3 tasks cancelled.")
    web.click("Remove args.n:*999", "link")
    web.says("Matches on this page: 50.")


def test_dashboard_works_with_the_keyboard(system: Live, visit: Callable[..., Visit]) -> None:
    system.enqueue(Task("order", id="a", delay=60), Task("order", id="b", delay=90))
    web = visit()
    web.go("/tasks?queue=default&state=scheduled")
    press = web.page.keyboard.press
    press("Tab")
    assert web.page.evaluate("document.activeElement.className") == "skip"
    press("Enter")
    assert web.page.evaluate("document.activeElement.id") == "main"
    for _ in range(20):
        press("Tab")
        if web.page.evaluate("document.activeElement.textContent") == "order a":
            break
    outline = web.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the current page is marked"
    press("Enter")
    web.says("Scheduled for")
    when = web.page.locator("time[data-local]").first
    assert when.get_attribute("title").endswith(" UTC")
    when.filter(has_not_text=" UTC").wait_for()  # until the script has written the local time
    web.go("/tasks?queue=default&state=scheduled")
    for key, focused in (("j", "order a"), ("j", "order b"), ("j", "order b"), ("k", "order a")):
        press(key)
        assert web.page.evaluate("document.activeElement.textContent") == focused
    press("x")
    assert web.page.get_by_label("Task a").is_checked()
    press("?")
    web.page.get_by_role("dialog", name="Keyboard").wait_for()
    press("j")
    press("Escape")
    assert web.page.get_by_role("dialog").count() == 0
    press("/")
    web.page.keyboard.type("j?x")
    assert web.page.get_by_label("Search tasks").input_value() == "j?x"
    web.go("/keys")
    web.says("Next and previous row")
    web.go("/task?id=a")
    unnamed = web.page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), select, button')]"
        ".filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent).length"
    )
    assert unnamed == 0
    web.go("/queue?queue=default&days=7")
    chart = web.page.get_by_role("slider", name="Completed per day")
    chart.focus()
    tip = chart.locator(".steps .on")
    for key in ("ArrowLeft", "ArrowLeft", "Home", "ArrowLeft", "ArrowRight", "End"):
        press(key)
        assert tip.inner_text() == chart.get_attribute("aria-valuetext")
    shown = chart.get_attribute("aria-valuetext")
    web.refresh()
    assert web.page.evaluate("document.activeElement.matches('.plot')"), "a refresh leaves it"
    assert (tip.inner_text(), chart.get_attribute("aria-valuenow")) == (shown, "6")
    press("Tab")
    assert web.page.locator(".steps .on").count() == 0


def test_cluster_is_shown_and_changed_in_the_browser(
    browser: Any, cluster: Cluster, prefix: str
) -> None:
    with live(cluster.url, prefix) as system:
        system.serve(queues={"default": 1, "other": 1})
        system.enqueue(Task("order", id="one", retry=0, retention=60))
        system.enqueue(Task("order", id="two", queue="other", retry=0, retention=60))
        until(system, "one", "dead")
        until(system, "two", "dead", "other")
        web = Visit(browser, system.open())
        web.go("/dead?queue=other")
        system.fixed = True
        web.page.get_by_label("Task two").check()
        web.click("Re-run selected (1)")
        until(system, "two", "completed", "other")
        web.go("/find?id=one")
        web.click("Run now")
        web.page.locator(".badge.completed").wait_for()
        web.check()
        web.close()


EVIL = """<!doctype html><meta charset=utf-8><iframe name=sink></iframe>
<script>
const target = "TARGET";
const bodies = {
  "/queue/pause": "queue=default&why=evil", "/task/delete": "id=a&queue=default&sure=yes",
};
window.tried = 0;
function form(path, body, enctype) {
  const made = document.createElement("form");
  Object.assign(made, {method: "post", action: target + path, enctype, target: "sink"});
  for (const [name, value] of new URLSearchParams(body)) {
    made.append(Object.assign(document.createElement("input"), {name, value}));
  }
  document.body.append(made);
  made.submit();
}
const urlencoded = "application/x-www-form-urlencoded";
const post = {method: "POST", headers: {"Content-Type": urlencoded}, credentials: "include"};
function frame(url) {
  document.body.append(Object.assign(document.createElement("iframe"), {src: url}));
}
const tries = [
  (to, body) => form(to, body, urlencoded),
  (to, body) => form(to, body, "text/plain"),
  (to, body) => form(to, body, "multipart/form-data"),
  (to, body) => fetch(target + to, {...post, body, mode: "no-cors"}),
  (to, body) => fetch(target + to, {...post, body}),
  (to, body) => fetch(target + to, {...post, body, method: "DELETE"}),
  (to, body) => navigator.sendBeacon(target + to, new URLSearchParams(body)),
  (to, body) => { new Image().src = target + to + "?" + body; },
  (to, body) => frame(target + to + "?" + body),
  (to, body) => fetch(target + to + "?" + body, {...post, referrerPolicy: "no-referrer"}),
];
(async () => {
  for (const [path, body] of Object.entries(bodies)) {
    for (const attempt of tries) {
      try { await attempt(path, body); } catch {}
      window.tried += 1;
      await new Promise((done) => setTimeout(done, 60));
    }
  }
  window.ended = true;
})();
</script>"""  # fmt: skip


def test_other_site_cannot_use_signed_in_browser(system: Live, browser: Any) -> None:
    """Twenty attacks fail: none of them changes data, shows the dashboard in a frame, or reads
    it."""
    system.enqueue(Task("order", id="a"))
    for options in ({"auth": "host"}, {"token": TOKEN}):
        web = Visit(browser, system.open(**options))
        web.go("/")
        if "token" in options:
            web.page.get_by_label("Token").fill(TOKEN)
            web.click("Sign in")
            web.says("Last 1 minute")

        async def evil(request: Any, url: str = web.url) -> HTMLResponse:
            return HTMLResponse(EVIL.replace("TARGET", url))

        app = Starlette(routes=[Route("/", evil)])
        place = system.do(system.enter(serving(app))).replace("localhost", "127.0.0.1")
        web.page.goto(place)
        web.page.wait_for_function("() => window.ended === true")
        assert web.page.evaluate("window.tried") == 20
        readable = web.page.evaluate(
            f"fetch('{web.url}/', {{credentials: 'include'}}).then(() => true, () => false)"
        )
        assert not readable
        frames = [frame for frame in web.page.frames if "Overview" in frame.content()]
        assert frames == []
        info = system.inspect(lambda inspector: inspector.queue("default"))
        assert info is not None
        assert (info.paused, info.states["pending"]) == (None, 1)
        web.close()
