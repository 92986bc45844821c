"""Blocking and async clients enqueue tasks."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uvloop

from qsync import Qsync, context_hints, queue_announcer
from qsync.broker import redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.bulk_enqueue import BulkEnqueue
from qsync.client import AsyncClient, AsyncHandle, Client, Handle
from qsync.enqueue_batching import Batcher
from qsync.errors import ConfigError, DuplicateTask, InvalidTask, QsyncError, QueueFull
from qsync.idempotency import CallSequences
from qsync.inspector import Inspector
from qsync.keys import check_id
from qsync.new_task import new_id, new_nonce
from qsync.queue_announcer import QueueAnnouncer
from qsync.state import TaskState
from qsync.task import Task
from tests.conftest import Colour
from tests.support.acl import unlimited
from tests.support.client_driver import Hand
from tests.support.stores import Cluster, Store, wait_until, wait_until_async

DAY = 86_400


@pytest.fixture
def client(colour: Colour, store: Store, prefix: str) -> Any:
    return colour.client(store.url, prefix)


@pytest.fixture
def hand(store: Store, prefix: str) -> Iterator[Hand]:
    with Hand(store.url, prefix) as hand:
        yield hand


@pytest.fixture
def blocking(store: Store, prefix: str) -> Iterator[Client]:
    with Client(Broker(redis_clients.parse(store.url)), prefix=prefix) as client:
        yield client


def ids_in(store: Store, hand: Hand, state: str = "pending") -> list[str]:
    with store.client() as redis:
        return [id.decode() for id in redis.zrange(hand.keys.key(state), 0, -1)]


def scripts_run(store: Store) -> int:
    """Return the number of script runs since the last CONFIG RESETSTAT."""
    stats = store.command("INFO", "commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def now_us(store: Store) -> int:
    seconds, rest = store.command("TIME")
    return int(seconds) * 1_000_000 + int(rest)


# blocking and async


@pytest.mark.parametrize(("blocking", "awaited"), [(Client, AsyncClient), (Handle, AsyncHandle)])
def test_both_clients_have_the_same_names_signatures_and_docstrings(
    blocking: type, awaited: type
) -> None:
    renamed = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}

    def public(cls: type) -> dict[str, Any]:
        return {
            renamed.get(name, name): member
            for name, member in inspect.getmembers(cls, inspect.isfunction)
            if member.__module__ != context_hints.__name__  # errors about the other form
            if not name.startswith("_") or name in ("__init__", *renamed, *renamed.values())
        }

    def described(member: Any) -> tuple[str, str | None]:
        signature = str(inspect.signature(member)).replace("Async", "")
        return signature, inspect.getdoc(member)

    ones, others = public(blocking), public(awaited)
    assert ones.keys() == others.keys()
    for name in ones:
        assert described(ones[name]) == described(others[name]), name
        waits = name not in ("__init__", "handle", "with_decoder")
        assert not inspect.iscoroutinefunction(ones[name])
        assert inspect.iscoroutinefunction(others[name]) == waits, name
    assert inspect.getdoc(Handle) == inspect.getdoc(AsyncHandle)


# enqueue


def test_an_enqueued_task_is_in_the_store(
    colour: Colour, client: Any, hand: Hand, store: Store, prefix: str
) -> None:
    handle = colour.do(client.enqueue(Task("t", b"payload")))
    assert (handle.queue, handle.created) == ("default", True)
    assert check_id(handle.id) == handle.id
    assert ids_in(store, hand) == [handle.id]
    later = colour.do(client.enqueue(Task("t", delay=60)))
    assert ids_in(store, hand, "scheduled") == [later.id]
    with store.client() as redis:
        assert redis.smembers(hand.globals.queues) == {b"default"}


def test_queue_passed_to_enqueue_overrides_that_of_the_task(colour: Colour, client: Any) -> None:
    handle = colour.do(client.enqueue(Task("t", queue="low"), queue="high"))
    assert handle.queue == "high"
    assert colour.do(handle.info()).queue == "high"


@pytest.mark.parametrize("thing", ["t", b"secret", None, {"type": "t"}])
def test_non_task_is_refused_by_its_type(colour: Colour, client: Any, thing: Any) -> None:
    kind = type(thing).__name__
    with pytest.raises(InvalidTask, match=rf"^task: {kind} is not a Task; pass Task\(type") as one:
        colour.do(client.enqueue(thing))
    with pytest.raises(InvalidTask, match=rf"^tasks\[1\]: task: {kind} is not a Task") as many:
        colour.do(client.enqueue_many([Task("t"), thing]))
    assert "secret" not in f"{one.value}{many.value}"
    with pytest.raises(InvalidTask, match=r"^tasks: Task is not an iterable of Task"):
        colour.do(client.enqueue_many(Task("t")))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"queue": "a b"}, "queue"),
        ({"id": ""}, "id"),
        ({"id": "a b"}, "id"),
        ({"retry": -1}, "retry"),
        ({"retry": True}, "retry"),
        ({"retry_delay": -1}, "retry_delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": "1"}, "delay"),
        ({"process_at": datetime(2030, 1, 1)}, "process_at"),  # noqa: DTZ001 - naive on purpose
        ({"process_at": datetime.now(UTC), "delay": 1}, "process_at"),
        ({"timeout": 0}, "timeout"),
        ({"deadline": datetime.now(UTC) - timedelta(seconds=1)}, "deadline"),
        ({"unique": -1}, "unique"),
        ({"unique": 0}, "unique"),
        ({"unique_key": "k"}, "unique_key"),
        ({"unique": True, "unique_key": ""}, "unique_key"),
        ({"retention": 0}, "retention"),
        ({"fairness_key": ""}, "fairness_key"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a": "x" * 9000}}, "headers"),
    ],
)
def test_a_wrong_option_is_refused_when_the_task_is_made(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidTask, match=rf"^{field}: "):
        Task("t", **options)


@pytest.mark.parametrize(
    "due",
    [
        {"delay": timedelta(days=301)},
        {"process_at": datetime.now(UTC) + timedelta(days=301)},
        {"debounce": timedelta(days=301), "unique_key": "k"},
    ],
)
def test_task_that_is_not_due_before_its_deadline_is_refused(due: dict[str, Any]) -> None:
    deadline = datetime.now(UTC) + timedelta(days=300)
    with pytest.raises(InvalidTask, match=r"^deadline: .*due at 2.* UTC, not before its .* UTC"):
        Task("t", deadline=deadline, **due)
    assert Task("t", deadline=deadline + timedelta(days=2), **due)


@pytest.mark.faults(59, 60)
@pytest.mark.guarantee(8)
def test_wrong_payload_or_queue_is_reported_at_once(
    colour: Colour, store: Store, prefix: str
) -> None:
    client = colour.client(store.url, prefix, payload_limit=10)
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for task, says in [
        (Task("t", b"x" * 11), r"^payload: 11 bytes are over the limit of 10$"),
        (Task("t", "x" * 10), r"^payload: 11 bytes"),
        (Task("t", object()), r"^payload: object cannot be encoded"),
        (Task("t", deep), r"^payload: .*nested deeper"),
    ]:
        with pytest.raises(InvalidTask, match=says):
            colour.do(client.enqueue(task))
        with pytest.raises(InvalidTask, match=r"^tasks\[0\]: payload: "):
            colour.do(client.enqueue_many([task]))
    colour.do(client.enqueue(Task("t", b"x" * 10)))
    with pytest.raises(InvalidTask, match=r"^queue: 'a b'"):
        colour.do(client.enqueue(Task("t"), queue="a b"))


@pytest.mark.parametrize(
    ("kind", "make"),
    [(Client, "client"), (AsyncClient, "async_client"), (Inspector, "inspector")],
)
def test_error_of_a_client_created_with_a_url_says_how_to_create_one(kind: Any, make: str) -> None:
    """The URL is not shown, since it may hold a password; the prefix has its default."""
    with pytest.raises(ConfigError, match=rf"^broker: str is not a broker; .*\.{make}\(\)"):
        kind("redis://:secret@x")
    broker = Broker if kind is Client else AsyncBroker
    client = kind(broker(redis_clients.parse("redis://127.0.0.1:1")))
    assert (client.prefix if kind is Inspector else repr(client).split("'")[1]) == "qsync"


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None, 31 * 2**20 + 1])
def test_a_payload_limit_is_a_positive_number(colour: Colour, store: Store, limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"^payload_limit: "):
        colour.client(store.url, "p", payload_limit=limit)


@pytest.mark.faults(81)
def test_a_wrong_prefix_is_refused(colour: Colour, store: Store) -> None:
    with pytest.raises(InvalidTask, match=r"^prefix: "):
        colour.client(store.url, "a:b")


# duplicates


def test_id_can_be_used_once_in_a_queue(colour: Colour, client: Any) -> None:
    task = Task("t", id="a")
    colour.do(client.enqueue(task))
    with pytest.raises(
        DuplicateTask, match=r"^id 'a': a task in queue 'default' already has this id$"
    ) as caught:
        colour.do(client.enqueue(task))
    assert (caught.value.id, caught.value.queue) == ("a", "default")
    assert colour.do(client.enqueue(task, queue="other")).created


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
def test_a_lock_is_held_by_the_task_that_took_it(colour: Colour, client: Any, hand: Hand) -> None:
    task = Task("t", [1], unique=True)
    first = colour.do(client.enqueue(task))
    with pytest.raises(DuplicateTask, match=f"held by task '{first.id}' .* 'default'$") as caught:
        colour.do(client.enqueue(task))
    assert client.handle(caught.value.id, queue=caught.value.queue) == first
    for other in (task.replace(payload=[2]), task.replace(type="u"), task.replace(queue="q")):
        assert colour.do(client.enqueue(other)).created
    assert colour.do(first.cancel())
    assert colour.do(client.enqueue(task)).created


def test_a_unique_key_takes_the_place_of_type_and_payload(colour: Colour, client: Any) -> None:
    first = colour.do(client.enqueue(Task("t", 1, unique=True, unique_key="k")))
    with pytest.raises(DuplicateTask) as caught:
        colour.do(client.enqueue(Task("u", 2, unique=DAY, unique_key="k")))
    assert caught.value.id == first.id


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
@pytest.mark.parametrize(("age", "held"), [(59, True), (61, False)])
def test_lock_window_outlives_a_completed_task(
    colour: Colour, client: Any, hand: Hand, store: Store, age: int, held: bool
) -> None:
    task = Task("t", unique=60)
    hand.enqueue(task.replace(id="first"), now_us=now_us(store) - age * 1_000_000)
    hand.finish(hand.one())
    if held:
        text = "'first' in queue 'default' until that task has ended and its window .* is over"
        with pytest.raises(DuplicateTask, match=text):
            colour.do(client.enqueue(task))
    else:
        assert colour.do(client.enqueue(task)).created


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
def test_lock_is_held_after_its_window_while_the_task_runs(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    task = Task("t", unique=60)
    hand.enqueue(task.replace(id="first"), now_us=now_us(store) - 61_000_000)
    with pytest.raises(DuplicateTask, match="'first'"):
        colour.do(client.enqueue(task))


# enqueue_many


def test_many_tasks_of_many_queues_come_back_in_order(colour: Colour, client: Any) -> None:
    tasks = [Task("t", id=f"id-{n}", queue=f"q{n % 3}") for n in range(2003)]
    handles = colour.do(client.enqueue_many(iter(tasks)))
    assert [(one.id, one.queue) for one in handles] == [(one.id, one.queue) for one in tasks]
    assert all(one.created for one in handles)
    assert colour.do(handles[-1].info()).id == "id-2002"
    assert colour.do(client.enqueue_many([])) == []


def test_the_order_in_a_queue_is_that_of_the_tasks(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    handles = colour.do(client.enqueue_many([Task("t") for _ in range(1200)]))
    assert ids_in(store, hand) == [one.id for one in handles]


def test_one_wrong_task_prevents_the_whole_call(colour: Colour, client: Any, store: Store) -> None:
    tasks = [Task("t") for _ in range(600)] + [Task("t", object())]
    with pytest.raises(InvalidTask, match=r"^tasks\[600\]: payload: "):
        colour.do(client.enqueue_many(tasks))
    assert store.command("DBSIZE") == 0


def test_duplicates_among_many_have_the_handle_of_the_holder(
    colour: Colour, client: Any, hand: Hand
) -> None:
    taken = colour.do(client.enqueue(Task("t", id="a", unique=True, retention=60)))
    tasks = [Task("u", id="a"), Task("t", unique=True), Task("u"), Task("u", id="a", queue="q")]
    handles = colour.do(client.enqueue_many(tasks))
    assert [one.created for one in handles] == [False, False, True, True]
    assert handles[0] == handles[1] == taken
    hand.succeed(hand.one(), value=1)
    assert colour.do(handles[1].result()) == 1, "the client has looked up the retention"


@pytest.mark.parametrize("between", [0, 700])
def test_id_repeated_in_one_call_is_created_once(
    colour: Colour, client: Any, store: Store, hand: Hand, between: int
) -> None:
    """The messages have the same bytes and are sent in one call of the script, or in several."""
    task = Task("t", b"x", id="a")
    filler = [Task("t") for _ in range(between)]
    handles = colour.do(client.enqueue_many([task, *filler, task, task]))
    same = [one for one in handles if one.id == "a"]
    assert [one.created for one in same] == [True, False, False]
    assert len(ids_in(store, hand)) == between + 1


def test_id_refused_by_a_lock_is_free_for_the_next_task(colour: Colour, client: Any) -> None:
    holder = colour.do(client.enqueue(Task("t", unique=True)))
    first, second, third = colour.do(
        client.enqueue_many([Task("t", id="a", unique=True), Task("u", id="a"), Task("u", id="a")])
    )
    assert (first.id, first.created) == (holder.id, False)
    assert (second.id, second.created) == ("a", True)
    assert (third.id, third.created) == ("a", False)


def test_call_contains_up_to_250_tasks_or_1_mib(colour: Colour, client: Any, store: Store) -> None:
    colour.do(client.enqueue(Task("t")))
    colour.do(client.enqueue_many([Task("t"), Task("t")]))
    for tasks, calls in [
        ([Task("t") for _ in range(250)], 1),
        ([Task("t") for _ in range(2501)], 11),
        ([Task("t", b"x" * 1_000_000) for _ in range(9)], 9),
        ([Task("t", b"x" * 100_000) for _ in range(25)], 3),
        ([Task("t", delay=60) for _ in range(500)], 4),
    ]:
        store.command("CONFIG", "RESETSTAT")
        colour.do(client.enqueue_many(tasks))
        assert scripts_run(store) == calls


@pytest.mark.faults(34)
def test_a_call_that_is_repeated_creates_nothing(blocking: Client, hand: Hand) -> None:
    """The test repeats the same call, as a client does after a lost reply."""
    tasks = [Task("t"), Task("t", id="a"), Task("t", id="a")]
    bulk = BulkEnqueue(tasks, payload_limit=100, handle=blocking._handle)
    [trip] = bulk.round_trips(hand.keys, range(3), CallSequences().acquire(0), None, calls=1)
    [call] = trip.calls
    once = hand.broker.run(call)
    assert hand.broker.run(call) == once
    assert [outcome.outcome for outcome in once] == ["created", "created", "exists"]
    held = hand.take(2)
    assert hand.broker.run(call) == once
    for one in held:
        hand.finish(one)
    assert hand.broker.run(call) == once
    assert hand.broker.run(views.counts(hand.keys)).others["tasks"] == 0


# failures


def fill(store: Store, *, room: int) -> None:
    """Limit the store's memory to about this many bytes above its current use."""
    used = store.command("INFO", "memory")["used_memory"]
    store.command("CONFIG", "SET", "maxmemory", used + room)


@pytest.mark.faults(26)
def test_full_store_raises_queue_full_and_writes_nothing(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix)
    fill(own_store, room=-100_000)
    with pytest.raises(QueueFull, match="out of memory"):
        colour.do(client.enqueue(Task("t")))
    with pytest.raises(QueueFull, match="out of memory"):
        colour.do(client.enqueue_many([Task("t")]))
    keys = own_store.command("KEYS", "{*")
    assert keys == []
    own_store.command("CONFIG", "SET", "maxmemory", 0)
    assert colour.do(client.enqueue(Task("t"))).created


@pytest.mark.faults(26)
def test_the_error_has_the_handles_of_accepted_tasks(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix)
    colour.do(client.enqueue(Task("t")))
    fill(own_store, room=12_000_000)
    tasks = [Task("t", b"x" * 1_000_000, id=f"{n}") for n in range(40)]
    with pytest.raises(QueueFull) as caught:
        colour.do(client.enqueue_many(tasks))
    accepted = caught.value.handles
    assert 0 < len(accepted) < 40
    stored = {id.decode() for id in own_store.command("HKEYS", f"{{{prefix}:default}}:tasks")}
    assert {one.id for one in accepted} == {id for id in stored if len(id) < 22}
    assert all(one.created for one in accepted)
    own_store.command("CONFIG", "SET", "maxmemory", 0)
    again = colour.do(client.enqueue_many(tasks))
    assert {one for one in again if not one.created} == set(accepted)


@pytest.mark.faults(17)
@pytest.mark.guarantee(7)
def test_enqueueing_survives_a_restart_of_the_store(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix)
    colour.do(client.enqueue(Task("t", id="before")))
    own_store.kill()
    calls = [
        colour.begin(lambda: client.enqueue(Task("t"))),
        colour.begin(lambda: client.enqueue_many([Task("t")] * 600)),
    ]
    own_store.start()
    assert calls[0].result(20).created
    assert len(calls[1].result(20)) == 600
    assert colour.do(client.handle("before").info()).id == "before"


def test_closed_client_raises_an_error(colour: Colour, client: Any) -> None:
    handle = colour.do(client.enqueue(Task("t", retention=60)))
    colour.close_client(client)
    for call in (
        lambda: client.enqueue(Task("t")),
        lambda: client.enqueue_many([Task("t")]),
        handle.info,
        handle.result,
        handle.cancel,
    ):
        with pytest.raises(QsyncError, match=r"^the client is closed; create another one$"):
            colour.do(call())
    colour.close_client(client)


def test_clients_are_context_managers(store: Store, prefix: str) -> None:
    address = redis_clients.parse(store.url)

    async def main() -> None:
        async with AsyncClient(AsyncBroker(address), prefix=prefix) as client:
            assert (await client.enqueue(Task("t"))).created
            assert repr(client) == f"<AsyncClient prefix={prefix!r} at {unlimited(store.url)}>"
        with pytest.raises(QsyncError, match="closed"):
            await client.enqueue(Task("t"))

    asyncio.run(main())
    with Client(Broker(address), prefix=prefix) as client:
        assert client.enqueue(Task("t")).created
        assert repr(client) == f"<Client prefix={prefix!r} at {unlimited(store.url)}>"
    with pytest.raises(QsyncError, match="closed"):
        client.enqueue(Task("t"))


def test_async_client_on_another_loop_raises_an_error(store: Store, prefix: str) -> None:
    """The error is raised whether or not the client's first loop still exists."""
    client = AsyncClient(AsyncBroker(redis_clients.parse(store.url)), prefix=prefix)

    async def enqueue() -> AsyncHandle[Any]:
        return await client.enqueue(Task("t"))

    async def main() -> AsyncHandle[Any]:
        handle = await enqueue()
        with pytest.raises(ConfigError, match="belongs to the event loop that used it first"):
            await asyncio.to_thread(asyncio.run, enqueue())
        assert (await handle.info()).state == "pending"
        await client.aclose()
        return handle

    handle = asyncio.run(main())
    with pytest.raises(QsyncError, match="closed"):
        asyncio.run(handle.info())

    client = AsyncClient(AsyncBroker(redis_clients.parse(store.url)), prefix=prefix)
    with asyncio.Runner() as runner:
        handle = runner.run(enqueue())
        for call in (enqueue, handle.info, handle.cancel, lambda: client.enqueue_many([Task("t")])):
            with pytest.raises(ConfigError, match="create a client for each loop"):
                asyncio.run(call())
        with pytest.raises(ConfigError, match="create a client for each loop and close it there"):
            asyncio.run(client.aclose())
        assert runner.run(enqueue()).created, "it is still open"
        runner.run(client.aclose())
        runner.run(client.aclose())


def test_async_client_without_a_loop_of_asyncio_raises_an_error(store: Store, prefix: str) -> None:
    """Other libraries, such as trio, drive coroutines without an asyncio loop."""
    client = AsyncClient(AsyncBroker(redis_clients.parse(store.url)), prefix=prefix)
    for call in (client.enqueue(Task("t")), client.enqueue_many([Task("t")]), client.aclose()):
        with pytest.raises(ConfigError, match="needs a running asyncio event loop"):
            call.send(None)
    with pytest.raises(StopIteration):  # the app has nothing to close without a loop
        Qsync(store.url, prefix=prefix).aclose().send(None)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_bytes_like_payload_is_sent_unchanged(
    colour: Colour, client: Any, make: Callable[[bytes], Any]
) -> None:
    """Bytes are not encoded as msgpack. Handlers get exactly the same bytes."""
    status = colour.do(colour.do(client.enqueue(Task("t", make(b"abc")))).info())
    assert (status.payload, status.value(), status.value(bytes)) == (b"abc", b"abc", b"abc")


# the set of queues


def test_queue_is_registered_once_a_minute() -> None:
    now = [0.0]
    registry = QueueAnnouncer(lambda: now[0])
    assert [registry.due("a"), registry.due("a"), registry.due("b")] == [True, False, True]
    now[0] = 59.9
    assert not registry.due("a")
    now[0] = 60.0
    assert [registry.due("a"), registry.due("a")] == [True, False]
    registry.failed("a")
    assert not registry.due("a")
    now[0] = 61.0
    assert registry.due("a")


def test_registration_takes_no_extra_round_trip(colour: Colour, client: Any, store: Store) -> None:
    colour.do(client.enqueue(Task("t")))
    store.command("CONFIG", "RESETSTAT")
    for queue in ("a", "a", "b", "b"):
        colour.do(client.enqueue(Task("t"), queue=queue))
    assert scripts_run(store) == 6, "four enqueues and two registrations"


def test_queue_is_registered_again_after_a_flush(
    colour: Colour, client: Any, store: Store, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_announcer, "REGISTER_EVERY", 0.0)
    colour.do(client.enqueue(Task("t")))
    store.flush()
    colour.do(client.enqueue(Task("t")))
    assert store.command("SMEMBERS", hand.globals.queues) == {b"default"}


def test_failed_registration_does_not_fail_the_enqueue(
    colour: Colour, client: Any, store: Store, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_announcer, "REGISTER_AGAIN", 0.0)
    store.command("SET", hand.globals.queues, "not a set")
    assert colour.do(client.enqueue(Task("t"))).created
    store.command("DEL", hand.globals.queues)
    assert colour.do(client.enqueue(Task("t"))).created
    assert store.command("SMEMBERS", hand.globals.queues) == {b"default"}, "it was tried again"


# sharing round trips


def run_async(store: Store, prefix: str, main: Any) -> Any:
    """Run `main(client)` with an AsyncClient."""

    async def run() -> Any:
        async with AsyncClient(
            AsyncBroker(redis_clients.parse(store.url)), prefix=prefix
        ) as client:
            await client.enqueue(Task("t", id="first"))
            return await main(client)

    return asyncio.run(run())


def test_concurrent_calls_share_round_trips_and_keep_their_order(
    store: Store, prefix: str, hand: Hand
) -> None:
    async def main(client: AsyncClient) -> list[AsyncHandle[Any]]:
        store.command("CONFIG", "RESETSTAT")
        return await asyncio.gather(*[client.enqueue(Task("t")) for _ in range(700)])

    handles = run_async(store, prefix, main)
    assert scripts_run(store) == 3
    assert ids_in(store, hand) == ["first", *[one.id for one in handles]]


def test_many_callers_alternate_between_two_batches(store: Store, prefix: str) -> None:
    """While the store serves one half of the callers, the other half prepares its next calls."""

    async def main(client: AsyncClient) -> None:
        async def caller() -> None:
            for _ in range(10):
                await client.enqueue(Task("t"))

        store.command("CONFIG", "RESETSTAT")
        await asyncio.gather(*[caller() for _ in range(100)])

    run_async(store, prefix, main)
    assert scripts_run(store) == 20, "each of 50 tasks"


def test_an_idle_client_sends_at_once(store: Store, prefix: str) -> None:
    """No timer delays a call, so each of many sequential calls takes one round trip."""

    async def main(client: AsyncClient) -> float:
        began = time.monotonic()
        for _ in range(200):
            await client.enqueue(Task("t"))
        return time.monotonic() - began

    assert run_async(store, prefix, main) < 2


def test_callers_that_share_a_call_have_separate_outcomes(store: Store, prefix: str) -> None:
    async def main(client: AsyncClient) -> list[Any]:
        tasks = [Task("t"), Task("t", id="first"), Task("t", id="a"), Task("t", id="a"), "no task"]
        calls: list[Any] = [client.enqueue(task) for task in tasks]  # type: ignore[arg-type]
        return await asyncio.gather(*calls, return_exceptions=True)

    one, taken, first, second, wrong = run_async(store, prefix, main)
    assert one.created
    assert first.created
    assert (type(taken), taken.id) == (DuplicateTask, "first")
    assert (type(second), second.id) == (DuplicateTask, "a")
    assert type(wrong) is InvalidTask


def test_cancelled_caller_does_not_affect_others(own_store: Store, prefix: str) -> None:
    """One caller is cancelled before its batch is sent, and another while its batch is in
    flight."""

    async def main(client: AsyncClient) -> None:
        own_store.pause()
        early = [asyncio.create_task(client.enqueue(Task("t"))) for _ in range(3)]
        await asyncio.sleep(0.01)  # the first batch is in flight
        late = [asyncio.create_task(client.enqueue(Task("t"))) for _ in range(3)]
        await asyncio.sleep(0)
        early[1].cancel()
        late[1].cancel()
        await asyncio.wait([early[1], late[1]])
        own_store.resume()
        for task in (early[0], early[2], late[0], late[2]):
            assert (await task).created
        assert early[1].cancelled()
        assert late[1].cancelled()

    run_async(own_store, prefix, main)
    assert own_store.command("HLEN", f"{{{prefix}:default}}:tasks") == 6


def test_failure_gives_each_sharing_caller_a_separate_error(own_store: Store, prefix: str) -> None:
    async def main(client: AsyncClient) -> list[Any]:
        fill(own_store, room=-100_000)
        calls = [client.enqueue(Task("t")) for _ in range(5)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        own_store.command("CONFIG", "SET", "maxmemory", 0)
        assert (await client.enqueue(Task("t"))).created
        return errors

    errors = run_async(own_store, prefix, main)
    assert {type(error) for error in errors} == {QueueFull}
    assert len({id(error) for error in errors}) == 5
    assert all("maxmemory" in str(error.__cause__) for error in errors)


@pytest.mark.parametrize("at_once", [True, False])
def test_aclose_waits_for_calls_in_flight(
    store: Store, prefix: str, hand: Hand, at_once: bool
) -> None:
    async def main(client: AsyncClient) -> None:
        tasks = [Task("t") for _ in range(5000)]
        if at_once:
            calls: list[Any] = [asyncio.ensure_future(client.enqueue_many(tasks))]
        else:
            calls = [asyncio.ensure_future(client.enqueue(task)) for task in tasks]
        await asyncio.sleep(0)
        await client.aclose()
        assert len(ids_in(store, hand)) == 5001
        await asyncio.gather(*calls)

    run_async(store, prefix, main)


def test_ended_loop_leaves_no_caller_waiting() -> None:
    async def never(items: list[int], left: float) -> list[int]:
        await asyncio.Event().wait()
        return items

    async def main() -> list[asyncio.Task[int]]:
        batcher: Batcher[int, int] = Batcher(
            never, lambda item: 1, patience=5, too_late=TimeoutError
        )
        early = asyncio.ensure_future(batcher.submit(1))
        await asyncio.sleep(0)
        late = asyncio.ensure_future(batcher.submit(2))
        await asyncio.sleep(0)
        return [early, late]

    assert all(future.cancelled() for future in asyncio.run(main()))


def test_callers_end_if_their_batch_is_cancelled_before_it_begins() -> None:
    """If `asyncio.run` ends just after the callers have arrived, closing the client cancels their
    batch."""

    async def send(items: list[int], left: float) -> list[int]:
        return items

    async def main() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(
            send, lambda item: 1, patience=5, too_late=TimeoutError
        )
        callers = [asyncio.ensure_future(batcher.submit(item)) for item in range(3)]
        await wait_until_async(lambda: batcher._sender is not None, every=0)
        assert batcher._sender is not None
        batcher._sender.cancel()
        await asyncio.wait_for(batcher.drain(), 5)
        answers = await asyncio.gather(*callers, return_exceptions=True)
        return [*answers, await batcher.submit(3)]

    *cancelled, later = asyncio.run(main())
    assert [type(answer) for answer in cancelled] == [asyncio.CancelledError] * 3
    assert later == 3


def test_short_reply_leaves_no_caller_waiting() -> None:
    async def short(items: list[int], left: float) -> list[int]:
        return items[1:]

    async def main() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(
            short, lambda item: 1, patience=5, too_late=TimeoutError
        )
        alone = await asyncio.gather(batcher.submit(0), return_exceptions=True)
        both = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
        return [*alone, *both]

    assert [type(error) for error in asyncio.run(main())] == [QsyncError] * 3


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (asyncio.new_event_loop, [[1], [2], [3, 4, 5], [6]]),
        # uvloop does not expose its ready callbacks, so the first caller after a lone caller also
        # counts as alone.
        (uvloop.new_event_loop, [[1], [2], [3], [4, 5], [6]]),
    ],
)
def test_lone_caller_is_sent_at_once_and_callers_that_are_ready_share_a_batch(
    factory: Callable[[], asyncio.AbstractEventLoop], expected: list[list[int]]
) -> None:
    batches: list[list[int]] = []
    steps: list[int] = []

    async def run(items: list[int], left: float) -> list[int]:
        batches.append(items)
        steps.append(step)
        await asyncio.sleep(0)
        return items

    step = 0

    def count() -> None:
        nonlocal step
        step += 1

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(run, lambda item: 1, patience=5, too_late=TimeoutError)

        async def one(item: int) -> int:
            return await batcher.submit(item)

        for item in (1, 2):
            assert await batcher.submit(item) == item
        assert await asyncio.gather(*map(one, (3, 4, 5))) == [3, 4, 5]
        asyncio.get_running_loop().call_soon(count)
        assert await batcher.submit(6) == 6, "the call runs after callbacks that were ready"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert batches == expected
    assert steps == [*[0] * (len(expected) - 1), 1]


def test_cancelled_lone_caller_does_not_affect_later_callers() -> None:
    batches: list[list[int]] = []

    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(items: list[int], left: float) -> list[int]:
            batches.append(items)
            begun.set()
            await go_on.wait()
            return [10 * item for item in items]

        batcher: Batcher[int, int] = Batcher(
            slow, lambda item: 1, patience=5, too_late=TimeoutError
        )
        first = asyncio.ensure_future(batcher.submit(1))
        await begun.wait()
        others = [asyncio.ensure_future(batcher.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        go_on.set()
        assert await asyncio.gather(*others) == [20, 30]
        # If a caller is cancelled before its batch is sent, its task is left out of the batch.
        early = asyncio.ensure_future(batcher.submit(4))
        await asyncio.sleep(0)
        late = asyncio.ensure_future(batcher.submit(5))
        early.cancel()
        assert await late == 50
        await batcher.drain()

    asyncio.run(main())
    assert batches == [[1], [2, 3], [5]]


# threads and processes


def test_ids_and_nonces_are_drawn_once_by_many_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        begin = threading.Barrier(8)

        def draw(_: int) -> list[tuple[str, bytes]]:
            begin.wait()
            return [(new_id(), new_nonce()) for _ in range(5000)]

        drawn = [pair for part in threads.map(draw, range(8)) for pair in part]
    assert len({id for id, _ in drawn}) == len({nonce for _, nonce in drawn}) == 40_000
    assert all(len(check_id(id)) == 22 and len(nonce) == 8 for id, nonce in drawn)


def test_new_ids_never_begin_with_a_dash() -> None:
    ids = [new_id() for _ in range(10_000)]  # some were drawn again because of a dash
    assert not [id for id in ids if id.startswith("-")]
    assert any("-" in id for id in ids)


def test_threads_share_a_client(blocking: Client, store: Store, hand: Hand) -> None:
    with ThreadPoolExecutor(8) as threads:
        handles = list(threads.map(lambda _: blocking.enqueue(Task("t")), range(400)))
    assert len(set(handles)) == 400
    assert sorted(ids_in(store, hand)) == sorted(one.id for one in handles)


def forked(work: Any) -> int:
    """Fork a child that does some work and ends; return its process id."""
    with warnings.catch_warnings():
        # Python 3.12 warns about forks in programs with threads. The test shows that qsync's
        # threads allow forks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.faults(12)
def test_client_works_in_200_forked_children(valkey: Store, prefix: str) -> None:
    """Parent and children enqueue at the same time, and no reply reaches the wrong process."""
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        handles = [client.enqueue(Task("t"))]

        def work() -> bool:
            one, other = (client.enqueue(Task("t")) for _ in range(2))
            return one.info().id == one.id and other.info().id == other.id

        for _ in range(20):
            children = [forked(work) for _ in range(10)]
            handles += [client.enqueue(Task("t")) for _ in range(10)]
            assert [ended_well(child) for child in children] == [True] * 10
        assert [one.info().id for one in handles] == [one.id for one in handles]
    assert valkey.command("HLEN", f"{{{prefix}:default}}:tasks") == 2 * 200 + len(handles)


@pytest.mark.faults(12)
def test_forked_child_draws_other_ids_than_its_parent() -> None:
    new_id(), new_nonce()
    read, write = os.pipe()
    child = forked(lambda: os.write(write, (new_id() + new_nonce().hex()).encode()))
    assert ended_well(child)
    told = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(told) == 38
    assert told[:22] not in {new_id() for _ in range(300)}
    assert told[22:] not in {new_nonce().hex() for _ in range(600)}


@pytest.mark.faults(12)
def test_forked_child_waits_for_its_own_result(blocking: Client, hand: Hand) -> None:
    theirs, ours = blocking.enqueue_many([Task("t", retention=60)] * 2)
    held = hand.take(2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(theirs.result, 30)
        channel = hand.keys.done
        client = hand.broker.client_at(None)
        wait_until(lambda: client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1] == 1)
        child = forked(lambda: ours.result(30) == "ours")
        wait_until(lambda: client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1] == 2)
        hand.succeed(held[1], value="ours")
        assert ended_well(child)
        hand.succeed(held[0], value="theirs")
        assert waiting.result(10) == "theirs"


# clusters


def test_cluster_client_sends_tasks_to_the_nodes_of_their_queues(
    colour: Colour, cluster: Cluster, prefix: str
) -> None:
    client = colour.client(cluster.url, prefix)
    assert colour.do(client.enqueue(Task("t", queue="q0"))).created
    tasks = [Task("t", queue=f"q{n % 7}") for n in range(4000)]
    handles = colour.do(client.enqueue_many(tasks))
    assert [one.queue for one in handles] == [one.queue for one in tasks]
    assert len({cluster.holder(f"{{{prefix}:q{n}}}:tasks").port for n in range(7)}) > 1
    for handle in handles[:7]:
        assert colour.do(handle.info()).state is TaskState.PENDING
    with cluster.client() as redis:
        assert redis.scard(f"{prefix}:queues") == 7
        assert redis.hlen(f"{{{prefix}:q3}}:tasks") == 4000 // 7
