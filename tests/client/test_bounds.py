"""Queues keep to their bounds, which callers and operators can see and change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from qsync import Client, ConfigError, DuplicateTask, InvalidTask, Qsync, QueueFull, Task
from qsync.bounds import Bounds
from qsync.bulk_enqueue import stored_size
from qsync.diagnostics.audit import Auditor, Damage
from qsync.inspector import Inspector
from qsync.keys import QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.server.server import Server
from tests.conftest import Colour
from tests.support.server import Bench, bench, until
from tests.support.stores import Store, wait_until_async


class Desk(Bench):
    """A client and an inspector."""

    inspector: Inspector


@contextlib.asynccontextmanager
async def desk(url: str, prefix: str) -> AsyncIterator[Desk]:
    async with bench(url, prefix) as made:
        sat = Desk(url, prefix, made.broker, made.client)
        sat.inspector = Inspector(made.broker, prefix=prefix)
        yield sat


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tasks": 0}, "max_tasks: 0 is not a whole number from 1"),
        ({"max_tasks": True}, "max_tasks: True"),
        ({"max_bytes": -1}, "max_bytes: -1"),
        ({"max_bytes": 1.5}, "max_bytes: 1.5"),
        ({"when_full": "wait"}, "when_full: 'wait' is neither 'raise' nor 'drop_oldest'"),
        (
            {"when_full": "drop_oldest"},
            "when_full: 'drop_oldest' needs a bound; pass max_tasks or max_bytes to app.queue(",
        ),
    ],
)
def test_wrong_bounds_are_refused_at_the_declaration(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Qsync("redis://localhost:1").queue("mail", **options)
    assert message in str(refused.value)


def test_bounds_of_a_queue_are_declared_once() -> None:
    app = Qsync("redis://localhost:1")
    app.queue("mail", max_tasks=5)
    with pytest.raises(
        ConfigError, match=r"'mail': the app already sets its bounds: 5 waiting tasks.*; set all"
    ):
        app.queue("mail", max_bytes=5)
    app.queue("fax")
    with pytest.raises(ConfigError, match="'fax': the app already sets its bounds: no bounds; set"):
        app.queue("fax", max_tasks=6)
    with pytest.raises(ConfigError, match="queue: 'a b'"):
        app.queue("a b")


async def serve_once(app: Qsync) -> None:
    server: Server = app.server(queues=["other"])
    async with server:
        pass


def test_servers_store_the_bounds_of_the_program_and_remove_them(
    valkey: Store, prefix: str
) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            app = Qsync(valkey.url, prefix=prefix)
            app.queue("mail", max_tasks=2)
            await serve_once(app)
            assert (await made.inspector.bounds("mail")).program == Bounds(max_tasks=2)
            other = Qsync(valkey.url, prefix=prefix)
            await serve_once(other)  # this app sets no bounds for the queue
            assert (await made.inspector.bounds("mail")).program == Bounds(max_tasks=2)
            other.queue("mail")
            await serve_once(other)
            assert (await made.inspector.bounds("mail")).program is None

    asyncio.run(main())


async def bounded(made: Desk, **bounds: Any) -> None:
    """Create the queue, and set bounds as an operator would."""
    await made.client.enqueue(Task("x"))
    assert (await made.inspector.set_bounds("default", **bounds, by="ann")).ok


def test_bulk_enqueue_fills_the_queue_and_error_has_the_accepted_handles(
    valkey: Store, prefix: str
) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_tasks=601)
            tasks = [Task("x", b"%d" % number) for number in range(1000)]
            with pytest.raises(QueueFull) as full:
                await made.client.enqueue_many(tasks)
            assert len(full.value.handles) == 600
            assert (full.value.queue, full.value.bound) == ("default", "max_tasks")
            info = await made.inspector.queue("default")
            assert info is not None
            assert info.states["pending"] == 601
            assert "full: 601 of 601 waiting tasks" in info.bounds.note

    asyncio.run(main())


def test_blocking_bulk_enqueue_fills_the_queue(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_tasks=301)

    asyncio.run(main())
    with Qsync(valkey.url, prefix=prefix).client() as client:
        with pytest.raises(QueueFull) as full:
            client.enqueue_many([Task("x", b"%d" % number) for number in range(400)])
        assert len(full.value.handles) == 300
        with pytest.raises(QueueFull, match="queue default is full: 301 tasks are waiting"):
            client.enqueue(Task("x"))


def test_callers_that_share_a_call_share_the_free_space(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_tasks=8)
            answers = await asyncio.gather(
                *[made.client.enqueue(Task("x")) for _ in range(20)], return_exceptions=True
            )
            assert sum(isinstance(answer, QueueFull) for answer in answers) == 13
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            assert len(set(map(id, errors))) == 13

    asyncio.run(main())


@pytest.mark.faults(82)
def test_eight_producers_fill_a_queue_exactly_to_its_bound(valkey: Store, prefix: str) -> None:
    """Each producer has its own connections, so the calls arrive at the same time."""

    async def main() -> None:
        async with desk(valkey.url, prefix) as made, contextlib.AsyncExitStack() as stack:
            await bounded(made, max_tasks=100)
            producers = [
                await stack.enter_async_context(Qsync(valkey.url, prefix=prefix).async_client())
                for _ in range(8)
            ]

            async def produce(client: Any) -> int:
                accepted = 0
                while True:
                    try:
                        await client.enqueue(Task("x"))
                    except QueueFull:
                        return accepted
                    accepted += 1

            accepted = await asyncio.gather(*map(produce, producers))
            info = await made.inspector.queue("default")
            assert info is not None
            assert info.states["pending"] == 100
            assert sum(accepted) == 99, "one task was already in the queue"

    asyncio.run(main())


def test_concurrent_callers_fit_into_queue_that_drops_oldest(valkey: Store, prefix: str) -> None:
    async def go() -> None:
        async with desk(valkey.url, prefix) as made:
            await made.client.enqueue(Task("t"))
            await made.inspector.set_bounds("default", max_tasks=7, when_full="drop_oldest")
            handles = await asyncio.gather(
                *[made.client.enqueue(Task("t", id=f"{number}")) for number in range(60)]
            )
            assert all(handle.created for handle in handles)
            rows = (await made.inspector.tasks("default", "pending")).tasks
            assert [row.id for row in rows] == [f"{number}" for number in range(53, 60)]
            await made.inspector.set_bounds("default", max_bytes=1000, when_full="drop_oldest")
            sizes = [20, 20, 2000, 20, 400, 400, 20, 2000]
            outcomes = await asyncio.gather(
                *[made.client.enqueue(Task("t", b"x" * size)) for size in sizes],
                return_exceptions=True,
            )
            refused = [isinstance(outcome, QueueFull) for outcome in outcomes]
            assert refused == [size == 2000 for size in sizes]

    asyncio.run(go())


@pytest.mark.parametrize("callers", [3, 30, 300])
def test_large_task_does_not_refuse_small_ones_of_other_callers(
    valkey: Store, prefix: str, callers: int
) -> None:
    """The bound leaves space for all but one of the small tasks. The first task and one in the
    middle are too large to fit."""
    large = {0, callers // 2}
    tasks = [Task("t", b"x" * (50_000 if n in large else 20)) for n in range(callers)]
    room = stored_size(new_task(tasks[-1], new_nonce())) * (callers - 2.5)
    keys = QueueKeys(prefix, "default")

    def check(outcomes: list[Any], waiting: int) -> None:
        refused = {n for n, outcome in enumerate(outcomes) if isinstance(outcome, QueueFull)}
        assert large <= refused
        assert len(refused - large) == 1
        assert {outcomes[n].bound for n in refused} == {"max_bytes"}
        assert len({id(outcomes[n]) for n in refused}) == len(refused)
        accepted = [handle for handle in outcomes if not isinstance(handle, QueueFull)]
        assert all(handle.created for handle in accepted)
        assert len({handle.id for handle in accepted}) == callers - 3
        pending = valkey.command("ZRANGE", keys.key("pending"), waiting, -1)
        assert {id.decode() for id in pending} == {handle.id for handle in accepted}

    async def bound(made: Desk) -> int:
        await made.inspector.set_bounds("default", max_bytes=10**9)
        there = int(valkey.command("HGET", keys.key("meta"), "bytes"))
        await made.inspector.set_bounds("default", max_bytes=there + int(room))
        return int(valkey.command("ZCARD", keys.key("pending")))

    def outcome(client: Client, task: Task) -> Any:
        try:
            return client.enqueue(task)
        except QueueFull as error:
            return error

    async def go() -> None:
        async with desk(valkey.url, prefix) as made:
            await made.client.enqueue(Task("t", b"x" * 60_000))  # no large task fits after this
            waiting = await bound(made)
            calls = [made.client.enqueue(task) for task in tasks]
            check(await asyncio.gather(*calls, return_exceptions=True), waiting)
            waiting = await bound(made)
            with Qsync(valkey.url, prefix=prefix).client() as client, ThreadPoolExecutor(8) as pool:
                check(list(pool.map(partial(outcome, client), tasks)), waiting)

    asyncio.run(go())


def test_duplicates_in_a_shared_call_to_a_full_queue_are_duplicates(
    valkey: Store, prefix: str
) -> None:
    async def go() -> None:
        async with desk(valkey.url, prefix) as made:
            await made.client.enqueue(Task("t", id="held"))
            await made.client.enqueue(Task("t", b"1", unique=60))
            for bounds in ({"max_tasks": 2}, {"max_bytes": 1}):
                await made.inspector.set_bounds("default", **bounds)
                tasks = [
                    Task("t", b"x" * 100), Task("t", b"y"), Task("t", b"1", unique=60),
                    Task("t", b"z" * 50, id="held"), Task("t", id="new"), Task("t"),
                ]  # fmt: skip
                calls = [made.client.enqueue(task) for task in tasks]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                kinds = [type(outcome) for outcome in outcomes]
                assert kinds == [QueueFull] * 2 + [DuplicateTask] * 2 + [QueueFull] * 2
                assert [error.id for error in outcomes[2:4]][1] == "held"

    asyncio.run(go())


def test_a_tick_waits_for_room_and_is_not_lost(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Qsync(valkey.url, prefix=prefix)
    app.queue("ticks", max_tasks=1)

    @app.periodic(every=0.3, name="often", missed="all")
    @app.task(name="often", queue="ticks")
    async def often() -> None: ...

    def refused(part: str) -> bool:
        return any(part in text and "max_tasks is 1" in text for text in caplog.messages)

    async def main() -> None:
        async with app, app.inspector() as inspector, app.async_client() as client:
            await client.schedules.put("stored", Task("often", queue="ticks"), every=0.3)
            async with app.server(queues=["other"]):
                await until(lambda: refused("periodic tasks") or refused("stored schedules"))
                info = await inspector.queue("ticks")
                assert info is not None
                assert info.states["pending"] == 1

                async def completed() -> int:
                    info = await inspector.queue("ticks")
                    return 0 if info is None else info.counters["completed"]

                async with app.server(queues=["ticks"], sweep=0.1):

                    async def both_go_on() -> bool:
                        return await completed() >= 6

                    await wait_until_async(both_go_on)

    caplog.set_level("WARNING", "qsync.server")
    asyncio.run(main())


def test_bounds_of_an_operator_override_the_program(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            inspector = made.inspector
            assert (await inspector.set_bounds("nowhere", max_tasks=1)).outcome == "not_found"
            await bounded(made, max_tasks=1)
            with pytest.raises(InvalidTask, match="max_tasks: 0"):
                await inspector.set_bounds("default", max_tasks=0)
            shown = await inspector.bounds("default")
            assert shown.operator is not None
            assert (shown.operator.by, shown.in_force) == ("ann", Bounds(max_tasks=1))
            with pytest.raises(QueueFull):
                await made.client.enqueue(Task("x"))
            assert (await inspector.reset_bounds("default")).ok
            assert (await inspector.reset_bounds("default")).outcome == "not_found"
            await made.client.enqueue(Task("x"))

    asyncio.run(main())


def test_explain_says_that_the_queue_is_full(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_tasks=2)
            handle = await made.client.enqueue(Task("x"))
            explained = await made.inspector.explain(handle.id)
            assert "The queue is full: 2 of 2 waiting tasks (max_tasks)" in explained.sentence
            assert "full" in explained.also

    asyncio.run(main())


def test_audit_finds_wrong_bytes_and_repair_recounts(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_bytes=10_000)
            auditor = Auditor(made.broker, prefix=prefix)
            assert (await auditor.audit("default")).damages == []
            keys = made.keys()
            with valkey.client() as redis:
                redis.hset(keys.key("meta"), "bytes", 5)
            report = await auditor.audit("default")
            assert report.damages == [Damage("wrong bytes", "default", keys.key("meta"))]
            assert await auditor.repair(report.damages) == {"wrong bytes": 1}
            assert (await auditor.audit("default")).damages == []

    asyncio.run(main())


def test_weights_of_fairness_keys_change_the_order(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            inspector = made.inspector
            assert (await inspector.set_weight("nowhere", "acme", 2)).outcome == "not_found"
            await made.client.enqueue(Task("x"))
            assert (await inspector.set_weight("default", "acme", 3)).ok
            with pytest.raises(InvalidTask, match="weight: 0 is not a number from"):
                await inspector.set_weight("default", "acme", 0)
            with pytest.raises(InvalidTask, match="fairness key: must be a string"):
                await inspector.set_weight("default", "", 1)
            assert await inspector.weights("default") == {"acme": 3.0}
            await made.client.enqueue_many(
                [Task("x", key.encode(), fairness_key=key) for key in ["acme", "other"] * 12]
            )
            page = await inspector.tasks("default", "pending", limit=17)
            details = [await inspector.task(row.id, queue="default") for row in page.tasks]
            keys = [detail.fairness_key for detail in details if detail is not None]
            first = [key for key in keys if key is not None][:12]
            assert (first.count("acme"), first.count("other")) == (9, 3)
            assert (await inspector.reset_weight("default", "acme")).ok
            assert (await inspector.reset_weight("default", "acme")).outcome == "not_found"
            assert await inspector.weights("default") == {}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("bounds", "sent", "message", "count"),
    [
        (
            {"max_tasks": 3},
            5,
            "queue default is full: 3 tasks are waiting, and max_tasks is 3; "
            "the store accepted 2 of the call's 5 tasks; ",
            3,
        ),
        (
            {"max_tasks": 1},
            2,
            "queue default is full: 1 task is waiting, and max_tasks is 1; the "
            "store accepted 0 of the call's 2 tasks; ",
            1,
        ),
        (
            {"max_tasks": 2, "when_full": "drop_oldest"},
            3,
            "queue default is full: 2 tasks are waiting, and max_tasks is 2; "
            "the store accepted 2 of the call's 3 tasks; ",
            2,
        ),
    ],
)
def test_error_of_a_bulk_enqueue_counts_the_tasks_that_the_call_stored(
    valkey: Store,
    prefix: str,
    colour: Colour,
    bounds: dict[str, Any],
    sent: int,
    message: str,
    count: int,
) -> None:
    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, **bounds)

    asyncio.run(main())
    client = colour.client(valkey.url, prefix)
    with pytest.raises(QueueFull) as full:
        colour.do(client.enqueue_many([Task("x") for _ in range(sent)]))
    assert str(full.value).startswith(message)
    assert (full.value.count, full.value.limit) == (count, bounds["max_tasks"])
    with pytest.raises(QueueFull, match=r"tasks? (is|are) waiting") as full:
        colour.do(client.enqueue_many([Task("x") for _ in range(sent)]))
    assert full.value.count == count


def test_error_of_a_bulk_enqueue_counts_the_bytes_that_the_call_stored(
    valkey: Store, prefix: str, colour: Colour
) -> None:
    size = stored_size(new_task(Task("x"), new_nonce()))

    async def main() -> None:
        async with desk(valkey.url, prefix) as made:
            await bounded(made, max_bytes=3 * size)

    asyncio.run(main())
    client = colour.client(valkey.url, prefix)
    with pytest.raises(QueueFull) as full:
        colour.do(client.enqueue_many([Task("x") for _ in range(4)]))
    assert (full.value.count, len(full.value.handles)) == (3 * size, 2)
    assert f"is full: {3 * size} bytes of messages are stored" in str(full.value)
    assert "the store accepted 2 of the call's 4 tasks" in str(full.value)
