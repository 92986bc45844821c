"""Each action of the dashboard, through its forms, with running servers on one node and on a
cluster."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.cluster import RedisCluster

from qsync import Task
from qsync.inspector import QueueInfo
from qsync.keys import QueueKeys
from qsync.web.app import ACTIONS
from tests.support.cli import KINDS
from tests.support.dashboard import SAME, Live, live
from tests.support.stores import wait_until


@pytest.fixture(params=KINDS)
def system(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with live(request.getfixturevalue(request.param).url, prefix) as made:
        yield made


class Visitor:
    """A browser without scripts that opens pages, fills in their forms and presses their
    buttons."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.text = ""
        self.used: set[str] = set()

    def open(self, path: str) -> None:
        answer = self._client.get(path)
        assert answer.status_code == 200, answer.text
        self.text = answer.text

    def press(
        self, label: str, *, among: str = "", ticked: tuple[str, ...] = (), **typed: str
    ) -> str:
        """Press a button in a form that contains the text `among`; return the message on the next
        page."""
        button = rf"<button([^>]*)>{re.escape(label)}</button>"
        for form in re.findall(r"<form.*?</form>", self.text, re.S):
            if (found := re.search(button, form)) and among in form:
                break
        else:
            raise AssertionError(f"no button {label} in {self.text}")
        pressed = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
        sent: dict[str, list[str]] = {}
        for name, value in re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form):
            sent.setdefault(name, []).append(html.unescape(value))
        assert typed.keys() <= {*re.findall(r'<(?:input|select)[^>]* ?name="([^"]*)"', form)}
        sent |= {name: [value] for name, value in typed.items()}
        if "name" in pressed:
            sent[pressed["name"]] = [pressed["value"]]
        if ticked:
            assert all(f'name="id-ticked" value="{id}"' in form for id in ticked)
            sent["id-ticked"] = [*ticked]
        action = pressed.get("formaction") or re.findall(r'action="([^"]*)"', form)[0]
        self.used.add(html.unescape(action).partition("?")[0])
        answer = self._client.post(html.unescape(action), data=sent, headers=self._same())
        assert answer.status_code in (200, 404), answer.text
        self.text = answer.text
        said = re.search(r'<p class="flash [a-z]+" role="status">(.*?)</p>', self.text)
        return html.unescape(said[1]) if said else ""

    def _same(self) -> dict[str, str]:
        return {**SAME, "Origin": str(self._client.base_url).rstrip("/")}


@contextlib.contextmanager
def visiting(system: Live) -> Iterator[Visitor]:
    with httpx.Client(base_url=system.open(), follow_redirects=True, timeout=30) as client:
        yield Visitor(client)


def raw(system: Live) -> Any:
    """Return a client of the store."""
    kind = RedisCluster if "cluster" in system.url else Redis
    return kind.from_url(system.url.replace("redis+cluster", "redis").partition(",")[0])


def queue(system: Live, name: str = "default") -> QueueInfo:
    found = system.inspect(lambda inspector: inspector.queue(name))
    assert found is not None
    return found


def states(system: Live, *ids: str) -> list[str | None]:
    found = [system.inspect(lambda i, id=id: i.find(id)) for id in ids]  # type: ignore[misc]
    return [str(rows[0].state) if rows else None for rows in found]


def until(system: Live, *wanted: str | None, ids: tuple[str, ...]) -> None:
    wait_until(lambda: states(system, *ids) == [*wanted], 30, message=f"{ids} are not {wanted}")


def waiting(letter: str) -> tuple[str, ...]:
    return tuple(f"{letter}{n}" for n in range(3))


def test_every_action_works_beside_running_servers(system: Live) -> None:
    async def yearly() -> None: ...

    system.app.periodic(cron="0 0 1 1 *", name="yearly", queue="other", retention=60)(yearly)
    server = system.serve(queues={"default": 1, "other": 1})
    ids = tuple(f"d{n}" for n in range(7))
    system.enqueue(*(Task("order", id=id, queue="other", retry=0, retention=60) for id in ids))
    system.enqueue(Task("long", id="runs", retention=60), Task("order", id="later", delay=600))
    until(system, *["dead"] * 7, ids=ids)
    until(system, "active", ids=("runs",))
    system.fixed = True
    with visiting(system) as web:
        # A queue.
        web.open("/queue?queue=default")
        assert web.press("Pause", why="rest") == "Queue default is paused."
        system.enqueue(*[Task("order") for _ in range(4)])
        assert queue(system).states["pending"] == 4
        web.press("Purge…", state="pending")
        assert queue(system).states["pending"] == 4
        assert web.press("Delete 4 tasks") == "4 tasks deleted."
        web.open("/queue?queue=default")
        assert web.press("Resume") == "Queue default is resumed."
        assert queue(system).paused is None

        # Running, waiting and dead tasks.
        web.open("/task?id=runs&queue=default")
        assert web.press("Cancel") == "The server was told to stop the task."
        until(system, "cancelled", ids=("runs",))
        web.open("/task?id=later&queue=default")
        assert web.press("Cancel") == "The task is cancelled."
        until(system, None, ids=("later",))
        web.open("/task?id=d0&queue=other")
        web.press("Run now")
        until(system, "completed", ids=("d0",))
        web.open("/task?id=d0&queue=other")
        web.press("Delete…")
        assert web.press("Delete task") == "Task d0 is deleted."
        until(system, None, ids=("d0",))

        # Selected dead tasks, then all dead tasks.
        web.open("/dead?queue=other")
        assert web.press("Re-run selected", ticked=("d1", "d2")) == "2 tasks re-queued."
        until(system, "completed", "completed", "dead", ids=("d1", "d2", "d3"))
        web.open("/dead?queue=other")
        web.press("Delete selected…", ticked=("d3",))
        assert web.press("Delete 1 task") == "1 task deleted."
        system.fixed = False
        web.open("/dead?queue=other")
        web.press("Re-run all 3…")
        assert web.press("Re-run 3 tasks") == "3 tasks re-queued."
        until(system, "dead", "dead", "dead", ids=ids[4:])
        web.open("/dead?queue=other")
        web.press("Delete all 3…")
        assert web.press("Delete 3 tasks") == "3 tasks deleted."
        assert queue(system, "other").states["dead"] == 0

        # Selected waiting, running or completed tasks, then all waiting tasks.
        slow = {"retry": 1, "retry_delay": 600}
        system.enqueue(*(Task("order", id=f"r{n}", retention=60, **slow) for n in range(3)))
        system.enqueue(*(Task("order", id=f"s{n}", retention=60, delay=600) for n in range(3)))
        until(system, *["retry"] * 3, *["scheduled"] * 3, ids=(*waiting("r"), *waiting("s")))
        system.fixed = True
        web.open("/tasks?queue=default&state=retry")
        assert web.press("Run selected now", ticked=("r1",)) == "1 task pending now."
        until(system, "retry", "completed", "retry", ids=waiting("r"))
        web.open("/tasks?queue=default&state=retry")
        web.press("Run all 2 now…")
        assert "Run 2 retry tasks in queue default now?" in web.text
        assert web.press("Run 2 tasks now") == "2 tasks pending now."
        until(system, *["completed"] * 3, ids=waiting("r"))
        web.open("/task?queue=default&id=s0")
        assert "The task is due at " in web.press("Reschedule", delay="500")
        web.open("/tasks?queue=default&state=scheduled&id=s1")
        web.press("Run all matching now…")
        assert "2 other scheduled tasks keep their due times." in web.text
        assert web.press("Run 1 task now") == "1 task pending now."
        until(system, "scheduled", "completed", "scheduled", ids=waiting("s"))
        web.open("/tasks?queue=default&state=scheduled")
        web.press("Cancel selected…", ticked=("s0", "s2"))
        assert "2 scheduled tasks of queue default will not run." in web.text
        assert web.press("Cancel 2 tasks") == "2 tasks cancelled."
        until(system, "cancelled", "completed", "cancelled", ids=waiting("s"))
        web.open("/tasks?queue=default&state=completed")
        web.press("Delete selected…", ticked=("s1",))
        assert web.press("Delete 1 task") == "1 task deleted."
        web.open("/tasks?queue=default&state=cancelled")
        web.press("Delete selected…", ticked=("s0", "s2"))
        assert web.press("Delete 2 tasks") == "2 tasks deleted."
        until(system, None, None, None, ids=waiting("s"))
        system.enqueue(Task("long", id="runs-on", retention=60))
        until(system, "active", ids=("runs-on",))
        web.open("/tasks?queue=default&state=active")
        web.press("Cancel selected…", ticked=("runs-on",))
        assert web.press("Cancel 1 task") == "1 task cancelled."
        until(system, "cancelled", ids=("runs-on",))

        # A schedule that a server publishes.
        wait_until(lambda: system.inspect(lambda i: i.schedules()))
        web.open("/schedules")
        assert "triggered" in web.press("Run now", among="yearly")
        web.open("/schedules")
        web.press("Pause", among="yearly", why="no more")
        assert "no more" in web.text
        assert "next run" in web.press("Resume", among="yearly")
        paused = system.inspect(lambda i: i.schedule("yearly", queue="other"))
        assert paused is not None
        assert paused.paused is None

        # A server.
        web.open(f"/server?id={server.id}")
        assert "no new tasks" in web.press("Drain")
        wait_until(lambda: system.inspect(lambda i: i.server(server.id)).quiet, 20)  # type: ignore[union-attr]
        web.open(f"/server?id={server.id}")
        web.press("Stop…")
        assert "told to stop" in web.press("Stop server")
        system.gate.set()
        wait_until(lambda: server.condition().stopping, 20)
        assert web.used >= ACTIONS.keys() - {
            "/schedule/forget",
            "/schedule/put",
            "/schedule/delete",
            "/queue/delete",
            # Tested in test_web_search.py, test_web_edit.py, test_web_browser.py and
            # test_web_forecast.py.
            "/search/act",
            "/task/edit",
            "/task/stack",
            "/queue/target",
            "/dead/acknowledge",
            # Tested with types and with schedules.
            "/type/pause",
            "/type/resume",
            "/schedule/backfill",
            # Tested in test_web_limits.py and test_web_actions.py.
            "/limit/set",
            "/limit/reset",
            "/limit/open",
            "/queue/bounds",
            "/queue/bounds/reset",
            "/queue/weight",
            "/queue/weight/reset",
        }, (  # fmt: skip
            "each action was tried"
        )


def test_queue_is_deleted_once_empty_and_unserved(system: Live) -> None:
    server = system.serve()
    system.enqueue(Task("order", id="later", delay=600), Task("order", queue="other"))
    with visiting(system) as web:

        def delete() -> str:
            web.open("/queue?queue=default")
            web.press("Delete queue…")
            return web.press("Delete queue")

        refusal = f"Server {server.id} takes tasks from the queue: stop the server first."
        assert delete() == refusal
        system.do(server.stop())
        assert delete() == "The queue holds 1 task: purge or cancel it first."
        web.open("/task?id=later&queue=default")
        web.press("Cancel")
        assert delete() == "Queue default is deleted."
        assert [one.name for one in system.inspect(lambda i: i.overview()).queues] == ["other"]


def test_unpublished_schedule_is_forgotten(system: Live) -> None:
    async def yearly() -> None: ...

    system.app.periodic(cron="0 0 1 1 *", name="yearly")(yearly)
    server = system.serve()
    wait_until(lambda: system.inspect(lambda i: i.schedules()))
    system.do(server.stop())
    with raw(system) as client:  # as if a long time had passed
        client.hset(QueueKeys(system.prefix, "default").key("schedules"), "@yearly", 5)
    with visiting(system) as web:
        web.open("/schedules")
        web.press("Delete…")
        assert "deleted" in web.press("Delete the schedule")
    assert system.inspect(lambda i: i.schedules()) == []


def test_filter_of_tasks_keeps_its_fields(system: Live) -> None:
    system.enqueue(*(Task(f"mail.{n % 2}", id=f"user-{n}", delay=600) for n in range(20)))
    with visiting(system) as web:
        web.open("/tasks?queue=default&state=scheduled&type=mail.1&id=user-1&age=1h")
        found = re.findall(r'name="id-ticked" value="([^"]*)"', web.text)
        assert sorted(found) == ["user-1", *(f"user-{n}" for n in range(11, 20, 2))]
        filled = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', web.text))
        assert filled == {"type": "mail.1", "id": "user-1", "error": ""}
