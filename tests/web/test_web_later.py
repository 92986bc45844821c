"""Lists leave out queues whose data a later version of qsync has written, and say so."""

from __future__ import annotations

import asyncio

import pytest

from qsync import Task
from qsync.errors import SchemaMismatch
from qsync.inspector import parse_search
from qsync.state import TaskState
from qsync.web import create_app
from tests.support.cli import qsync
from tests.support.dashboard import visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store


async def fill(made: Bed) -> None:
    for queue in ("known", "later"):
        await made.enqueue(Task("t", id="same"), Task("t"), queue=queue)
        await made.lease(1, queue=queue)
        await made.inspector.put_schedule(f"nightly-{queue}", Task("t", queue=queue), every=3600)
        await made.inspector.pause(queue, why="noted")
    await made.serve("s", queues=("known", "later"))
    await made.inspector.quiet("s")


async def test_lists_leave_out_a_queue_of_a_later_layout(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        await fill(made)
        client = store.client()
        meta = made.keys("later").key("meta")
        client.hset(meta, "schema", 9)
        inspector = made.inspector
        overview = await inspector.overview()
        assert [info.name for info in overview.queues] == ["known"]
        assert (overview.later, overview.total, overview.more) == (["later"], 2, 0)
        events = await inspector.events()
        assert {event.queue for event in events} == {"known", None}
        [alone] = await inspector.events(queue="")
        assert (alone.action, alone.subject) == ("server.quiet", "s")
        assert [row.queue for row in await inspector.find("same")] == ["known"]
        page = await inspector.search(parse_search("type:t"))
        assert ({row.queue for row in page.tasks}, page.later) == ({"known"}, ["later"])
        assert [info.queue for info in await inspector.schedules()] == ["known"]
        [server] = await inspector.servers()
        assert (len(server.tasks), server.complete) == (1, False)
        one = await inspector.server("s")
        assert one is not None
        assert (len(one.tasks), one.complete) == (1, False)
        with pytest.raises(SchemaMismatch, match="queue later"):
            await inspector.tasks("later", TaskState.PENDING)
        app = create_app(inspector, auth="host")
        async with app, visiting(app) as browser:
            for path in ("/", "/queues", "/search?q=type:t", "/events"):
                answer = await browser.get(path)
                assert answer.status_code == 200, path
                assert "1 queue is not shown, because a later version" in answer.text, path
            for path in ("/errors", "/schedules", "/servers", "/types", "/tasks", "/dead"):
                assert (await browser.get(path)).status_code == 200, path
            assert "Server drained" in (await browser.get("/server?id=s")).text
        where = ("--url", store.url, "--prefix", prefix)
        for words in (["stats"], ["queue", "list"], ["errors"], ["task", "list"]):
            ran = await asyncio.to_thread(qsync, *words, *where)
            assert ran.code == 0, ran.err
            assert "not shown, because a later version of qsync wrote their data: later" in ran.err
