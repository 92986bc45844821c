"""Lists can cover several queues, and changes to many tasks have a preview."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Iterator

import pytest

from qsync import Task
from qsync.errors import InvalidTask
from qsync.inspector import Filter, Page
from qsync.keys import QueueKeys
from qsync.web import create_app
from tests.support.cli import Live, living
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store, wait_until

QUEUES = ("a", "b", "c")
S = 1_000_000


def die(store: Store, prefix: str, deaths: list[tuple[str, str, int]], type: str = "t") -> None:
    """Let tasks die. Each task is a tuple of queue, id and time of death in seconds."""

    async def main() -> None:
        async with bed(store.url, prefix) as made:
            for queue in dict.fromkeys(queue for queue, _, _ in deaths):
                mine = [Task(type, id=id) for name, id, _ in deaths if name == queue]
                await made.dead(*mine, queue=queue)

    asyncio.run(main())
    with store.client() as client:
        for queue, id, at in deaths:
            client.zadd(QueueKeys(prefix, queue).key("dead"), {id: at * S})


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as made:
        yield made


DEATHS = [(QUEUES[n % 3], f"d{n:02}", 1_700_000_000 + (n * 7) % 30) for n in range(30)]
LATEST_FIRST = [id for _, id, _ in sorted(DEATHS, key=lambda one: -one[2])]


async def walk(made: Bed, limit: int, filter: Filter | None, **options: bool) -> list[str]:
    """Return the ids of all pages, in order."""
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page: Page = await made.inspector.tasks_of(
            QUEUES, "dead", limit=limit, cursor=cursor, filter=filter, **options
        )
        assert len(page.tasks) <= limit
        assert page.total == len(DEATHS)
        ids += [row.id for row in page.tasks]
        cursor = page.cursor
        if cursor is None:
            return ids


@pytest.mark.parametrize("limit", [1, 7, 100])
@pytest.mark.parametrize("filter", [None, Filter(id="1"), Filter(id="none")], ids=str)
def test_tasks_of_several_queues_come_in_one_order(
    valkey: Store, prefix: str, limit: int, filter: Filter | None
) -> None:
    die(valkey, prefix, DEATHS)

    async def main() -> None:
        async with bed(valkey.url, prefix) as made:
            fit = [id for id in LATEST_FIRST if filter is None or (filter.id or "") in id]
            assert await walk(made, limit, filter) == fit
            assert await walk(made, limit, filter, newest_first=False) == fit[::-1]

    asyncio.run(main())


def test_pending_tasks_come_queue_by_queue(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(valkey.url, prefix) as made:
            for queue in ("b", "a"):
                await made.enqueue(*[Task("t", id=f"{queue}{n}") for n in range(3)], queue=queue)
            ids: list[str] = []
            cursor: str | None = None
            while True:
                page = await made.inspector.tasks_of(["a", "b"], "pending", limit=2, cursor=cursor)
                ids += [row.id for row in page.tasks]
                cursor = page.cursor
                if cursor is None:
                    break
            assert ids == ["a0", "a1", "a2", "b0", "b1", "b2"]
            for bad in ("x", "a/zzz"):
                with pytest.raises(InvalidTask):
                    await made.inspector.tasks_of(["a", "b"], "pending", cursor=bad)

    asyncio.run(main())


def test_command_line_lists_queues_in_one_order_with_a_column(live: Live, valkey: Store) -> None:
    die(valkey, live.prefix, DEATHS)
    lines = live.ok("dead", "list").out.splitlines()
    assert lines[0].split() == ["ID", "QUEUE", "TYPE", "DIED", "ATTEMPTS", "ERROR"]
    assert [line.split()[0] for line in lines[1:]] == LATEST_FIRST
    found, cursor = [], list[str]()
    while True:
        page = live.ok("dead", "list", "--limit", "4", "--json", *cursor).json
        found += [row["id"] for row in page["tasks"]]
        if page["cursor"] is None:
            break
        cursor = ["--cursor", page["cursor"]]
    assert found == LATEST_FIRST
    # The column for the queue is shown even if all matches are in one queue.
    assert "QUEUE" in live.ok("dead", "list", "--id", "d03").out
    assert "QUEUE" not in live.ok("dead", "list", "--queue", "a").out


def test_pages_without_a_queue_show_all_of_them(valkey: Store, prefix: str) -> None:
    die(valkey, prefix, DEATHS)

    async def main() -> None:
        async with bed(valkey.url, prefix) as made:
            for queue in QUEUES:
                await made.enqueue(
                    *[Task("t", id=f"{queue}{n}", delay=60 * n + 60) for n in range(3)],
                    queue=queue,
                )
            app = create_app(made.inspector, auth="host", read_only=False)
            async with app, visiting(app) as client:
                text = (await client.get("/dead?limit=20")).text
                assert re.findall(r"/task\?queue=\w&amp;id=(d\d\d)", text) == LATEST_FIRST[:20]
                following = re.search(r'href="([^"]*cursor=[^"]*)"', text)
                assert following
                text = (await client.get(html.unescape(following[1]))).text
                assert re.findall(r"/task\?queue=\w&amp;id=(d\d\d)", text) == LATEST_FIRST[20:]
                text = (await client.get("/tasks?state=scheduled")).text
                assert "Scheduled <b>9</b>" in text
                assert "all queues" in text
                ids = re.findall(r"/task\?queue=\w&amp;id=([abc]\d)", text)
                assert [id[1] for id in ids] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
                text = (await client.get("/tasks?state=scheduled&queue=a")).text
                assert "Scheduled <b>3</b>" in text
                assert 'data-label="Queue"' not in text

    asyncio.run(main())


def test_confirmation_gives_the_number_of_matches(valkey: Store, prefix: str) -> None:
    die(valkey, prefix, [("a", f"x{n}", 1_700_000_000 + n) for n in range(70)], type="mail")
    die(valkey, prefix, [("a", f"y{n}", 1_700_000_100 + n) for n in range(30)], type="sms")

    async def main() -> None:
        async with bed(valkey.url, prefix) as made:
            app = create_app(made.inspector, auth="host", read_only=False)
            async with app, visiting(app) as client:
                form = {"queue": "a", "type": "sms", "scope": "all"}
                for path, verb in (("/dead/run", "Re-run"), ("/dead/delete", "Delete")):
                    text = (await client.post(path, data=form, headers=SAME)).text
                    assert f"<h1>{verb} 30 tasks?</h1>" in text
                    assert f">{verb} 30 tasks</button>" in text
                    assert "70 other dead tasks stay." in text
                    assert not re.search(r"\b100\b", text)
                    assert ('class="danger full"' in text) is (verb == "Delete")
                form = {"queue": "a", "scope": "all"}
                text = (await client.post("/dead/run", data=form, headers=SAME)).text
                assert "Re-run 100 dead tasks in queue a?" in text

    asyncio.run(main())


def test_paused_queue_is_marked_in_words(live: Live, valkey: Store) -> None:
    die(valkey, live.prefix, [("a", "x", 1_700_000_000), ("b", "y", 1_700_000_000)])
    live.ok("queue", "pause", "a")
    shown = live.ok("top", "--once").out
    assert "a (paused)" in shown
    assert "b (paused)" not in shown


def test_completed_tasks_show_when_they_ended(live: Live) -> None:
    live.serve()
    live.enqueue(Task("note", id="n", retention=86_400))
    live.reaches("n", "completed")
    lines = live.ok("task", "list", "--state", "completed").out.splitlines()
    assert lines[0].split() == ["ID", "QUEUE", "TYPE", "ENDED", "ATTEMPTS", "NOTE"]
    assert re.search(r"n +default +note +(now|\S+ m?s ago) +1 / 4 +deleted in ", lines[1])
    mixed = live.ok("task", "list").out.splitlines()
    assert re.search(r"n +default +note +(now|\S+ m?s ago)", mixed[1])


def test_last_tick_of_a_schedule_shows_the_outcome_of_its_task(live: Live) -> None:
    async def fails() -> None:
        raise ValueError

    live.app.periodic(every=1, name="fails", retry=0)(fails)
    live.serve()

    def shown() -> bool:
        [one] = live.ok("schedule", "list", "--json").json
        return one["last_state"] == "dead" and one["last_task"].startswith("fails@")

    wait_until(shown, timeout=30)
    assert "LAST TICK" in live.ok("schedule", "list").out
