"""A pending task's waiting time counts from when it could run, not from when it was first
enqueued."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from qsync import Qsync, codec
from qsync.broker import op_values, ops, redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.diagnostics.audit import Auditor
from qsync.inspector.queues import latency_of
from qsync.keys import QueueKeys
from qsync.message import Failure
from qsync.server.run_metrics import RunMetrics
from tests.support.queue_driver import BINARIES, LAPSE, Rig, S
from tests.support.stores import Store, wait_until_async

pytestmark = pytest.mark.timeout(120)

AGE = 3600 * S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def oldest(rig: Rig) -> float:
    """Return how long the oldest pending task has been able to run, in seconds."""
    return latency_of(rig.run(views.overview(rig.keys, now_us=rig.now)))


def audited(rig: Rig) -> list[object]:
    async def audit() -> list[object]:
        broker = AsyncBroker(redis_clients.parse(f"unix://{rig.socket}"))
        try:
            return list((await Auditor(broker, prefix="test").audit("queue")).damages)
        finally:
            await broker.aclose()

    return asyncio.run(audit())


def aged(rig: Rig, **options: object) -> op_values.LeaseRef:
    """Lease a task that was enqueued an hour ago."""
    rig.enqueue("a", **options)
    [held] = rig.lease()
    rig.now += AGE
    rig.renew(held)
    return held


def test_handed_back_task_waits_since_the_hand_back(rig: Rig) -> None:
    held = aged(rig)
    rig.hand_back(held)
    since = rig.now
    rig.now += 5 * S
    assert oldest(rig) == 5
    assert audited(rig) == []
    fetched = rig.fetch(server="t")
    assert fetched.since == {"a": since}


def test_task_handed_back_for_a_delay_waits_since_it_is_due(rig: Rig) -> None:
    rig.hand_back(aged(rig), delay_us=60 * S)
    due = rig.now + 60 * S
    rig.now = due + 3 * S
    rig.fetch(0)
    assert oldest(rig) == 3
    assert rig.fetch().since == {"a": due}


def test_rerun_of_a_dead_task_waits_since_the_rerun(rig: Rig) -> None:
    rig.kill(aged(rig))
    rig.now += AGE
    assert rig.rerun("a", "dead") == ("ok", "")
    since = rig.now
    rig.now += 2 * S
    assert oldest(rig) == 2
    assert rig.fetch().since == {"a": since}


@pytest.mark.parametrize("state", ["scheduled", "retry"])
def test_task_run_before_its_time_waits_since_then(rig: Rig, state: str) -> None:
    if state == "scheduled":
        rig.enqueue("a", delay=7200)
    else:
        due = Failure(attempts=1, error="boom", failed_at_us=rig.now, due_us=rig.now + 2 * AGE)
        rig.enqueue("a")
        rig.retry(*rig.lease(), delay_us=2 * AGE, failure=codec.encode(due))
    rig.now += AGE
    assert rig.rerun("a", state) == ("ok", "")
    rig.now += 4 * S
    assert oldest(rig) == 4


def test_retried_task_waits_since_its_attempt_is_due(rig: Rig) -> None:
    held = aged(rig)
    due = Failure(attempts=1, error="boom", failed_at_us=rig.now, due_us=rig.now + S)
    rig.retry(held, delay_us=S, failure=codec.encode(due))
    rig.now += 10 * S
    rig.fetch(0)
    assert oldest(rig) == 9


def test_task_of_a_crashed_server_waits_since_its_recovery(rig: Rig) -> None:
    aged(rig)
    rig.now += LAPSE
    assert rig.fetch(0, server="t").recovered == 1
    since = rig.now
    rig.now += 6 * S
    assert oldest(rig) == 6
    assert rig.fetch(server="t").since == {"a": since}


def test_repeated_fetch_returns_the_same_wait_time(rig: Rig) -> None:
    rig.hand_back(aged(rig))
    first = rig.fetch(number=1000)
    again = rig.fetch(number=1000)
    assert again.since == first.since == {"a": rig.now}


def test_handed_back_tasks_at_the_head_do_not_hide_older_tasks(rig: Rig) -> None:
    """The tasks that are handed back go to the head of the queue, and are more than a view reads in
    full."""
    rig.enqueue(*(f"head-{n}" for n in range(100)))
    held = rig.lease(100)
    rig.enqueue("old")
    rig.now += 20 * S
    rig.hand_back(*held)
    rig.now += S
    assert oldest(rig) == 21


def test_task_that_was_never_handed_back_has_no_stored_time(rig: Rig) -> None:
    rig.enqueue("a", "b")
    rig.enqueue("later", delay=1)
    rig.now += 2 * S
    fetched = rig.fetch()
    assert (len(fetched.ids), fetched.since) == (3, {})
    assert "progress" not in rig.dump()


def test_wait_time_is_separate_from_progress_and_ends_with_the_task(rig: Rig) -> None:
    rig.enqueue("a", "b", "c", retention=60)
    rig.hand_back(*rig.lease())
    shown = rig.status("a")
    assert shown is not None
    assert shown.progress is None
    a, b, c = rig.lease()
    rig.run(ops.progress(rig.keys, [(*b, 1, 2)]))
    rig.complete(a, b, retention_us=60 * S)
    rig.hand_back(c)
    rig.cancel("c", 60 * S)
    assert rig.dump()["progress"] == {b"b": b"1/2"}


def test_key_of_another_type_stops_nothing(rig: Rig) -> None:
    held = aged(rig)
    rig.client.set(rig.keys.key("progress"), "no hash")
    assert rig.hand_back(held) == ["ok"]
    assert oldest(rig) == 3600
    assert rig.fetch().ids == ["a"]


def test_wait_histogram_counts_from_the_hand_back(store: Store, prefix: str) -> None:
    """As in a deploy, a server stops while it runs a task that is an hour old, and another server
    starts."""
    app, started = Qsync(store.url, prefix=prefix), 0

    @app.task(name="long", retention=60)
    async def long() -> None:
        nonlocal started
        started += 1
        if started == 1:
            await asyncio.Event().wait()

    async def work() -> float:
        async with app:
            made = await long.enqueue()
            async with app.server(shutdown_timeout=0.1):
                await wait_until_async(lambda: started == 1, message="it does not run")
            with store.client() as client:
                key = QueueKeys(prefix, "default").key("tasks")
                message = client.hget(key, made.id)
                client.hset(key, made.id, message[:3] + (1).to_bytes(8) + message[11:])
            server = app.server(shutdown_timeout=0.1)
            server.run_metrics = run_metrics = RunMetrics(server.mux.types)
            async with server:
                await made.result(30)
            return sum(row.wait_s for row in run_metrics.rows())

    assert 0 < asyncio.run(work()) < 60
