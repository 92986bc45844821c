"""With twenty thousand names in the set of queues, each read is bounded, but together the reads can
reach every name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from qsync import Task
from qsync.inspector.base import QUEUES_READ
from qsync.keys import GlobalKeys
from qsync.state import TaskState
from qsync.web import create_app
from tests.support.cli import Live, living
from tests.support.dashboard import visiting
from tests.support.inspector_driver import bed
from tests.support.stores import Store

MANY = 20_000
PAGE_AT_MOST = 2.1 * QUEUES_READ
"""Maximum number of names per read: one page minus one name, plus one step of SSCAN, which may
return more than its COUNT."""


@pytest.fixture
def flooded(valkey: Store, prefix: str) -> str:
    """Return a prefix with 20,000 names in the set of queues, some of them invalid."""
    with valkey.client() as client:
        key = GlobalKeys(prefix).queues
        for at in range(0, MANY, 1000):
            client.sadd(key, *(f"q{n:05}" for n in range(at, at + 1000)))
        client.sadd(key, b"x" * 1_000_000, b"\xff", "a b")
    return prefix


def test_overview_reads_a_thousand_queues_and_says_how_many_there_are(
    valkey: Store, flooded: str
) -> None:
    async def main() -> None:
        async with bed(valkey.url, flooded) as made:
            inspector = made.inspector
            seen = await inspector.overview()
            assert QUEUES_READ <= len(seen.queues) < PAGE_AT_MOST
            assert seen.total == MANY + 3
            assert seen.more == seen.total - len(seen.queues)
            assert [info.name for info in seen.queues] == sorted(i.name for i in seen.queues)
            assert len(await inspector.queue_names()) < PAGE_AT_MOST

    asyncio.run(main())


def test_every_queue_can_be_read_by_pages_and_by_name(valkey: Store, flooded: str) -> None:
    async def main() -> None:
        async with bed(valkey.url, flooded) as made:
            inspector = made.inspector
            names: set[str] = set()
            async for page in inspector.queue_pages():
                assert len(page) < PAGE_AT_MOST
                names |= set(page)
            assert names == {f"q{n:05}" for n in range(MANY)}
            first = set(await inspector.queue_names())
            hidden = min(names - first)
            assert await inspector.queue(hidden) is not None
            assert (await inspector.pause(hidden)).ok
            assert (await inspector.resume(hidden)).ok
            assert (await inspector.forget(hidden)).outcome == "done"
            assert await inspector.queue(hidden) is None
            assert await inspector.queue("nowhere") is None
            [only] = (await inspector.overview(names=[min(first)])).queues
            assert only.name == min(first)

    asyncio.run(main())


def test_small_set_of_queues_is_read_whole(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(valkey.url, prefix) as made:
            with valkey.client() as client:
                client.sadd(GlobalKeys(prefix).queues, *(f"q{n}" for n in range(150)))
            seen = await made.inspector.overview()
            assert (len(seen.queues), seen.total, seen.cursor, seen.more) == (150, 150, None, 0)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/", "/queues", "/tasks", "/dead", "/schedules", "/metrics"])
def test_pages_with_many_queues_respond_in_time(valkey: Store, flooded: str, path: str) -> None:
    async def main() -> None:
        async with bed(valkey.url, flooded) as made:
            app = create_app(made.inspector, auth="host", timeout=60)
            async with app, visiting(app) as client:
                answer = await client.get(path)
                assert answer.status_code == 200
                if path == "/queues":
                    assert f"{MANY + 3:,} queues" in answer.text

    asyncio.run(main())


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as made:
        yield made


def test_command_line_reports_omitted_queues_and_bulk_work_covers_all(
    live: Live, flooded: str
) -> None:
    names = live.do(live.inspector.queue_names())
    hidden = next(f"q{n:05}" for n in range(MANY) if f"q{n:05}" not in set(names))
    live.enqueue(Task("t", id="far", queue=hidden, delay=600))
    shown = live.ok("queue", "list").out
    assert f"of {MANY + 3:,} queues" in shown
    assert f"of {MANY + 3:,} queues" in live.ok("stats").out
    assert f"of {MANY + 3:,} queues" in live.ok("top", "--once").out
    assert hidden in live.ok("stats", hidden).out
    assert "far" in live.ok("task", "list", "--state", "scheduled").out
    live.ok("task", "retry", "--state", "scheduled", "--all")
    found = live.do(live.inspector.queue(hidden))
    assert found is not None
    assert found.states[TaskState.PENDING] == 1
