"""The tests submit the dashboard's forms without a browser, so its script does not run."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from qsync import Task
from qsync.broker.schedule_run_ops import Note, missed, note_runs
from qsync.codec import decode
from qsync.inspector import QueueInfo
from qsync.web import bulk_actions, create_app
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store


class Visitor:
    """Submits the forms of pages as a browser without scripts does."""

    def __init__(self, client: httpx.AsyncClient, made: Bed) -> None:
        self.client, self.bed = client, made

    async def send(self, path: str, **fields: object) -> str:
        """Post a form; return the text of the resulting page."""
        answer = await self.client.post(path, data=fields, headers=SAME, follow_redirects=True)
        assert answer.status_code in (200, 404), answer.text
        return answer.text

    async def press(self, text: str, button: str) -> str:
        """Press a button on a page; its form is sent with all hidden fields."""
        for form in re.findall(r"<form.*?</form>", text, re.S):
            if button in form:
                action = re.search(r'action="([^"]*)"', form)
                assert action
                hidden = re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form)
                pairs: dict[str, list[str]] = {}
                for name, value in hidden:
                    pairs.setdefault(name, []).append(html.unescape(value))
                return await self.send(html.unescape(action[1]), **pairs)
        raise AssertionError(f"no button {button} in {said(text)}")

    async def queue(self, name: str = "default") -> QueueInfo:
        info = await self.bed.inspector.queue(name)
        assert info is not None
        return info


@asynccontextmanager
async def visitor(store: Store, prefix: str) -> AsyncIterator[Visitor]:
    async with bed(store.url, prefix) as made:
        app = create_app(made.inspector, auth="host", read_only=False)
        async with app, visiting(app) as client:
            yield Visitor(client, made)


def said(text: str) -> str:
    """Return the message of a page."""
    found = re.search(r'<p class="flash [a-z]+" role="status">(.*?)</p>', text)
    return html.unescape(found[1]) if found else ""


async def test_a_queue_is_paused_resumed_and_purged(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await web.bed.enqueue(*[Task("t") for _ in range(3)])
        text = await web.send("/queue/pause", queue="default", why="<b>rest</b>")
        assert said(text) == "Queue default is paused."
        assert "&lt;b&gt;rest&lt;/b&gt;" in text
        assert (await web.queue()).paused
        text = await web.press(text, "Resume")
        assert not (await web.queue()).paused
        asked = await web.send("/queue/purge", queue="default", state="pending")
        assert "This deletes 3 pending tasks of queue" in asked
        assert (await web.queue()).states["pending"] == 3, "nothing is done before the confirmation"
        assert said(await web.press(asked, "Delete 3 tasks")) == "3 tasks deleted."
        assert (await web.queue()).states["pending"] == 0
        form = {"queue": "default", "state": "active"}
        refused = await web.client.post("/queue/purge", data=form, headers=SAME)
        assert refused.status_code == 400
        assert "active tasks are running; cancel them instead" in refused.text
        for path in ("/queue?queue=default", "/events", "/events?queue=default&action=queue"):
            text = (await web.client.get(path)).text
            table = text[text.index("Of what</th>") :]
            verbs = (">State purged<", ">Queue resumed<", ">Queue paused<")
            seen = [table.index(verb) for verb in verbs]
            assert seen == sorted(seen), "the latest first"
            assert "3 tasks" in table
            assert "dashboard" in table
            assert "&lt;b&gt;rest&lt;/b&gt;" in table
        assert "No action matches" in (await web.client.get("/events?action=task.cancel")).text
        assert (await web.client.get("/events?action=none")).status_code == 400


async def test_a_task_is_run_cancelled_and_deleted(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await web.bed.dead(Task("t", id="d1"), Task("t", id="d2"))
        text = (await web.client.get("/task?id=d1")).text
        after = await web.press(text, "Run now")
        assert said(after).startswith("The task is pending")
        assert said(await web.press(text, "Run now")).startswith(
            "Not changed: the task is now pending"
        )
        assert said(await web.press(after, "Cancel")) == "The task is cancelled."
        text = (await web.client.get("/task?id=d2")).text
        asked = await web.press(text, "Delete")
        assert await web.bed.inspector.task("d2")
        assert said(await web.press(asked, "Delete task")) == "Task d2 is deleted."
        assert await web.bed.inspector.task("d2") is None
        for id, verbs in (("d2", {"Task deleted"}), ("d1", {"Task retried", "Task cancelled"})):
            text = (await web.client.get(f"/task?id={id}")).text
            assert set(re.findall(r'<th scope="row">([\w ]+)</th>', text)) == verbs, id
        await web.bed.enqueue(Task("t", id="a1"))
        await web.bed.lease(server="s")
        text = (await web.client.get("/task?id=a1")).text
        assert "told to stop" in said(await web.press(text, "Cancel"))


async def test_a_waiting_task_is_rescheduled(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        await web.bed.enqueue(Task("t", id="s1", delay=60), Task("t", id="p1"))
        assert "Reschedule" in (await web.client.get("/task?id=s1")).text
        assert "Reschedule" not in (await web.client.get("/task?id=p1")).text
        form = {"queue": "default", "id": "s1"}
        text = await web.send("/task/reschedule", delay="900", **form)
        assert said(text).startswith("The task is due at 20")
        assert "in 15 min" in text or "in 14 min" in text
        for wrong in ("", "soon", "-1", "nan"):
            answer = said(await web.send("/task/reschedule", delay=wrong, **form))
            assert answer.startswith(f"Not possible: delay: '{wrong}' is not a number of seconds")
        refused = await web.send("/task/reschedule", delay="9", queue="default", id="p1")
        assert said(refused).startswith("Not possible: the task is pending")
        deadline = datetime.now(UTC) + timedelta(hours=1)
        await web.bed.enqueue(Task("t", id="d1", delay=60, deadline=deadline))
        late = await web.send("/task/reschedule", delay="3601", queue="default", id="d1")
        assert said(late).startswith("Not possible: the task would be due at 20")
        assert f"not before its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC" in said(late)


async def test_a_message_is_shown_once(valkey: Store, prefix: str) -> None:
    async with visitor(valkey, prefix) as web:
        await web.bed.enqueue(Task("t"))
        await web.client.post("/queue/pause", data={"queue": "default"}, headers=SAME)
        refreshed = await web.client.get("/queues", headers={"X-Qsync-Refresh": "1"})
        assert said(refreshed.text) == "", "a refresh does not consume the message"
        assert said((await web.client.get("/queues")).text) == "Queue default is paused."
        assert said((await web.client.get("/queues")).text) == ""
        web.client.cookies.set("qsync_flash", "%%%")
        assert (await web.client.get("/queues")).status_code == 200


async def test_ticked_dead_tasks_are_run_again_or_deleted_and_counted(
    store: Store, prefix: str
) -> None:
    async with visitor(store, prefix) as web:
        locked = Task("t", id="twin", unique_key="k", unique=True)
        await web.bed.dead(*[Task("t", id=f"d{n}") for n in range(4)], locked)
        await web.bed.enqueue(Task("t", id="holder", unique_key="k", unique=True))
        nothing = await web.send("/dead/run", queue="default")
        assert said(nothing) == "No task is selected, so nothing was changed."
        form = {"queue": "default", "id-ticked": ["d0", "d1", "twin", "gone", "b\x7fad"]}
        text = await web.send("/dead/run", **form)
        assert said(text) == (
            "2 tasks re-queued. 1 task stays dead: another task holds the unique lock. "
            "2 tasks changed state in the meantime."
        )
        asked = await web.send("/dead/delete", queue="default", **{"id-ticked": ["d2", "d3"]})
        assert "Delete 2 dead tasks in queue default?" in asked
        assert (await web.queue()).states["dead"] == 3
        assert said(await web.press(asked, "Delete 2 tasks")) == "2 tasks deleted."
        assert (await web.queue()).states["dead"] == 1


@pytest.mark.parametrize("verb", ["run", "delete"])
async def test_all_matching_tasks_are_changed_in_steps_and_counted(
    store: Store, prefix: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the script, a user presses "Continue" about once per second. In this test, each step
    ends immediately, so the user presses the button after each step."""
    monkeypatch.setattr(bulk_actions, "BUDGET_S", 0.0)

    async with visitor(store, prefix) as web:
        tasks = [Task("mail" if n % 2 else "sms", id=f"d{n}") for n in range(1200)]
        await web.bed.dead(*tasks, error="ValueError: no route")
        form = {"queue": "default", "type": "mail", "error": "ROUTE", "scope": "all"}
        asked = await web.send(f"/dead/{verb}", **form)
        name = "Re-run" if verb == "run" else "Delete"
        assert f"{name} 600 dead tasks in queue default of type mail whose error contains" in asked
        assert "600 other dead tasks stay." in asked
        text, pressed = (
            await web.press(asked, f"{name} 600 tasks"),
            1,
        )
        while "Continue" in text:
            text, pressed = await web.press(text, "Continue"), pressed + 1
        assert pressed == 5
        done = "re-queued" if verb == "run" else "deleted"
        assert said(text) == f"600 tasks {done}."
        info = await web.queue()
        assert info.states["dead"] == 600
        assert info.states["pending"] == (600 if verb == "run" else 0)


async def test_missing_servers_and_schedules_are_reported(valkey: Store, prefix: str) -> None:
    async with visitor(valkey, prefix) as web:
        await web.bed.enqueue(Task("t"))
        for path in ("/server/quiet", "/server/stop"):
            text = await web.send(path, id="none", sure="yes")
            assert said(text) == "The server is no longer running."
        for verb in ("pause", "resume", "trigger", "forget"):
            text = await web.send(f"/schedule/{verb}", name="none", queue="default", sure="yes")
            assert said(text) == "Not found: it no longer exists."


NEW = {"new": "yes", "name": "report-42", "type": "report", "queue": "default", "missed": "once"}


async def test_schedule_is_created_changed_and_deleted(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        page = (await web.client.get("/schedule")).text
        assert "Create the schedule" in page
        sent = NEW | {"payload": '{"n": 42}', "cron": "0 9 * * *", "tz": "Asia/Tokyo", "every": ""}
        text = await web.send("/schedule/put", **sent)
        assert said(text) == "Schedule report-42 is created."
        assert "0 9 * * * (Asia/Tokyo)" in text
        assert "in the store" in text
        put = await web.bed.inspector.stored_schedule("report-42")
        assert (put.cron, put.tz, put.missed, put.type) == (
            "0 9 * * *", "Asia/Tokyo", "once", "report",
        )  # fmt: skip
        assert decode(put.payload) == {"n": 42}
        link = re.search(r'href="([^"]*/schedule\?[^"]*)">Edit', text)
        page = (await web.client.get(html.unescape(link[1]))).text
        assert 'value="0 9 * * *"' in page
        assert 'value="Asia/Tokyo"' in page
        exact = {"name": "report-42", "queue": "default", "every": "1234567.5", "missed": "skip"}
        await web.send("/schedule/put", **exact)
        page = (await web.client.get(html.unescape(link[1]))).text
        assert 'name="every" value="1234567.5"' in page
        changed = {"name": "report-42", "queue": "default", "every": "90", "missed": "skip"}
        assert said(await web.send("/schedule/put", **changed)) == "Schedule report-42 is changed."
        again = await web.bed.inspector.stored_schedule("report-42")
        assert (again.every, again.cron, again.missed) == (90.0, None, "skip")
        assert again.payload == put.payload
        asked = await web.send("/schedule/delete", name="report-42", queue="default")
        assert "Delete this schedule?" in asked
        assert await web.bed.inspector.stored_schedule("report-42")
        assert said(await web.press(asked, "Delete the schedule")) == (
            "Schedule report-42 is deleted."
        )
        assert await web.bed.inspector.stored_schedule("report-42") is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cron": "61 * * * *"}, "cron='61 * * * *': Bad minute"),
        ({"cron": "* * * * *", "tz": "<b>"}, "tz='<b>': not in the time zone database"),
        ({}, "pass either cron= or every="),
        ({"every": "soon"}, "every: 'soon' is not a number of seconds"),
        ({"every": "60", "name": "a b"}, "name='a b': must be 1 to 128"),
        ({"every": "60", "payload": "{"}, "payload: not JSON"),
        ({"every": "60", "type": ""}, "type: must be 1 to 256"),
        ({"every": "60", "queue": "a b"}, "queue: 'a b' is not 1 to 128"),
        ({"every": "60", "missed": "never"}, "missed='never'"),
        ({"every": "60", "name": "taken"}, "schedule taken already exists"),
    ],
)
async def test_form_of_a_schedule_names_the_error_and_keeps_its_fields(
    store: Store, prefix: str, changes: dict[str, str], problem: str
) -> None:
    async with visitor(store, prefix) as web:
        await web.bed.inspector.put_schedule("taken", Task("t"), every=60)
        answer = await web.client.post("/schedule/put", data=NEW | changes, headers=SAME)
        assert answer.status_code == 400
        text = html.unescape(answer.text)
        assert problem in text
        assert f'value="{(NEW | changes)["type"]}"' in text
        assert "<b>" not in answer.text
        found = await web.bed.inspector.schedules()
        assert [one.name for one in found] == ["taken"]


async def test_page_of_a_schedule_has_runs_and_backfill(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        inspector = web.bed.inspector
        await inspector.put_schedule("daily", Task("t"), cron="0 3 * * *", tz="Europe/Moscow")
        page = "/schedule/runs?name=daily&queue=default"
        assert "No runs are recorded yet." in (await web.client.get(page)).text
        listed = (await web.client.get("/schedules")).text
        assert html.escape(page) in listed
        form = {"name": "daily", "queue": "default", "from": "2026-01-01T00:00"}
        asked = await web.send("/schedule/backfill", to="2026-01-08T00:00", **form)
        assert "This enqueues 7 tasks" in asked
        assert (await web.queue()).states["pending"] == 0
        text = await web.press(asked, "Enqueue 7 tasks")
        assert said(text) == "7 tasks enqueued."
        assert (await web.queue()).states["pending"] == 7
        assert "2026-01-07 03:00:00" in text, "in the zone of the schedule"
        assert "Schedule backfilled" in text
        again = await web.send("/schedule/backfill", to="2026-01-08T00:00", **form)
        assert said(again) == "0 tasks enqueued."
        wrong = await web.send("/schedule/backfill", to="soon", **form)
        assert said(wrong).endswith("to: “soon” is not a time.")
        keys, now = web.bed.keys(), datetime.now(UTC)
        tick = int((now - timedelta(hours=2)).timestamp()) * 1_000_000
        ended = Note("daily", tick // 1000 - 5, "", "f100,5000")
        late = missed("daily", tick, tick)
        await web.bed.broker.run(note_runs(keys, [ended, late]))
        text = (await web.client.get(page)).text
        assert re.search(r'class="badge dead">failed</span>.*?5 s', text, re.S)
        assert ">missed</span>" in text
        overview = (await web.client.get("/")).text
        assert "Schedule daily missed its run of" in overview
        assert "Nothing needs attention" not in overview
        await web.bed.broker.run(note_runs(keys, [Note("daily", tick // 1000 + 9, "", "c1,1")]))
        assert "missed its run" not in (await web.client.get("/")).text
        assert (await web.client.get("/schedule/runs?name=none")).status_code == 404


async def test_list_of_schedules_is_filtered_by_name(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        for name in ("report-1", "report-2", "mail"):
            await web.bed.inspector.put_schedule(name, Task("t"), every=3600)
        text = (await web.client.get("/schedules?name=report-")).text
        assert "report-1" in text
        assert "report-2" in text
        assert "schedule-default-mail" not in text
        text = (await web.client.get("/schedules?name=none")).text
        assert "No schedule name begins with this" in text
        assert (await web.client.get("/schedules?name=%3Cb%3E")).status_code == 400


async def test_read_only_dashboard_has_no_form_of_a_schedule(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        await made.inspector.put_schedule("a", Task("t"), every=60)
        app = create_app(made.inspector, auth="host")
        async with app, visiting(app) as client:
            text = (await client.get("/schedules")).text
            assert "Edit" not in text
            assert "New schedule" not in text
            assert (await client.get("/schedule")).status_code == 403
            answer = await client.post("/schedule/put", data=NEW, headers=SAME)
            assert answer.status_code == 403


async def test_bounds_and_weights_are_set_and_reset(valkey: Store, prefix: str) -> None:
    async with visitor(valkey, prefix) as web:
        await web.bed.enqueue(Task("x"))
        page = await web.send(
            "/queue/bounds", queue="default", max_tasks="1", max_bytes="1GiB", when_full="raise"
        )
        assert "The queue is full: 1 of 1 waiting task" in page
        assert "1 waiting task and 1,073,741,824 bytes, then raise" in page
        overview = (await web.client.get("/")).text
        assert "is full: 1 of 1 waiting task" in overview
        page = await web.send("/queue/bounds", queue="default", max_tasks="many")
        assert "max_tasks: &#39;many&#39; is not a whole number" in page
        page = await web.send("/queue/bounds", queue="default", when_full="foo")
        assert "when_full: &#39;foo&#39; is neither" in page
        page = await web.send("/queue/bounds", queue="default", max_bytes="big")
        assert "is not a size" in page
        await web.press(page, "Reset to the program")
        assert (await web.queue()).bounds.operator is None
        page = await web.send("/queue/weight", queue="default", key="<b>acme", weight="2.5")
        assert "&lt;b&gt;acme" in page
        assert await web.bed.inspector.weights("default") == {"<b>acme": 2.5}
        assert "is not a number" in await web.send(
            "/queue/weight", queue="default", key="acme", weight="lots"
        )
        await web.send("/queue/weight/reset", queue="default", key="<b>acme")
        assert await web.bed.inspector.weights("default") == {}
