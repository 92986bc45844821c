"""Each action of an operator is recorded in the log of actions."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import Task
from qsync.broker import event_ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.event_ops import MOST_EVENTS, EventRecord, event_bytes
from qsync.errors import InvalidTask
from qsync.inspector import Filter, Inspector, OperatorEvent
from qsync.inspector.event_values import ACTIONS, describe
from qsync.keys import GlobalKeys, QueueKeys
from qsync.limit import limit_rule
from tests.support.inspector_driver import Bed, S, bed
from tests.support.stores import Store


async def every_action(made: Bed, ann: Inspector) -> None:
    """Perform each kind of action that is recorded, once."""
    await made.enqueue(*[Task("t", id=id, delay=60) for id in ("a", "b", "c", "d")])
    await made.serve("one", queues=("other",))
    await ann.run("a")
    await ann.cancel("b")
    await ann.reschedule_task("c", delay=5)
    await ann.edit_task("c", b"new")
    await ann.copy_task("c", delay=60)
    await ann.delete("d")
    await ann.purge("default", "pending")
    await ann.pause("default", why="the provider is down")
    await ann.resume("default")
    await ann.pause_type("mail.send")
    await ann.resume_type("mail.send")
    await ann.set_bounds("default", max_tasks=1000)
    await ann.reset_bounds("default")
    await ann.set_latency_target("default", 60)
    await made.dead(Task("t", id="late"), queue="failed")
    assert await ann.acknowledge_dead("failed") == 1
    await ann.set_weight("default", "acme", 2)
    await ann.reset_weight("default", "acme")
    await ann.set_limit("mail", limit_rule("mail", concurrency=3))
    await ann.reset_limit("mail")
    await made.enqueue(Task("t", limits=["mail"]), queue="closed")
    [held] = await made.lease(free=1, queue="closed")
    await made.hand_back(held, limit="mail", closed_us=3600 * S, queue="closed")
    await ann.open_limit("mail", queue="closed")
    await ann.put_schedule("nightly", Task("t"), cron="0 3 * * *", tz="Europe/Moscow")
    await ann.pause_schedule("nightly", queue="default", why="holidays")
    await ann.resume_schedule("nightly", queue="default")
    await ann.trigger("nightly", queue="default")
    day = datetime(2026, 1, 1, tzinfo=UTC)
    await ann.backfill("nightly", queue="default", start=day, end=day + timedelta(days=1))
    await ann.delete_schedule("nightly", queue="default")
    await ann.quiet("one")
    await ann.stop("one")
    await made.enqueue(Task("t", id="x"), queue="gone")
    while (await ann.forget("gone", force=True)).outcome == "more":
        pass


async def test_each_action_is_recorded_once_with_its_operator(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        began = datetime.now(UTC) - timedelta(seconds=5)
        await every_action(made, made.inspector.acting("ann"))
        found = await made.inspector.events()
        assert sorted(event.action for event in found) == sorted([*ACTIONS, "queue.purge"])
        assert {event.by for event in found} == {"ann"}
        assert all(event.number == 1 for event in found)
        assert [event.at for event in found] == sorted((e.at for e in found), reverse=True)
        assert all(began < event.at for event in found)
        by_action = {(event.action, event.queue): event for event in found}
        assert by_action["task.cancel", "default"].ids == ["b"]
        assert by_action["queue.pause", "default"].detail == "the provider is down"
        assert by_action["limit.set", "default"].subject == "mail"
        assert by_action["schedule.put", "default"].detail == "0 3 * * * (Europe/Moscow)"
        assert by_action["server.stop", None].subject == "one"
        assert by_action["queue.delete", None].subject == by_action["queue.purge", None].subject
        assert by_action["weight.set", "default"].detail == "2"
        # A call that changes nothing is not recorded.
        ann = made.inspector.acting("ann")
        await ann.resume("default")
        await ann.reset_limit("mail")
        await ann.delete_schedule("nightly", queue="default")
        await ann.cancel("nothing")
        assert len(await made.inspector.events()) == len(found)
        # Filters.
        some = await made.inspector.events(action="schedule")
        assert {event.action.partition(".")[0] for event in some} == {"schedule"}
        assert len(some) == 6
        assert [e.action for e in await made.inspector.events(task="c")] == [
            "task.edit",
            "task.reschedule",
        ]
        assert len(await made.inspector.events(queue="default", subject="nightly")) == 6
        assert len(await made.inspector.events(limit=2)) == 2
        assert await made.inspector.events(since=datetime.now(UTC) + timedelta(hours=1)) == []
        assert len(await made.inspector.events(since=began)) == len(found)
        wrong: list[dict[str, Any]] = [{"action": "queue.puse"}, {"limit": 0}, {"limit": 501}]
        for options in wrong:
            with pytest.raises(InvalidTask, match=next(iter(options))):
                await made.inspector.events(**options)


async def test_steps_of_a_bulk_change_are_one_action_with_its_number(
    store: Store, prefix: str
) -> None:
    async with bed(store.url, prefix) as made:
        await made.dead(*[Task("t") for _ in range(600)])
        ann = made.inspector.acting("ann")
        async for _ in ann.steps(ann.run_dead, "default", Filter(error="boom")):
            await made.inspector.pause("default")  # other actions may happen between steps
        [retry] = await made.inspector.events(action="task.retry")
        assert (retry.number, retry.ids, retry.detail) == (600, [], "dead, error: boom")
        async for _ in ann.steps(ann.purge, "default", "pending"):
            pass
        [purge] = await made.inspector.events(action="queue.purge")
        assert (purge.number, purge.by, purge.detail) == (600, "ann", "pending")
        # A change to a page of selected tasks is one action, with all ids; each request is a
        # separate action.
        await made.enqueue(*[Task("t", id=f"{n}", delay=9) for n in range(6)])
        for name, ids in (("ann", "012"), ("bob", "34")):
            one = made.inspector.acting(name, as_one=True)
            for id in ids:
                await one.delete(id)
        found = await made.inspector.events(action="task.delete")
        assert [(e.by, e.number, e.ids) for e in found] == [
            ("bob", 2, ["3", "4"]),
            ("ann", 3, ["0", "1", "2"]),
        ]
        await ann.delete("5")
        secret = Filter(args=(("user.token", "hunter2"),), older_than=90.0, words=("a", "b"))
        assert describe("dead", secret) == "dead, older than: 90 s, args: user.token, words: a b"
        await ann.cancel_matching("default", "scheduled")
        [*_, none] = [e.number for e in await made.inspector.events(action="task.cancel")] or [0]
        assert none == 0, "nothing was left to cancel"


async def test_the_record_is_bounded_in_entries_and_bytes(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        keys = made.keys()
        long = EventRecord("queue.pause", "b" * 1000, "s" * 1000, "…" * 5000)
        calls = [
            event_ops.record_event(
                keys,
                event_bytes(long, b"%08d" % (number // 3), grows=True),
                number=100,
                ids=["i" * 10] * 100,
            )
            for number in range(4 * MOST_EVENTS)
        ]
        for start in range(0, len(calls), 100):
            await made.broker.run_many(calls[start : start + 100])
        with store.client() as client:
            stream = keys.key("events")
            assert MOST_EVENTS - 1 <= client.xlen(stream) <= MOST_EVENTS
            assert client.memory_usage(stream, samples=0) < 2 * 1024 * 1024
        found = await made.inspector.events(queue="default", limit=MOST_EVENTS)
        assert len(found) >= MOST_EVENTS - 1
        assert {event.number for event in found[:-1]} <= {100, 200, 300}
        assert len(found[0].detail.encode()) <= 512


async def test_busy_queue_leaves_no_gap_in_the_events_of_all_queues(
    store: Store, prefix: str
) -> None:
    async with bed(store.url, prefix) as made:
        await made.enqueue(Task("t"), queue="quiet")
        await made.inspector.pause("quiet")
        await made.enqueue(Task("t"), queue="busy")
        for number in range(150):
            await made.inspector.set_latency_target("busy", number + 1)
        found = await made.inspector.events(limit=151)
        assert [event.queue for event in found] == ["busy"] * 150 + ["quiet"]


async def test_the_record_never_prevents_an_action(store: Store, prefix: str) -> None:
    """The action succeeds but is not recorded if the store is full, the user lacks the right, or
    the key has another type."""
    async with bed(store.url, prefix) as made:
        await made.enqueue(Task("t", id="a", delay=60), Task("t", id="b", delay=60))
        with store.client() as client:
            stream = made.keys().key("events")
            client.set(stream, "something else")
            assert (await made.inspector.delete("a")).ok
            client.delete(stream, GlobalKeys(prefix).events)
            client.set(GlobalKeys(prefix).events, "something else")
            assert (await made.inspector.trigger("none", queue="default")).outcome == "not_found"
            await made.serve("one")
            assert (await made.inspector.stop("one")).outcome == "told"
            client.delete(GlobalKeys(prefix).events)
            client.config_set("maxmemory", 1)
            try:
                assert (await made.inspector.pause("default", by="ann")).ok
                assert (await made.inspector.stop("one")).ok
            finally:
                client.config_set("maxmemory", 0)
            assert [e.action for e in await made.inspector.events(queue="default")] == [
                "queue.pause"
            ]
            client.xadd(stream, {"foreign": "entry"})
            assert len(await made.inspector.events(queue="default")) == 1


async def test_streams_are_in_the_slot_of_their_queue(store: Store, prefix: str) -> None:
    keys = QueueKeys(prefix, "mail")
    assert keys.key("events").startswith(f"{{{prefix}:mail}}:")
    async with bed(store.url, prefix) as made:
        await made.enqueue(Task("t"), queue="mail")
        await made.inspector.pause("mail")
        with store.client() as client:
            assert client.exists(keys.key("events")) == 1
            await made.inspector.purge("mail", "pending")
            assert (await made.inspector.forget("mail")).outcome == "done"
            assert client.exists(keys.key("events")) == 0
        [gone] = await made.inspector.events()
    assert isinstance(gone, OperatorEvent)
    assert (gone.action, gone.queue, gone.target) == ("queue.delete", None, "mail")


async def test_full_cluster_node_does_not_prevent_events(cluster: Any, prefix: str) -> None:
    broker = AsyncBroker(redis_clients.parse(cluster.url))
    async with contextlib.aclosing(broker):
        made = Bed(broker, prefix)
        await every_action(made, made.inspector.acting("ann"))
        assert len(await made.inspector.events()) == len(ACTIONS) + 1
