"""The inspector shows and changes the tasks of a queue that the tests fill without a server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from qsync import ConfigError, InvalidTask, Qsync, Task, codec
from qsync.broker import (
    limit_ops,
    operator_ops,
    ops,
    program_schedule_ops,
    registry_ops,
    type_ops,
)
from qsync.broker.op_values import Retried
from qsync.broker.script import load
from qsync.inspector import Filter, Inspector, Page, Step
from qsync.keys import COUNTERS, QUEUE_KEYS, GlobalKeys
from qsync.limit import LimitRule
from qsync.message import Failure, Result
from qsync.state import STORED, TaskState
from tests.support.inspector_driver import Bed, S, bed, failure
from tests.support.stores import Cluster, Store, wait_until_async

Work = Callable[[Bed], Awaitable[None]]


def run(store: Store | Cluster, prefix: str, work: Work) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await work(made)

    asyncio.run(main())


def tasks(*ids: str, **options: Any) -> list[Task]:
    return [Task(options.pop("type", "t"), id=id, **options) for id in ids]


async def each_state(bed: Bed) -> None:
    """Create a task in each state, with the first letter of the state as its id, and one more
    pending task."""
    await bed.dead(Task("t", id="d", retry=0), error="boom\nthe trace")
    await bed.enqueue(Task("t", id="c", retention=60))
    await bed.complete(await bed.lease(), 60, codec.encode(Result(codec.encode([1, 2]))))
    await bed.enqueue(Task("t", id="r"))
    await bed.retry(await bed.lease(), "no luck", 100)
    await bed.enqueue(Task("t", {"n": 1}, id="a", timeout=5, headers={"h": "v"}))
    await bed.lease(server="w")
    await bed.enqueue(Task("t", b"p", id="p"), Task("u", id="q"), Task("t", id="s", delay=1000))


BY_STATE = {"scheduled": "s", "pending": "p", "active": "a", "retry": "r", "completed": "c",
            "dead": "d"}  # fmt: skip


# Queues


def test_overview_lists_every_queue(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        empty = await bed.inspector.overview()
        assert (empty.queues, empty.servers) == ([], [])
        await each_state(bed)
        await bed.enqueue(Task("t", id="x"), queue="other")
        await bed.serve("w")
        seen = await bed.inspector.overview()
        assert [queue.name for queue in seen.queues] == ["default", "other"]
        assert seen.servers == ["w"]
        queue = seen.queues[0]
        expected = dict.fromkeys(STORED, 1) | {TaskState.PENDING: 2, TaskState.CANCELLED: 0}
        expected[TaskState.LIMITED] = 0
        assert (queue.states, queue.total) == (expected, 7)
        assert queue.bytes is not None
        assert queue.bytes > 500
        assert 0 < queue.latency < 60
        assert set(queue.counters) == set(COUNTERS)
        assert (queue.counters["enqueued"], queue.today["enqueued"]) == (7, 7)
        assert queue.days == []
        assert msgspec.json.decode(msgspec.json.encode(seen))["queues"][1]["name"] == "other"

    run(store, prefix, work)


def test_missing_queues_and_tasks_are_reported_missing(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        assert await inspector.queue("none") is None
        assert await inspector.task("none") is None
        assert await inspector.find("none") == []
        assert await inspector.server("none") is None
        assert await inspector.schedule("none", queue="default") is None
        page = await inspector.tasks("none", "dead")
        assert (page.tasks, page.cursor, page.total) == ([], None, 0)
        changes = [
            await inspector.pause("none"), await inspector.resume("none"),
            await inspector.run("none"), await inspector.cancel("none"),
            await inspector.delete("none"), await inspector.quiet("none"),
            await inspector.stop("none"), await inspector.trigger("none", queue="default"),
            await inspector.pause_schedule("none", queue="default"),
            await inspector.resume_schedule("none", queue="default"),
            await inspector.forget_schedule("none", queue="default"),
        ]  # fmt: skip
        assert {change.outcome for change in changes} == {"not_found"}
        assert (await inspector.forget("none")).outcome == "not_found"
        assert (await inspector.explain("none")).reason == "not_found"
        assert await inspector.purge("none", "dead") == Step(scanned=0, done=0, cursor=None)
        assert await inspector.run_dead("none") == Step(scanned=0, done=0, cursor=None)

    run(store, prefix, work)
    with store.client() as client:
        assert client.keys(f"*{prefix}*") == [], "looking writes nothing"


def test_change_of_nothing_writes_nothing(store: Store, prefix: str) -> None:
    """A queue that does not exist must not come into being, since nothing would remove its keys."""

    async def work(bed: Bed) -> None:
        inspector, rule = bed.inspector, LimitRule(concurrency=1)
        changes = [
            await inspector.set_limit("x", rule, queue="none"),
            await inspector.reset_limit("x", queue="none"),
            await inspector.reset_limit("x:1", queue="none"),
            await inspector.open_limit("x", queue="none"),
            await inspector.pause_type("t", queue="none"),
            await inspector.resume_type("t", queue="none"),
            await inspector.set_bounds("none", max_tasks=1), await inspector.reset_bounds("none"),
            await inspector.set_weight("none", "k", 2), await inspector.reset_weight("none", "k"),
            await inspector.set_latency_target("none", 1), await inspector.run("a", queue="none"),
            await inspector.edit_task("a", {}, queue="none"),
            await inspector.copy_task("a", {}, queue="none"),
            await inspector.reschedule_task("a", queue="none", delay=1),
            await inspector.delete_schedule("s", queue="none"),
        ]  # fmt: skip
        assert {change.outcome for change in changes} == {"not_found"}
        assert await inspector.acknowledge_dead("none") == 0
        for state in ("pending", "limited", "scheduled", "retry"):
            assert (await inspector.cancel_matching("none", state)).done == 0
            assert (await inspector.delete_matching("none", state)).done == 0
        # The calls themselves write nothing either, if the queue has gone since it was read.
        keys = bed.keys("none")
        await bed.broker.run(limit_ops.put_limit_rules(keys, {}))
        await bed.broker.run(limit_ops.set_limit(keys, "x", None, "me"))
        await bed.broker.run(type_ops.resume_type(keys, "t"))

    run(store, prefix, work)
    with store.client() as client:
        assert client.keys(f"*{prefix}*") == []


def test_counters_are_kept_by_day(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a", "b"))
        now = (await bed.inspector.overview()).at
        today = int(now.timestamp()) // 86_400
        with store.client() as client:
            key = bed.keys().key("stats")
            client.hset(key, f"completed:{today - 1}", 7)
            client.hset(key, f"completed:{today - 89}", 1)
            client.hset(key, f"completed:{today - 90}", 99)
        queue = await bed.inspector.queue("default", days=90)
        assert queue is not None
        told = [((now.date() - day.day).days, day.counters) for day in queue.days]
        assert [ago for ago, _ in told] == [0, 1, 89]
        assert [counters["completed"] for _, counters in told] == [0, 7, 1]
        assert told[0][1]["enqueued"] == 2
        for days in (-1, 91, 1.5, True):
            with pytest.raises(InvalidTask, match="days"):
                await bed.inspector.queue("default", days=days)  # type: ignore[arg-type]

    run(store, prefix, work)


def test_latency_counts_from_when_a_task_could_run(store: Store, prefix: str) -> None:
    """The latency of a task that was scheduled or has failed counts only from its due time."""

    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="later", delay=3600))
        assert (await bed.inspector.overview()).queues[0].latency == 0
        await bed.inspector.run("later")
        with store.client() as client:
            message = client.hget(bed.keys().key("tasks"), "later")
            early = message[:3] + (1_000_000).to_bytes(8) + message[11:]
            client.hset(bed.keys().key("tasks"), "later", early)
            # The latency counts from `run`, whose time is stored under the key `progress`.
            assert (await bed.inspector.overview()).queues[0].latency < 60
            client.delete(bed.keys().key("progress"))
        now = (await bed.inspector.overview()).at.timestamp()
        latency = (await bed.inspector.overview()).queues[0].latency
        assert latency == pytest.approx(now - 1 - 3600, abs=30)

    run(store, prefix, work)


def test_rate_is_known_after_second_reading(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks(*map(str, range(100))))
        assert (await bed.inspector.overview()).queues[0].rate is None
        await bed.complete(await bed.lease(), 60, b"")
        rates: list[float] = []

        async def told() -> bool:
            rates.extend(filter(None, [(await bed.inspector.overview()).queues[0].rate]))
            return bool(rates)

        await wait_until_async(told, timeout=10)
        assert 100 / 10 < rates[0] <= 100 / 0.2

    run(store, prefix, work)


def test_queue_is_paused_and_resumed(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a"))
        before = (await bed.inspector.overview()).at
        assert (await bed.inspector.pause("default", by="ann", why="deploy")).ok
        [queue] = (await bed.inspector.overview()).queues
        assert queue.paused is not None
        assert (queue.paused.by, queue.paused.why) == ("ann", "deploy")
        since = queue.paused.at
        assert since is not None
        assert since >= before
        assert await bed.lease() == []
        assert (await bed.inspector.pause("default", by="bob", why="more")).ok
        [queue] = (await bed.inspector.overview()).queues
        assert queue.paused is not None
        assert (queue.paused.by, queue.paused.at) == ("bob", since)
        assert (await bed.inspector.resume("default")).ok
        [queue] = (await bed.inspector.overview()).queues
        assert queue.paused is None
        assert (await bed.inspector.resume("default")).outcome == "not_found"
        assert len(await bed.lease()) == 1

    run(store, prefix, work)


def test_pause_written_by_another_program_is_shown(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a"))
        await bed.broker.run(operator_ops.pause(bed.keys(), b"\xffby hand"))
        [queue] = (await bed.inspector.overview()).queues
        assert queue.paused is not None
        assert (queue.paused.by, queue.paused.why) == ("", "\\xffby hand")

    run(store, prefix, work)


# Lists


@pytest.mark.parametrize("state", BY_STATE)
def test_each_state_is_listed(store: Store, prefix: str, state: str) -> None:
    async def work(bed: Bed) -> None:
        await each_state(bed)
        page = await bed.inspector.tasks("default", state)
        row = page.tasks[0]
        assert (row.id, row.queue, row.state, row.type) == (BY_STATE[state], "default", state, "t")
        assert page.cursor is None
        assert page.total == page.scanned == len(page.tasks)
        times = {
            "due_at": ("scheduled", "retry"), "lease_until": ("active",), "died_at": ("dead",),
            "kept_until": ("completed",),
        }  # fmt: skip
        for field, states in times.items():
            assert (getattr(row, field) is not None) == (state in states), field
        assert row.server == ("w" if state == "active" else None)
        errors = {"dead": "boom", "retry": "no luck"}
        assert (row.error, row.attempts) == (errors.get(state), int(state in errors))
        assert row.ended_attempts == int(state in (*errors, "completed"))
        [found] = await bed.inspector.find(row.id)
        assert found == row

    run(store, prefix, work)


async def pages(inspector: Inspector, state: str, **options: Any) -> list[Page]:
    found = [await inspector.tasks("default", state, **options)]
    while found[-1].cursor is not None:
        options["cursor"] = found[-1].cursor
        found.append(await inspector.tasks("default", state, **options))
    return found


def ids(found: list[Page]) -> list[str]:
    return [row.id for page in found for row in page.tasks]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("state", ["pending", "scheduled"])
def test_pages_contain_each_task_once_in_order(
    store: Store, prefix: str, state: str, newest_first: bool
) -> None:
    """Tasks with the same score are ordered by the bytes of their ids."""

    async def work(bed: Bed) -> None:
        names = [f"{letter}{n}" for letter in "~!aA-_0" for n in range(9)]
        delay = 100 if state == "scheduled" else None
        await bed.enqueue(*[Task("t", id=name, delay=delay) for name in names])
        found = await pages(bed.inspector, state, limit=10, newest_first=newest_first)
        expected = names if state == "pending" else sorted(names, key=str.encode)
        assert ids(found) == (expected[::-1] if newest_first else expected)
        assert {page.total for page in found} == {63}
        assert [len(page.tasks) for page in found] == [10] * 6 + [3]

    run(store, prefix, work)


def test_cursor_stays_valid_while_tasks_change(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks(*[f"{n:02}" for n in range(30)]))
        first = await bed.inspector.tasks("default", "pending", limit=10)
        for id in ("00", "05", "09", "15"):  # the cursor names task 09
            assert (await bed.inspector.delete(id, state="pending")).ok
        await bed.enqueue(*tasks("new"))
        rest = await pages(bed.inspector, "pending", limit=10, cursor=first.cursor)
        assert ids(rest) == [f"{n:02}" for n in range(10, 30) if n != 15] + ["new"]

    run(store, prefix, work)


def test_a_page_of_large_tasks_is_short(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*[Task("t", b"x" * 1_000_000, id=f"{n:02}") for n in range(20)])
        found = await pages(bed.inspector, "pending", limit=100)
        assert ids(found) == [f"{n:02}" for n in range(20)]
        assert len(found) > 4
        row = found[0].tasks[0]
        assert (row.type, row.retry) == ("t", 3)
        assert row.size > 1_000_000

    run(store, prefix, work)


def test_filters_select_tasks(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.dead(*[Task("mail.send", id=f"m{n}") for n in range(5)], error="Timeout: slow")
        await bed.dead(*[Task("mail", id=f"n{n}") for n in range(5)], error="KeyError: 'x'\n  line")
        await bed.dead(*[Task("report", b"y" * 50_000, id=f"r{n}") for n in range(5)], error="ü")

        async def found(**options: Any) -> set[str]:
            given = await pages(bed.inspector, "dead", limit=3, filter=Filter(**options))
            assert len(set(ids(given))) == len(ids(given))
            return {id[0] for id in ids(given)}

        assert await found() == set("mnr")
        assert await found(type="mail") == {"n"}
        assert await found(type="mail*") == {"m", "n"}
        assert await found(type="*.sen?") == {"m"}
        assert await found(error="TIMEOUT") == {"m"}
        assert await found(error="LINE") == {"n"}, "any line of the error may match"
        assert await found(error="Ü") == {"r"}
        assert await found(id="2") == set("mnr")
        assert await found(type="report", error="slow") == set()
        assert await found(older_than=3600) == set()
        assert await found(newer_than=3600) == set("mnr")
        assert await found(older_than=0.0, newer_than=3600) == set("mnr")

    run(store, prefix, work)


def test_filter_without_matches_scans_a_bounded_part_per_call(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks(*map(str, range(2500))))
        found = await pages(bed.inspector, "pending", filter=Filter(type="none"))
        assert [page.scanned for page in found] == [1000, 1000, 500]
        assert ids(found) == []
        one = await bed.inspector.tasks("default", "pending", filter=Filter(id="2499"), limit=1)
        assert (one.tasks, one.scanned) == ([], 1000)

    run(store, prefix, work)


def test_age_of_a_waiting_task_counts_from_its_enqueue(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a"))
        for filter, expected in (
            (Filter(older_than=3600), []),
            (Filter(newer_than=3600), ["a"]),
        ):
            page = await bed.inspector.tasks("default", "pending", filter=filter)
            assert ids([page]) == expected

    run(store, prefix, work)


BAD_CURSORS = [
    "", "x", "é", "AAAA", base64.urlsafe_b64encode(codec.encode(["nan", b"a", 0])).decode(),
    base64.urlsafe_b64encode(codec.encode(["1e", b"a", 0])).decode(),
    base64.urlsafe_b64encode(codec.encode(["1_0", b"a", 0])).decode(),
    base64.urlsafe_b64encode(codec.encode([1, b"a", 0])).decode(),
]  # fmt: skip


@pytest.mark.parametrize("cursor", BAD_CURSORS)
def test_cursor_of_another_listing_is_refused(valkey: Store, prefix: str, cursor: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await bed.dead(*tasks("d"))
        for call in (
            inspector.tasks("default", "dead", cursor=cursor),
            inspector.purge("default", "dead", cursor=cursor),
            inspector.run_dead("default", cursor=cursor),
            inspector.delete_dead("default", cursor=cursor),
        ):
            with pytest.raises(InvalidTask, match="cursor"):
                await call
        assert (await inspector.tasks("default", "dead")).total == 1

    run(valkey, prefix, work)


def test_invalid_arguments_are_refused(valkey: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        for call, match in (
            (inspector.tasks("default", "gone"), "state: 'gone' is not one of"),
            (inspector.tasks("default", "dead", limit=0), "limit: 0"),
            (inspector.tasks("default", "dead", limit=101), "limit: 101"),
            (inspector.tasks("a b", "dead"), "queue: 'a b'"),
            (inspector.task("a b"), "id: 'a b'"),
            (inspector.find(""), "id: ''"),
            (inspector.run("a", state="odd"), "state: 'odd'"),
            (inspector.purge("default", "active"), "active tasks are running"),
            (inspector.explain("a", measure=-1), "measure"),
        ):
            with pytest.raises(InvalidTask, match=match):
                await call

    run(valkey, prefix, work)


# Single tasks


def test_task_detail_has_every_field(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await each_state(bed)
        active = await bed.inspector.task("a")
        assert active is not None
        assert active.value() == {"n": 1}
        assert (active.shown.kind, active.shown.text) == ("value", '{\n  "n": 1\n}')
        assert (active.headers, active.timeout, active.attempt) == ({"h": "v"}, 5, 1)
        assert active.token is not None
        assert active.token.startswith("w/")
        assert [event.what for event in active.events] == ["enqueued", "leased until"]
        dead = await bed.inspector.task("d")
        assert dead is not None
        assert (dead.error, dead.attempt) == ("boom\nthe trace", 1)
        [attempt] = dead.history
        assert (attempt.number, attempt.server, attempt.error) == (1, "s", "boom")
        assert [event.what for event in dead.events] == ["failed", "enqueued", "died"]
        done = await bed.inspector.task("c")
        assert done is not None
        assert done.result is not None
        assert (done.result.kind, done.result.text) == ("value", "[\n  1,\n  2\n]")
        assert [event.what for event in done.events] == ["enqueued", "completed", "kept until"]
        waiting = await bed.inspector.task("p")
        assert waiting is not None
        assert (waiting.payload, waiting.shown.kind, waiting.shown.text) == (b"p", "text", "p")
        for id in BY_STATE.values():
            assert msgspec.json.encode(await bed.inspector.task(id))

    run(store, prefix, work)


def test_unreadable_message_is_shown_as_bytes(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a", "b"))
        with store.client() as client:
            client.hset(bed.keys().key("tasks"), "a", b"\x93\xff<script>")
            client.hdel(bed.keys().key("tasks"), "b")
        page = await bed.inspector.tasks("default", "pending")
        assert [(row.type, row.enqueued_at) for row in page.tasks] == [("", None)] * 2
        spoilt, lost = await bed.inspector.task("a"), await bed.inspector.task("b")
        assert spoilt is not None
        assert (spoilt.payload, spoilt.shown.kind) == (b"\x93\xff<script>", "binary")
        assert spoilt.message_error
        assert lost is not None
        assert lost.message_error == "the store has lost it"
        assert (await bed.inspector.explain("a")).reason == "no_server"
        assert (await bed.inspector.overview()).queues[0].latency == 0

    run(store, prefix, work)


@pytest.mark.faults(76)
def test_waiting_task_is_run_now(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await each_state(bed)
        inspector = bed.inspector
        for id, state in (("s", "scheduled"), ("r", "retry"), ("d", "dead")):
            other = "retry" if state == "dead" else "dead"
            late = await inspector.run(id, state=other)
            assert (late.outcome, late.state) == ("too_late", state), "the task is in another state"
            done = await inspector.run(id, state=state)
            assert (done.outcome, done.state) == ("done", "pending")
            again = await inspector.run(id, state=state)
            assert (again.outcome, again.state) == ("too_late", "pending")
        for id, state in (("a", "active"), ("c", "completed"), ("p", "pending")):
            refused = await inspector.run(id)
            assert (refused.outcome, refused.state) == ("too_late", state)

    run(store, prefix, work)


def test_retried_dead_task_has_all_attempts_and_its_history(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.dead(Task("t", id="d", retry=0), error="first")
        assert (await bed.inspector.run("d")).ok
        again = await bed.inspector.task("d")
        assert again is not None
        assert (again.attempt, again.error, again.row.attempts) == (1, None, 0)
        assert [one.error for one in again.history] == ["first"]

    run(store, prefix, work)


def test_retry_of_a_task_whose_lock_was_taken_is_a_duplicate(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.dead(Task("t", id="old", unique=True))
        await bed.enqueue(Task("t", id="new", unique=True))
        change = await bed.inspector.run("old", state="dead")
        assert (change.outcome, change.holder, change.ok) == ("duplicate", "new", False)
        told = await bed.inspector.explain("old")
        assert (told.reason, told.also, told.holder) == ("dead", ["duplicate"], "new")
        detail = await bed.inspector.task("old")
        assert detail is not None
        assert detail.lock_holder == "new"
        twin = await bed.inspector.explain(Task("t", unique=True))
        assert (twin.reason, twin.holder, twin.id) == ("duplicate", "new", "new")
        assert twin.sentence.startswith("Duplicate of task new. Waiting: 1st of 1")
        by_id = await bed.inspector.explain(Task("other", id="new"))
        assert (by_id.reason, by_id.holder) == ("duplicate", "new")
        free = await bed.inspector.explain(Task("free", unique=True))
        assert free.reason == "not_found"

    run(store, prefix, work)


@pytest.mark.faults(76)
def test_tasks_are_cancelled_and_deleted(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await each_state(bed)
        inspector = bed.inspector
        for id in ("s", "p", "r"):
            assert (await inspector.cancel(id)).outcome == "done"
            assert await inspector.task(id) is None
        running = await inspector.cancel("a")
        assert (running.outcome, running.state, running.server) == ("told", "active", "w")
        with store.client() as client:
            [order] = client.lrange(GlobalKeys(prefix).inbox("w"), 0, -1)
        assert codec.decode(order) == ["cancel", "default", "a"]
        for id, state in (("c", "completed"), ("d", "dead")):
            assert (await inspector.cancel(id)).outcome == "too_late"
            assert (await inspector.delete(id, state="pending")).outcome == "too_late"
            assert (await inspector.delete(id, state=state)).outcome == "done"
            assert (await inspector.delete(id, state=state)).outcome == "not_found"
        refused = await inspector.delete("a")
        assert (refused.outcome, refused.state) == ("refused", "active")
        assert (await inspector.delete("q")).ok

    run(store, prefix, work)


def test_a_waiting_task_is_rescheduled(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await each_state(bed)
        inspector = bed.inspector
        for id, state in (("s", "scheduled"), ("r", "retry")):
            change = await inspector.reschedule_task(id, delay=900)
            assert (change.outcome, change.state) == ("done", state)
            detail = await inspector.task(id)
            assert detail is not None
            assert detail.row.due_at == change.at
        for id, state in (("p", "pending"), ("a", "active"), ("c", "completed"), ("d", "dead")):
            refused = await inspector.reschedule_task(id, delay=900)
            assert (refused.outcome, refused.state) == ("refused", state)
            assert f"the task is {state}; " in (refused.why or "")
        assert (await inspector.reschedule_task("none", delay=9)).outcome == "not_found"
        deadline = datetime.now(UTC) + timedelta(hours=1)
        await bed.enqueue(Task("t", id="e", delay=60, deadline=deadline))
        before = await inspector.task("e")
        for late in (
            await inspector.reschedule_task("e", delay=3601),
            await inspector.reschedule_task("e", delay=3601, dry_run=True),
            await inspector.edit_task("e", b"new", delay=3601),
            await inspector.edit_task("e", b"new", delay=3601, dry_run=True),
        ):
            assert (late.outcome, late.state) == ("refused", "scheduled")
            assert "not before its deadline" in str(late.why)
        assert (await inspector.reschedule_task("e", delay=9, dry_run=True)).ok
        assert await inspector.task("e") == before
        assert (await inspector.edit_task("e", b"new", delay=3500)).ok

    run(store, prefix, work)


# Many tasks


async def all_steps(bed: Bed, step: Any, *args: Any, **options: Any) -> Step:
    total = Step(scanned=0, done=0, cursor=None)
    async for made in bed.inspector.steps(step, *args, **options):
        assert made.scanned <= 250
        total += made
    return total


def test_dead_tasks_are_retried_by_a_filter_in_steps(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await bed.dead(*[Task("a", id=f"a{n}") for n in range(700)], error="x")
        for id in ("l1", "l2"):
            await bed.dead(Task("b", id=id, unique=True), error="y")
        await bed.dead(*[Task("b", id=f"b{n}") for n in range(498)], error="y")
        await bed.enqueue(Task("b", id="twin", unique=True))
        before = await inspector.queue("default")
        assert before is not None
        total = await all_steps(bed, inspector.run_dead, "default", Filter(type="b", error="Y"))
        # Two of the tasks were not run because a third task holds their lock.
        assert (total.scanned, total.done, total.duplicate) == (1200, 498, 2)
        after = await inspector.queue("default")
        assert after is not None
        assert after.states[TaskState.DEAD] == 702
        assert after.states[TaskState.PENDING] == 499
        total = await all_steps(bed, inspector.delete_dead, "default", Filter(type="a"))
        assert (total.scanned, total.done) == (702, 700)
        rest = await inspector.tasks("default", "dead")
        assert {row.type for row in rest.tasks} == {"b"}

    run(store, prefix, work)


def test_two_dead_tasks_with_one_lock_do_not_both_run(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        for id in ("one", "two"):
            await bed.dead(Task("t", id=id, unique=True))
        step = await bed.inspector.run_dead("default")
        assert (step.done, step.duplicate) == (1, 1)
        assert (await bed.inspector.explain("two")).holder == "one"

    run(store, prefix, work)


def test_task_that_dies_again_is_not_retried_twice(store: Store, prefix: str) -> None:
    """If such tasks were retried again, a task that fails immediately would be retried forever."""

    async def work(bed: Bed) -> None:
        await bed.dead(*tasks(*[f"{n:03}" for n in range(350)]))
        first = await bed.inspector.run_dead("default")
        assert (first.done, first.cursor is None) == (250, False)
        await bed.kill(await bed.lease(), "again")
        second = await bed.inspector.run_dead("default", cursor=first.cursor)
        assert (second.done, second.cursor) == (100, None)

    run(store, prefix, work)


def test_waiting_tasks_are_run_by_a_filter_in_steps(store: Store, prefix: str) -> None:
    """Tasks that fail again in the meantime are skipped, because otherwise the steps would never
    end."""

    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await bed.enqueue(*tasks(*[f"{n:03}" for n in range(350)]))
        for _ in range(2):
            await bed.retry(await bed.lease(), "x", 3600)
        first = await inspector.run_waiting("default", "retry", Filter(error="X"))
        assert (first.scanned, first.done, first.cursor is None) == (250, 250, False)
        again = codec.encode(Failure(2, "x", int((await inspector.overview()).at.timestamp() * S)))
        rows = [Retried(*one, 7200 * S, again) for one in await bed.lease()]
        await bed.broker.run(ops.retry(bed.keys(), rows))
        rest, cursor = 0, first.cursor
        async for step in inspector.steps(
            inspector.run_waiting, "default", "retry", Filter(error="X"), cursor=cursor
        ):
            rest += step.done
        assert rest == 100
        await bed.enqueue(*[Task("t", id=f"s{n}", delay=600) for n in range(3)])
        found = await inspector.run_waiting("default", "scheduled", Filter(id="s1"))
        assert (found.scanned, found.done, found.cursor) == (3, 1, None)
        for state in ("dead", "pending", "active", "none"):
            with pytest.raises(InvalidTask, match="state"):
                await inspector.run_waiting("default", state)

    run(store, prefix, work)


@pytest.mark.faults(76)
def test_changes_of_a_concurrent_caller_are_counted(store: Store, prefix: str) -> None:
    """Another operator deletes a task between a step's read and its change."""

    async def work(bed: Bed) -> None:
        await bed.dead(*tasks("a", "b", "c"))

        class Slow(Inspector):
            async def _part(self, *args: Any) -> Any:
                found = await super()._part(*args)
                assert (await bed.inspector.delete("b")).ok
                await bed.enqueue(*tasks("b"))
                return found

        step = await Slow(bed.broker, prefix=prefix).run_dead("default")
        assert (step.done, step.too_late) == (2, 1)
        assert (await bed.inspector.queue("default")).states[TaskState.PENDING] == 3  # type: ignore[union-attr]

    run(store, prefix, work)


@pytest.mark.parametrize("state", ["pending", "scheduled", "dead", "completed", "retry"])
def test_purge_deletes_the_tasks_of_a_state(store: Store, prefix: str, state: str) -> None:
    async def work(bed: Bed) -> None:
        names = [f"{n:04}" for n in range(1200)]
        options = {"delay": 100} if state == "scheduled" else {}
        made = [Task("t", id=n, unique=True, unique_key=n, **options) for n in names]  # type: ignore[arg-type]
        if state == "dead":
            await bed.dead(*made)
        else:
            await bed.enqueue(*made)
        if state in ("completed", "retry"):
            while held := await bed.lease():
                if state == "retry":
                    await bed.retry(held, "no", 100)
                else:
                    await bed.complete(held, 100, b"r")
        assert (await bed.inspector.tasks("default", state)).total == 1200
        first = await bed.inspector.purge("default", state)
        assert (first.done, first.cursor is None) == (100, False)
        rest = await all_steps(bed, bed.inspector.purge, "default", state, cursor=first.cursor)
        assert (rest.done, rest.cursor) == (1100, None)
        assert await left(bed) == {}

    run(store, prefix, work)


async def left(bed: Bed, *kept: str) -> dict[str, Any]:
    """Return the non-empty keys of the queue in which a task might be left."""
    found = {}
    for name, (kind, _) in QUEUE_KEYS.items():
        waits = {"wake", "idle", "fetches"}
        figures = {"stats", "type_reports", "type_stats"}
        if name not in {"meta", "ticks", "calls", "fairness", *figures, *waits, *kept}:
            size = await bed.broker.ask("ZCARD" if kind == "zset" else "HLEN", bed.keys().key(name),
                                        key=bed.keys().base)  # fmt: skip
            if size:
                found[name] = size
    return found


def test_purge_ends_with_tasks_present_at_its_start(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks(*map(str, range(150))))
        first = await bed.inspector.purge("default", "pending")
        await bed.enqueue(*tasks("new1", "new2"))
        second = await bed.inspector.purge("default", "pending", cursor=first.cursor)
        assert (second.done, second.cursor) == (50, None)
        page = await bed.inspector.tasks("default", "pending")
        assert [row.id for row in page.tasks] == ["new1", "new2"]

    run(store, prefix, work)


def test_purge_of_large_tasks_takes_few_per_step(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*[Task("t", b"x" * 1_000_000, id=str(n)) for n in range(40)])
        first = await bed.inspector.purge("default", "pending")
        assert first.done == 16
        total = await all_steps(bed, bed.inspector.purge, "default", "pending", cursor=first.cursor)
        assert total.done == 24

    run(store, prefix, work)


def test_caller_waiting_for_a_purged_task_is_woken(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="a", retention=60))
        with store.client() as client, client.pubsub() as listener:
            listener.ssubscribe(bed.keys().done)
            assert listener.get_sharded_message(timeout=5)["type"] == "ssubscribe"
            await bed.inspector.purge("default", "pending")
            told = listener.get_sharded_message(timeout=5)
            assert (told["type"], told["data"]) == ("smessage", b"a")

    run(store, prefix, work)


# Forget


def test_forget_deletes_an_empty_queue(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await each_state(bed)
        names = [f"x{n}" for n in range(600)]
        await bed.enqueue(*[Task("t", id=n, unique=1000, unique_key=n) for n in names])
        refused = await inspector.forget("default")
        assert (refused.outcome, refused.left) == ("not_empty", 607)
        await bed.serve("live")
        served = await inspector.forget("default", force=True)
        assert (served.outcome, served.server) == ("served", "live")
        await bed.broker.run(registry_ops.server_heartbeat(GlobalKeys(prefix), "live", ttl_us=0))
        outcomes = []
        while not outcomes or outcomes[-1] == "more":
            outcomes.append((await inspector.forget("default", force=True)).outcome)
        assert outcomes[-1] == "running", "a lease holds"
        assert (await inspector.queue_names()) == ["default"]
        with store.client() as client:
            client.zadd(bed.keys().key("active"), {"a": 1})
        assert (await inspector.forget("default", force=True)).outcome == "done"
        assert await inspector.queue_names() == []

    run(store, prefix, work)
    with store.client() as client:
        assert set(client.keys(f"*{prefix}*")) <= {
            f"{prefix}:server:live".encode(),
            f"{prefix}:servers".encode(),
            f"{prefix}:events".encode(),
        }


def test_a_forgotten_queue_can_be_used_again(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(*tasks("a"))
        assert (await bed.inspector.delete("a")).ok
        assert (await bed.inspector.forget("default")).outcome == "done"
        await bed.enqueue(*tasks("a"))
        assert [one.id for one in await bed.lease()] == ["a"]

    run(store, prefix, work)


# Everywhere


def test_inspector_works_in_a_cluster(cluster: Cluster, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await each_state(bed)
        names = [f"queue{n}" for n in range(8)]
        for name in names:
            await bed.dead(*tasks("d1", "d2"), queue=name)
        await bed.serve("w", queues=["default", *names])
        seen = await inspector.overview()
        assert [queue.name for queue in seen.queues] == ["default", *names]
        assert len(await inspector.find("d1")) == 8
        assert [row.id for row in (await inspector.tasks("queue3", "dead")).tasks] == ["d2", "d1"]
        assert (await inspector.task("d1", queue="queue3")) is not None
        assert (await inspector.explain("p")).reason == "next"
        assert (await inspector.pause("queue3", by="me")).ok
        assert (await inspector.explain("d1", queue="queue3")).reason == "dead"
        assert (await inspector.resume("queue3")).ok
        assert (await inspector.run("d1", queue="queue3")).ok
        assert (await inspector.cancel("d1", queue="queue3")).ok
        assert (await inspector.cancel("a")).outcome == "told"
        assert (await inspector.run_dead("queue4")).done == 2
        assert (await inspector.delete_dead("queue5")).done == 2
        assert (await inspector.purge("queue4", "pending")).done == 2
        assert (await inspector.quiet("w")).ok
        [server] = await inspector.servers()
        assert [task.id for task in server.tasks] == ["a"]
        assert await inspector.schedules() == []
        await bed.broker.run(registry_ops.server_heartbeat(GlobalKeys(prefix), "w", ttl_us=0))
        assert (await inspector.forget("queue4")).outcome == "done"

    run(cluster, prefix, work)


@pytest.mark.faults(47)
def test_reader_role_can_use_all_reading_methods(store: Store, prefix: str) -> None:
    from qsync.broker import acl
    from tests.broker.test_acl import is_old
    from tests.support.acl import unlimited

    rules = acl.rules("reader", prefix, old=is_old(store))
    store.command("ACL", "SETUSER", "looker", "reset", "on", ">x", *rules)
    url = unlimited(store.url).replace("//", "//looker:x@")

    async def fill(bed: Bed) -> None:
        await each_state(bed)
        await bed.serve("w")

    async def look(bed: Bed) -> None:
        inspector = bed.inspector
        [queue] = (await inspector.overview()).queues
        assert queue.bytes
        for state in STORED:
            total = (await inspector.tasks("default", state)).total
            assert total or state is TaskState.LIMITED
        assert await inspector.task("a")
        assert await inspector.servers()
        assert await inspector.schedules() == []
        assert (await inspector.explain("p")).reason == "next"
        for change in (
            inspector.pause("default"), inspector.run("d"), inspector.delete("d"),
            inspector.cancel("p"), inspector.purge("default", "dead"),
            inspector.run_dead("default"), inspector.run_waiting("default", "retry"),
            inspector.stop("w"),
        ):  # fmt: skip
            with pytest.raises(ConfigError):
                await change

    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await fill(made)
        async with bed(url, prefix) as made:
            await look(made)

    try:
        asyncio.run(main())
    finally:
        store.command("ACL", "DELUSER", "looker")


def test_failure_record_of_an_old_version_is_read(store: Store, prefix: str) -> None:
    """The record was written by a version that did not store the history of attempts."""

    async def work(bed: Bed) -> None:
        await bed.dead(*tasks("d"))
        with store.client() as client:
            client.hset(bed.keys().key("failures"), "d", codec.encode([3, "old", 5, 0, 0]))
        detail = await bed.inspector.task("d")
        assert detail is not None
        assert (detail.row.attempts, detail.error, detail.history) == (3, "old", [])
        assert (await bed.inspector.run("d")).ok
        assert failure("x") != b""

    run(store, prefix, work)


async def test_app_creates_an_inspector(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)
    async with app.inspector() as inspector, app.async_client() as client:
        await client.enqueue(Task("t", id="a"))
        assert inspector.prefix == prefix
        assert (await inspector.overview()).queues[0].states[TaskState.PENDING] == 1
        assert await inspector.ping() < 5


HOSTILE = [
    b"", b"\xff\xfe", b"<script>alert(1)</script>", b"\x98", b"\x90", b"\xc1",
    b"\xdf\xff\xff\xff\xff", b"\x91" * 5000, b"nan", b"-1", b"9" * 400,
    b"\x00" * 20_000, b"a" * 20_000, b"\x1b[2J",
]  # fmt: skip


@pytest.mark.faults(55)
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_arbitrary_store_contents_are_shown(valkey: Store, prefix: str, value: bytes) -> None:
    """Each hash holds the same invalid value for each task, and each set holds an invalid id."""

    async def work(bed: Bed) -> None:
        inspector = bed.inspector
        await each_state(bed)
        await bed.serve("w")
        await bed.broker.run(
            program_schedule_ops.publish_schedules(bed.keys(), [("s", value, value)])
        )
        with valkey.client() as client:
            for name, (kind, _) in QUEUE_KEYS.items():
                if kind == "hash":
                    for field in (*BY_STATE.values(), "w", "enqueued", "paused", "paused_at", "v"):
                        client.hset(bed.keys().key(name), field, value)
                    client.hset(bed.keys().key(name), value, value)
                elif kind == "zset":
                    client.zadd(bed.keys().key(name), {value: 7, b"two words": float("inf")})
            client.sadd(GlobalKeys(prefix).queues, value)
            client.zadd(GlobalKeys(prefix).servers, {value: 10**17})
            for field in ("host", "pid", "queues", "types", "quiet", "uptime_s", "concurrency"):
                client.hset(GlobalKeys(prefix).server("w"), field, value)
        answers: list[Any] = [
            await inspector.overview(), await inspector.queue("default", days=90),
            await inspector.servers(), await inspector.server("w"), await inspector.schedules(),
            await inspector.trigger("s", queue="default"),
        ]  # fmt: skip
        for state, id in BY_STATE.items():
            # A completed task with any value in the hash of cancellations counts as cancelled.
            shown = "cancelled" if state == "completed" else state
            found = await pages(inspector, shown, limit=2, filter=Filter(error="", type="*"))
            assert id in ids(found)
            answers += [*found, await inspector.task(id), await inspector.explain(id)]
            answers.append(await inspector.find(id))
        for answer in answers:
            assert msgspec.json.encode(answer)
        for step in (inspector.run_dead, inspector.delete_dead):
            async for made in inspector.steps(step, "default"):
                assert made.scanned <= 250
        async for made in inspector.steps(inspector.run_waiting, "default", "retry"):
            assert made.scanned <= 250
        async for made in inspector.steps(inspector.purge, "default", "pending"):
            assert made.done <= 250

    run(valkey, prefix, work)


@pytest.mark.parametrize("name", ["delete_queue", "key_types"])
def test_every_key_of_a_queue_is_counted(name: str) -> None:
    assert set(load(name).keys) == set(QUEUE_KEYS)
