"""A repeated enqueue with the same id runs nothing twice, even if the task has left the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from qsync import ConfigError, DuplicateTask, Mux, Qsync, Task, TaskInfo, current
from qsync.broker import op_values, operator_ops, ops, program_schedule_ops, redis_clients
from qsync.broker.blocking import Broker
from qsync.client import Client
from qsync.new_task import NewTask, new_nonce, new_task
from tests.conftest import Colour
from tests.scripts.model.machine import Scripts
from tests.scripts.model.mistakes import finished_id_accepted_again
from tests.support.queue_driver import BINARIES, DAY, Rig, S
from tests.support.server import bench, until
from tests.support.stores import Store

HOUR = 3600 * S
MOST = 250_000
"""Maximum number of ids that a queue remembers."""


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def chosen(*ids: str, time_us: int = HOUR, **options: Any) -> list[NewTask]:
    """Return encoded tasks with these ids, with a new nonce for each call."""
    nonce = new_nonce()
    return [new_task(Task("t", id=id, **options), nonce, remember_us=time_us) for id in ids]


# Clients


@pytest.mark.faults(88)
def test_finished_task_is_not_run_again_by_its_id(
    valkey: Store, prefix: str, colour: Colour
) -> None:
    client = colour.client(valkey.url, prefix)
    ran: list[str] = []

    async def work(count: int) -> None:
        mux = Mux()

        @mux.handle("t")
        async def handler(task: TaskInfo) -> None:
            ran.append(task.id)

        async with bench(valkey.url, prefix) as b, b.server(mux):
            await until(lambda: len(ran) == count)
            await b.gone("once")

    colour.do(client.enqueue(Task("t", id="once")))
    asyncio.run(work(1))
    with pytest.raises(
        DuplicateTask, match=r"'once' was already enqueued .* less than 3600 s ago"
    ) as got:
        colour.do(client.enqueue(Task("t", id="once")))
    assert (got.value.id, got.value.queue) == ("once", "default")
    with pytest.raises(DuplicateTask):
        colour.do(client.enqueue(Task("t", id="once", delay=5, fairness_key="k")))
    old, new = colour.do(client.enqueue_many([Task("t", id="once"), Task("t", id="new")]))
    assert (old.created, old.id, new.created) == (False, "once", True)
    asyncio.run(work(2))
    assert ran == ["once", "new"]


@pytest.mark.faults(88)
def test_unconfirmed_enqueue_is_not_run_again_by_its_id(
    own_store: Store, prefix: str, colour: Colour
) -> None:
    """A caller may repeat an enqueue whose durability was not confirmed, as after a lost reply."""
    client = colour.client(own_store.url, prefix)
    handle = colour.do(client.enqueue(Task("t", id="a"), durability="fsync"))
    assert handle.confirmed
    with own_store.client() as redis:
        base = f"{{{prefix}:default}}"
        redis.zrem(f"{base}:pending", "a")
        redis.hdel(f"{base}:tasks", "a")
    with pytest.raises(DuplicateTask):
        colour.do(client.enqueue(Task("t", id="a"), durability="fsync"))


def test_remember_ids_is_an_option_of_the_app(valkey: Store, prefix: str) -> None:
    def repeat(value: Any, id: str) -> bool:
        """Return whether the id is accepted again after its task has left the queue."""
        with Qsync(valkey.url, prefix=prefix, remember_ids=value).client() as client:
            client.enqueue(Task("t", id=id))
            with valkey.client() as redis:
                redis.zrem(f"{{{prefix}:default}}:pending", id)
                redis.hdel(f"{{{prefix}:default}}:tasks", id)
            [handle] = client.enqueue_many([Task("t", id=id)])
            return handle.created

    assert repeat(0, "a")
    assert not repeat(5, "b")
    assert not repeat(timedelta(hours=2), "c")


@pytest.mark.parametrize("value", [-1, "1h", None, float("nan"), float("inf"), True])
def test_wrong_time_to_remember_ids_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="remember_ids"):
        Qsync("redis://localhost", remember_ids=value)


def test_tasks_without_a_chosen_id_cost_nothing(valkey: Store, prefix: str) -> None:
    """A Task object that is enqueued twice makes two tasks."""
    with Qsync(valkey.url, prefix=prefix).client() as client:
        task = Task("t")
        handles = client.enqueue_many([task, task, Task("t", delay=1)])
        handles += [client.enqueue(task)]
        assert all(handle.created for handle in handles)
        with valkey.client() as redis:
            assert redis.exists(f"{{{prefix}:default}}:recent") == 0


def test_nested_enqueue_uses_the_time_of_the_app(valkey: Store, prefix: str) -> None:
    """Clients from `current()` use the app's settings for remembered ids and the payload size."""
    app = Qsync(valkey.url, prefix=prefix, remember_ids=0, payload_limit=3_000_000)
    done: list[str] = []

    async def main() -> None:
        mux = Mux()

        @mux.handle("parent")
        async def parent(task: TaskInfo) -> None:
            await current().client.enqueue(Task("child", b"x" * 2_000_000, id="child"))

        @mux.handle("child")
        async def child(task: TaskInfo) -> None:
            done.append(task.id)

        async with app.async_client() as client, app.server(mux):
            for count in (1, 2):
                await client.enqueue(Task("parent"))
                await until(lambda count=count: len(done) == count)  # type: ignore[misc]

    asyncio.run(main())
    with valkey.client() as redis:
        assert redis.exists(f"{{{prefix}:default}}:recent") == 0


@pytest.mark.faults(86)
def test_second_attempt_of_a_parent_does_not_run_a_finished_child_again(
    valkey: Store, prefix: str
) -> None:
    done: list[str] = []
    attempts: list[int] = []

    async def main() -> None:
        mux = Mux()

        @mux.handle("parent")
        async def parent(task: TaskInfo) -> None:
            handle = await current().client.enqueue(Task("child", id="child"))
            await until(lambda: done == ["child"])
            await b.gone("child")
            attempts.append(task.attempt)
            assert handle.id == "child"
            if task.attempt == 1:
                raise ValueError("once more")

        @mux.handle("child")
        async def child(task: TaskInfo) -> None:
            done.append(task.id)

        async with bench(valkey.url, prefix) as b, b.server(mux):
            await b.client.enqueue(Task("parent", id="parent", retry=1, retry_delay=0))
            await b.gone("parent")

    asyncio.run(main())
    assert (done, attempts) == (["child"], [1, 2])


# The script


@pytest.mark.faults(88)
def test_an_id_is_refused_for_exactly_its_time(rig: Rig) -> None:
    assert rig.send(chosen("a")) == [("created", "a")]
    rig.now += 10 * S
    rig.complete(*rig.lease())
    rig.now += HOUR - 11 * S
    assert rig.send(chosen("a")) == [("repeated", "a")]
    rig.now += S
    assert rig.send(chosen("a")) == [("created", "a")]


@pytest.mark.parametrize("state", ["completed", "dead"])
def test_id_is_refused_after_every_kind_of_end(rig: Rig, state: str) -> None:
    rig.send(chosen("a"))
    if state == "dead":
        rig.kill(*rig.lease())
    else:
        rig.complete(*rig.lease(), retention_us=S, result=b"r")
    assert rig.send(chosen("a")) == [("exists", "a")]
    policy = op_values.FetchPolicy(lease_us=S, max_crashes=3, dead_limit=0, dead_age_us=DAY)
    rig.now += 2 * S
    rig.fetch(0, policy=policy)
    assert rig.state("a") is None
    assert rig.send(chosen("a")) == [("repeated", "a")]


def test_repeated_call_of_a_sender_gets_the_first_reply(rig: Rig) -> None:
    call = ops.enqueue(rig.keys, chosen("a"), sender="x", number=1, now_us=rig.now)
    rig.run(call)
    rig.complete(*rig.lease())
    before = rig.dump()
    assert [one.outcome for one in rig.run(call)] == ["created"]
    assert rig.dump() == before


@pytest.mark.parametrize("way", ["cancel", "cancel running", "delete", "purge"])
def test_deleted_task_may_be_enqueued_again(rig: Rig, way: str) -> None:
    rig.send(chosen("a"))
    match way:
        case "cancel":
            rig.cancel("a")
        case "cancel running":
            held = rig.lease()
            rig.cancel("a")
            rig.end_cancelled(*held)
        case "delete":
            rig.delete("pending", "a")
        case _:
            rig.run(operator_ops.purge(rig.keys, "pending", now_us=rig.now))
    assert rig.send(chosen("a")) == [("created", "a")]


def test_a_deleted_queue_forgets_its_ids(rig: Rig) -> None:
    rig.send(chosen("a"))
    rig.complete(*rig.lease())
    assert rig.run(operator_ops.delete_queue(rig.keys)) == 0
    assert rig.dump() == {}
    assert rig.send(chosen("a")) == [("created", "a")]


def test_tick_id_is_not_remembered(rig: Rig) -> None:
    """A schedule records its last tick, so an earlier task with a tick's id does not stop the
    schedule."""
    [task] = rig.tasks("hourly@1")
    rig.send(chosen("hourly@1"))
    rig.complete(*rig.lease())
    assert rig.run(program_schedule_ops.tick(rig.keys, "hourly", 1, task, now_us=rig.now))


def test_a_remembered_id_is_refused_only_to_tasks_that_ask_for_it(rig: Rig) -> None:
    rig.send(chosen("a"))
    rig.complete(*rig.lease())
    batch = [*chosen("a"), *chosen("a", time_us=0), *chosen("a")]
    assert rig.send(batch) == [("repeated", "a"), ("created", "a"), ("exists", "a")]


@pytest.mark.faults(79)
def test_id_is_forgotten_in_an_otherwise_empty_queue(rig: Rig) -> None:
    rig.run(ops.enqueue(rig.keys, chosen("a"), sender="x", number=1, now_us=rig.now))
    rig.complete(*rig.lease())
    rig.now += 700 * S
    rig.fetch(0)
    # The queue no longer stores the sender's last call.
    assert rig.dump().keys() & {"calls", "recent"} == {"recent"}
    assert rig.send(chosen("a")) == [("repeated", "a")]
    rig.now += HOUR
    rig.fetch(0)
    assert "recent" not in rig.dump()


def test_ids_are_removed_in_bounded_steps(rig: Rig) -> None:
    for part in range(3):
        rig.send(chosen(*[f"{part}-{n}" for n in range(400)]))
        rig.complete(*rig.lease())
    key = rig.keys.key("recent")
    assert rig.client.zcard(key) == 1200
    rig.now += HOUR + S
    left = []
    while rig.fetch(0).more:
        left.append(rig.client.zcard(key))
    assert left == [700, 200]
    assert rig.client.exists(key) == 0


def test_oldest_ids_are_removed_beyond_the_limit(rig: Rig) -> None:
    key = rig.keys.key("recent")
    rig.send(chosen("a"))
    ids = [f"id{n}" for n in range(MOST + 300)]
    for at in range(0, len(ids), 10_000):
        part = dict.fromkeys(ids[at : at + 10000], rig.now + HOUR + at)
        rig.client.zadd(key, part)
    rig.now += 2 * S
    while rig.fetch(0).more:
        pass
    assert rig.client.zcard(key) == MOST
    assert rig.score("recent", "a") is None


def test_client_in_another_language_has_the_default(valkey: Store, prefix: str) -> None:
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        client.enqueue(Task("t", id="x"))
    with valkey.client() as redis:
        ends = redis.zscore(f"{{{prefix}:default}}:recent", "x")
        seconds, micro = redis.time()
        assert 3590 < ends / S - seconds - micro / S <= 3600


def test_task_refused_by_a_lock_may_be_enqueued_later(rig: Rig) -> None:
    """The id is not remembered, since no task was enqueued."""
    assert rig.send(chosen("a", unique=True, unique_key="l")) == [("created", "a")]
    assert rig.send(chosen("b", unique=True, unique_key="l")) == [("duplicate", "a")]
    rig.complete(*rig.lease())
    assert rig.send(chosen("b", unique=True, unique_key="l")) == [("created", "b")]


def test_model_detects_a_reused_id(rig: Rig) -> None:
    """The model check finds the planted mistake in four steps."""

    def steps() -> None:
        machine = type("Steps", (Scripts,), {"rig": rig})()
        machine._restart()
        options = {"remember_us": 100 * S}
        machine.enqueue([("a", options)])
        machine.fetch("s", 1, 1)
        machine.complete([0], None)
        machine.enqueue([("a", options)])

    steps()
    with finished_id_accepted_again(), pytest.raises(AssertionError, match="repeated"):
        steps()
