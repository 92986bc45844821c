"""The payload of a task is edited as JSON, then saved, retried or enqueued as a copy."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx

from qsync import Task
from qsync.inspector import TaskDetail
from qsync.web import create_app
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store


async def post(client: httpx.AsyncClient, id: str, verb: str, payload: str, **more: str) -> Any:
    form = {"id": id, "queue": "default", "verb": verb, "payload": payload, **more}
    return await client.post("/task/edit", data=form, headers=SAME)


async def detail(made: Bed, id: str, queue: str = "default") -> TaskDetail:
    found = await made.inspector.task(id, queue=queue)
    assert found is not None
    return found


async def test_payload_is_edited_retried_and_copied(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        odd = {"n": 1, "text": "a\u202eb\u00a0c", "deep": [1, {"x": None}]}
        await made.dead(Task("t", odd, id="d", retention=60, headers={"h": "v"}, priority=7))
        await made.enqueue(Task("t", b"plain\ntext", id="b", delay=60), Task("t", {1: 2}, id="i"))
        app = create_app(made.inspector, auth="host", read_only=False)
        async with app, visiting(app) as client:
            page = (await client.get("/edit?id=d")).text
            shown = html.unescape(re.findall("<textarea[^>]*>\n(.*?)</textarea>", page, re.S)[0])
            assert "\\u202e" in shown
            assert (await post(client, "d", "save", shown, state="dead")).status_code == 303
            assert (await detail(made, "d")).value() == odd
            assert (await detail(made, "d")).edits == [], "nothing has changed"

            for text, why in (
                ("{", "The payload is not JSON"),
                ("[1]", "The payload of this task is an object, and the new one is a list."),
                ("[" * 100 + "]" * 100, "nested"),
            ):
                answer = await post(client, "d", "save", text)
                assert (answer.status_code, why in html.unescape(answer.text)) == (400, True), why
            answer = await post(client, "d", "save", "{}", delay="5")
            assert "cannot have a delay" in answer.text
            answer = await post(client, "d", "copy", "{}", delay="soon")
            assert "Delay “soon” is not a number" in answer.text

            done = await post(client, "d", "copy", '{"n": 2}', into="other", delay="60")
            copied = httpx.URL(done.headers["location"]).params
            copy = await detail(made, copied["id"], "other")
            assert (copy.value(), copy.row.state, copy.row.priority) == ({"n": 2}, "scheduled", 7)
            assert copy.headers == {"h": "v", "qsync-copy-of": "default/d"}
            assert (
                "This is the copy of task d." in (await client.get(done.headers["location"])).text
            )

            await post(client, "d", "retry", '{"n": 3}', state="dead")
            task = await detail(made, "d")
            assert (task.value(), task.row.state) == ({"n": 3}, "pending")
            assert [edit.by for edit in task.edits] == ["dashboard"]
            assert task.edits[0].shown.text.count("deep")
            assert "Former payload" in (await client.get("/task?id=d")).text
            late = await post(client, "d", "save", "{}", state="dead")
            assert "the task is now pending" in (await client.get(late.headers["location"])).text

            assert "plain\ntext" in (await client.get("/edit?id=b")).text
            await post(client, "b", "save", "other\r\ntext", delay="5")
            assert (await detail(made, "b")).payload == b"other\ntext"
            assert (await client.get("/edit?id=none")).status_code == 404
            odd_keys = await client.get("/edit?id=i")
            assert (odd_keys.status_code, "JSON cannot represent" in odd_keys.text) == (409, True)

        hidden = create_app(made.inspector, auth="host", read_only=False, mask=lambda *_: "no")
        async with hidden, visiting(hidden) as client:
            assert (await client.get("/edit?id=d")).status_code == 409
            assert (await post(client, "d", "copy", "{}")).status_code == 400


async def test_edit_form_keeps_long_texts_and_refuses_stale_payloads(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        letters = "\u044f" * 9000  # each letter takes six bytes in a form
        many = {str(number): number for number in range(1100)}
        await made.enqueue(
            Task("t", b"short", id="raw", delay=60), Task("t", many, id="lines", delay=60),
            Task("t", letters * 2, id="big", delay=60), Task("t", {"n": 1}, id="d", delay=60),
        )  # fmt: skip
        app = create_app(made.inspector, auth="host", read_only=False)
        async with app, visiting(app) as client:
            assert (await post(client, "raw", "save", "b" * 30_000)).status_code == 303
            assert (await detail(made, "raw")).payload == b"b" * 30_000
            assert (await post(client, "raw", "save", letters)).status_code == 303
            assert "\u044f" * 9000 in (await client.get("/edit?id=raw")).text
            page = html.unescape((await client.get("/edit?id=lines")).text)
            lines = re.findall("<textarea[^>]*>\n(.*?)</textarea>", page, re.S)[0]
            done = await post(client, "lines", "save", lines.replace("\n", "\r\n"))
            assert done.status_code == 303
            too_large = await client.get("/edit?id=big")
            assert (too_large.status_code, "too large" in too_large.text) == (409, True)

            page = (await client.get("/edit?id=d")).text
            version = re.findall('name="version" value="([0-9a-f]+)"', page)[0]
            first = await post(client, "d", "save", '{"n": 2}', version=version)
            assert first.status_code == 303
            second = await post(client, "d", "retry", '{"n": 3}', version=version)
            assert (second.status_code, "changed since you opened it" in second.text) == (400, True)
            assert '{"n": 3}' in html.unescape(second.text)
            assert (await detail(made, "d")).value() == {"n": 2}
            assert (await post(client, "d", "delete", '{"n": 4}')).status_code == 404
            assert (await detail(made, "d")).value() == {"n": 2}


async def test_former_payloads_are_kept_within_bounds(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t", {"n": 0}, id="a", delay=60, headers={"h": "x" * 8000}))
        for number in range(1, 8):
            assert (await made.inspector.edit_task("a", {"n": number}, by="me")).ok
        task = await detail(made, "a")
        assert [edit.shown.text for edit in task.edits] == [
            f'{{\n  "n": {number}\n}}' for number in range(2, 7)
        ]
        assert (await made.inspector.edit_task("a", {"n": 9}, dry_run=True)).ok
        assert (await made.inspector.edit_task("a", {"n": 9}, state="dead")).outcome == "too_late"
        assert (await made.inspector.edit_task("none", {})).outcome == "not_found"
        rows = (await made.inspector.tasks("default", "scheduled")).tasks
        assert [row.type for row in rows] == ["t"]
        assert (await made.inspector.copy_task("none")).outcome == "not_found"
        assert (await made.inspector.copy_task("a", dry_run=True)).queue == "default"
        copy = await made.inspector.copy_task("a", {"n": 10})
        assert copy.id is not None
        assert (await detail(made, copy.id)).value() == {"n": 10}


async def test_full_store_refuses_changes_with_reason(own_store: Store, prefix: str) -> None:
    async with bed(own_store.url, prefix) as made:
        await made.enqueue(Task("t", {"n": 1}, id="d", delay=60))
        app = create_app(made.inspector, auth="host", read_only=False)
        async with app, visiting(app) as client:
            own_store.command("CONFIG", "SET", "maxmemory", "1")
            form = {"name": "s", "type": "t", "queue": "default", "cron": "* * * * *",
                    "missed": "skip", "new": "yes"}  # fmt: skip
            answer = await client.post("/schedule/put", data=form, headers=SAME)
            assert (answer.status_code, "The store is full" in answer.text) == (507, True)
            own_store.command("CONFIG", "SET", "maxmemory", "0")
            assert (await client.post("/schedule/put", data=form, headers=SAME)).status_code == 303
