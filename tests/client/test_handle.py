"""Handles of the blocking and the async client read and change tasks. The test itself acts as the
server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from qsync import codec, task_queries
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.client import AsyncClient
from qsync.errors import (
    InvalidTask,
    QsyncError,
    ResultTimeout,
    StoreUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskNotWaiting,
)
from qsync.message import Result
from qsync.state import TaskState
from qsync.task import Task
from tests.chaos.proxy import Proxy
from tests.conftest import Colour
from tests.support.client_driver import SERVER, Hand
from tests.support.stores import Cluster, Store, wait_until, wait_until_async

KEPT = Task("t", retention=60)


@pytest.fixture
def client(colour: Colour, store: Store, prefix: str) -> Any:
    return colour.client(store.url, prefix)


@pytest.fixture
def hand(store: Store, prefix: str) -> Iterator[Hand]:
    with Hand(store.url, prefix) as hand:
        yield hand


@pytest.fixture
def no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable polling, so that only messages wake callers that wait for a result."""
    monkeypatch.setattr(task_queries, "poll_intervals", lambda: itertools.repeat(1000.0))


def subscribers(store: Store, hand: Hand) -> int:
    """Return the number of connections that are subscribed to messages about ended tasks of the
    queue."""
    return int(store.command("PUBSUB", "SHARDNUMSUB", hand.keys.done)[1])


def _listened(store: Store, hand: Hand) -> bool:
    return subscribers(store, hand) == 1


def scripts_run(store: Store) -> int:
    """Return the number of script runs since the last CONFIG RESETSTAT."""
    stats = store.command("INFO", "commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


# info


def test_info_returns_the_current_task(colour: Colour, client: Any, hand: Hand) -> None:
    handle = colour.do(client.enqueue(Task("t", {"n": 1}, id="a", retry=2, retention=60)))
    status = colour.do(handle.info())
    assert (status.id, status.queue, status.type) == ("a", "default", "t")
    assert (status.state, status.attempt, status.retry) == (TaskState.PENDING, 1, 2)
    assert status.value(dict[str, int]) == {"n": 1}
    [held] = hand.take()
    assert colour.do(handle.info()).state is TaskState.ACTIVE
    hand.kill(held, "boom")
    assert colour.do(client.handle("a").info()).last_error == "boom"


class Model(pydantic.BaseModel):
    n: int


@dataclass
class Data:
    n: int
    path: Path | None = None


@pytest.mark.parametrize(
    ("given", "type", "value"),
    [
        (Model(n=1), Model, Model(n=1)),
        ([Model(n=1)], list[Model], [Model(n=1)]),
        (Data(1, Path("/a")), Data, Data(1, Path("/a"))),
        (Path("/a"), Path, Path("/a")),
        (UUID(int=1), UUID, UUID(int=1)),
        ({"n": 1}, Data, Data(1)),
        (5, Annotated[int, msgspec.Meta(ge=5)], 5),
        ([1], Annotated[Any, []], [1]),
    ],
)
def test_payload_can_be_decoded_as_any_argument_type(
    colour: Colour, client: Any, given: Any, type: Any, value: Any
) -> None:
    """As in task functions, results are decoded by msgspec, or by pydantic for its own types."""
    assert colour.do(colour.do(client.enqueue(Task("t", given))).info()).value(type) == value


@pytest.mark.parametrize(
    ("type", "says"),
    [
        (Model, "n: Input should be a valid integer"),
        (Data, r"Expected `int`, got `str` - at `\$\.n`"),
        (threading.Lock().__class__, "not a type that can be made from a payload"),
        (5, "Type '5' is not supported"),
    ],
)
def test_a_payload_that_does_not_fit_the_type_is_invalid(
    colour: Colour, client: Any, type: Any, says: str
) -> None:
    status = colour.do(colour.do(client.enqueue(Task("t", {"n": "secret"}))).info())
    with pytest.raises(InvalidTask, match=f"^payload: .*{says}") as raised:
        status.value(type)
    assert "secret" not in str(raised.value)


def test_info_of_a_task_that_left_is_task_not_found(
    colour: Colour, client: Any, hand: Hand
) -> None:
    handle = colour.do(client.enqueue(Task("t", id="a")))
    hand.finish(hand.one())
    with pytest.raises(TaskNotFound, match="'a' is not in queue 'default'"):
        colour.do(handle.info())


# result


@pytest.mark.parametrize("value", [None, 7, {"a": [1, None]}, "text", b"raw", b""])
def test_the_result_is_what_the_handler_returned(
    colour: Colour, client: Any, hand: Hand, value: Any
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    hand.succeed(hand.one(), value=value)
    assert colour.do(handle.result()) == value
    assert colour.do(client.handle(handle.id).result(timeout=0)) == value


def test_the_result_of_a_dead_task_is_its_error(colour: Colour, client: Any, hand: Hand) -> None:
    handle = colour.do(client.enqueue(KEPT))
    hand.kill(hand.one(), "ValueError: boom")
    with pytest.raises(TaskFailed, match=r"^ValueError: boom$"):
        colour.do(handle.result())


def test_the_result_of_a_task_that_left_is_task_not_found(
    colour: Colour, client: Any, hand: Hand
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    hand.delete(handle.id, "pending")
    with pytest.raises(TaskNotFound):
        colour.do(handle.result())


def test_a_task_without_retention_has_no_result(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    """The handle reads the task once, and still raises the error of a dead task."""
    handle = colour.do(client.enqueue(Task("t", id="a")))
    store.command("CONFIG", "RESETSTAT")
    with pytest.raises(InvalidTask, match=r"retention: task 'a' in queue 'default' has none"):
        colour.do(handle.result())
    assert scripts_run(store) <= 2  # EVALSHA, then EVAL if the store lacks the script
    with pytest.raises(InvalidTask, match="retention"):
        colour.do(client.handle("a").result())
    hand.kill(hand.one(), "boom")
    for known in (handle, client.handle("a")):
        with pytest.raises(TaskFailed, match="boom"):
            colour.do(known.result())
    done = colour.do(client.enqueue(Task("t", id="b")))
    hand.delete("b", "pending")
    with pytest.raises(InvalidTask, match=r"'b' .* has none, .* set @app\.task\(retention="):
        colour.do(done.result())


@pytest.mark.parametrize(
    "record",
    [
        codec.encode(Result(error="the result is too large")),
        b"\xc1 this is no msgpack",
        codec.encode(Result(b"\xc1")),
    ],
)
def test_result_of_a_task_without_retention_raises_an_error(
    colour: Colour, client: Any, hand: Hand, record: bytes
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    hand.complete(hand.one(), record=record)
    with pytest.raises(QsyncError, match="is done, but its result") as caught:
        colour.do(handle.result())
    assert type(caught.value) is QsyncError


def test_custom_decoder_converts_the_record(colour: Colour, client: Any, hand: Hand) -> None:
    handle = colour.do(client.enqueue(KEPT))
    hand.succeed(hand.one(), value=b"raw")
    other = handle.with_decoder(lambda record: (record.value, record.is_value))
    assert (other, other.created, type(other)) == (handle, True, type(handle))
    assert colour.do(other.result()) == (b"raw", False)


@pytest.mark.parametrize("timeout", [0, 0.01, timedelta(milliseconds=10)])
def test_result_timeout_does_not_stop_the_task(
    colour: Colour, client: Any, hand: Hand, timeout: Any
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    with pytest.raises(ResultTimeout, match=r"did not end within 0(\.01)? s"):
        colour.do(handle.result(timeout=timeout))
    assert hand.state(handle.id) is TaskState.PENDING


@pytest.mark.parametrize("timeout", [-1, "1", float("nan"), True])
def test_invalid_timeout_is_refused(colour: Colour, client: Any, timeout: Any) -> None:
    with pytest.raises(InvalidTask, match=r"^timeout: "):
        colour.do(client.handle("a").result(timeout=timeout))


# waiting


END: dict[str, tuple[Callable[[Hand, Any], None], Any]] = {
    "success": (lambda hand, held: hand.succeed(held, value=42), 42),
    "death": (lambda hand, held: hand.kill(held, "boom"), TaskFailed),
    "cancel": (lambda hand, held: hand.stop(held), TaskCancelled),
}


@pytest.mark.usefixtures("no_looking")
@pytest.mark.parametrize("end", END)
def test_waiting_caller_is_woken_by_end(
    colour: Colour, client: Any, hand: Hand, store: Store, end: str
) -> None:
    ends, outcome = END[end]
    handle = colour.do(client.enqueue(KEPT))
    [held] = hand.take()
    waiting = colour.begin(lambda: handle.result(timeout=60))
    wait_until(lambda: subscribers(store, hand) == 1)
    if end == "cancel":
        assert colour.do(handle.cancel())
    ends(hand, held)
    if isinstance(outcome, int):
        assert waiting.result(10) == outcome
    else:
        with pytest.raises(outcome):
            waiting.result(10)


@pytest.mark.usefixtures("no_looking")
def test_waiting_caller_learns_of_deletion(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    waiting = colour.begin(lambda: handle.result())
    wait_until(lambda: subscribers(store, hand) == 1)
    hand.delete(handle.id, "pending")
    with pytest.raises(TaskNotFound):
        waiting.result(10)


@pytest.mark.faults(42)
@pytest.mark.usefixtures("no_looking")
def test_killed_subscription_is_opened_again(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    """Tasks are noticed whether they end before or after the subscription is opened again."""
    handles = colour.do(client.enqueue_many([KEPT, KEPT]))
    first, second = hand.take(2)
    waiting = [colour.begin(one.result) for one in handles]
    wait_until(lambda: subscribers(store, hand) == 1)
    assert store.command("CLIENT", "KILL", "TYPE", "pubsub") == 1
    hand.succeed(first, value=1)
    assert waiting[0].result(10) == 1
    wait_until(lambda: subscribers(store, hand) == 1)
    hand.succeed(second, value=2)
    assert waiting[1].result(10) == 2


@pytest.mark.faults(42)
def test_results_are_polled_without_the_right_to_subscribe(
    colour: Colour, store: Store, prefix: str, hand: Hand
) -> None:
    store.command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "+@all", "resetchannels")
    store.command("ACL", "LOG", "RESET")
    try:
        client = colour.client(store.url.replace("//", "//limited:x@"), prefix)
        handle = colour.do(client.enqueue(KEPT))
        [held] = hand.take()
        waiting = colour.begin(handle.result)
        wait_until(lambda: store.command("ACL", "LOG"))  # the store has denied the user something
        hand.succeed(held, value=3)
        assert waiting.result(10) == 3
        assert subscribers(store, hand) == 0
    finally:
        store.command("ACL", "DELUSER", "limited")


def test_one_subscription_serves_all_waiting_callers(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    for _ in range(2):
        handles = colour.do(client.enqueue_many([KEPT] * 4))
        held = hand.take(4)
        waiting = [colour.begin(one.result) for one in handles]
        wait_until(lambda: subscribers(store, hand) == 1)
        hand.succeed(*held, value="done")
        assert [one.result(10) for one in waiting] == ["done"] * 4
        assert subscribers(store, hand) == 1
        wait_until(lambda: subscribers(store, hand) == 0)


@pytest.mark.usefixtures("no_looking")
def test_many_coroutines_that_wait_share_round_trips(store: Store, prefix: str) -> None:
    async def main(hand: Hand) -> None:
        async with AsyncClient(
            AsyncBroker(redis_clients.parse(store.url)), prefix=prefix
        ) as client:
            handles = await client.enqueue_many([KEPT] * 400)
            held = hand.take(400)
            store.command("CONFIG", "RESETSTAT")
            waiting = asyncio.gather(*[one.result() for one in handles])
            await wait_until_async(lambda: subscribers(store, hand) == 1)
            hand.succeed(*held, value=1)
            assert await waiting == [1] * 400
            assert subscribers(store, hand) == 1

    with Hand(store.url, prefix) as hand:
        asyncio.run(main(hand))
    assert scripts_run(store) < 100


@pytest.mark.usefixtures("no_looking")
def test_closing_client_wakes_waiting_callers(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    handle = colour.do(client.enqueue(KEPT))
    waiting = colour.begin(handle.result)
    wait_until(lambda: subscribers(store, hand) == 1)
    colour.close_client(client)
    with pytest.raises(QsyncError, match="client is closed"):
        waiting.result(10)
    wait_until(lambda: subscribers(store, hand) == 0)


def test_waiting_coroutine_can_be_cancelled(store: Store, prefix: str) -> None:
    async def main(hand: Hand) -> None:
        async with AsyncClient(
            AsyncBroker(redis_clients.parse(store.url)), prefix=prefix
        ) as client:
            one, other = await client.enqueue_many([KEPT] * 2)
            held = hand.take(2)
            waiting = [asyncio.create_task(each.result()) for each in (one, other)]
            await wait_until_async(lambda: subscribers(store, hand) == 1)
            waiting[0].cancel()
            hand.succeed(*held, value=1)
            assert await waiting[1] == 1
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]

    with Hand(store.url, prefix) as hand:
        asyncio.run(main(hand))


@pytest.mark.faults(17)
@pytest.mark.guarantee(7)
def test_waiting_survives_a_restart_of_the_store(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    with Hand(own_store.url, prefix) as hand:
        client = colour.client(own_store.url, prefix)
        handle = colour.do(client.enqueue(KEPT))
        held = hand.one()
        waiting = colour.begin(handle.result)
        wait_until(lambda: subscribers(own_store, hand) == 1)
        own_store.kill()
        own_store.start()
        hand.succeed(held, value=1)
        assert waiting.result(20) == 1


def test_silent_store_does_not_delay_a_timeout(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix, read_timeout=0.2, patience=60.0)
    handle = colour.do(client.enqueue(KEPT))
    own_store.pause()
    with pytest.raises(ResultTimeout):
        colour.begin(lambda: handle.result(timeout=0.1)).result(8)
    own_store.resume()
    colour.close_client(client)


def test_stopped_store_raises_store_unavailable(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix, patience=0.1)
    handle = colour.do(client.enqueue(KEPT))
    own_store.kill()
    for ask in (handle.result, handle.info, handle.cancel):
        with pytest.raises(StoreUnavailable):
            colour.do(ask())


# cancel


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("retention", [None, 60])
@pytest.mark.parametrize("state", ["scheduled", "pending", "retry"])
def test_cancel_ends_a_waiting_task(
    colour: Colour, client: Any, hand: Hand, state: str, retention: int | None, rebuilt: bool
) -> None:
    """With retention, the cancelled task is kept; without retention, the task is removed."""
    delay = 60 if state == "scheduled" else None
    handle = colour.do(client.enqueue(Task("t", id="a", delay=delay, retention=retention)))
    if state == "retry":
        hand.retry(hand.one())
    assert hand.state("a") == state
    if rebuilt:
        handle = client.handle("a")
    assert colour.do(handle.cancel()) is True
    if retention is None:
        assert hand.state("a") is None
        assert colour.do(handle.cancel()) is False
    else:
        assert hand.state("a") is TaskState.COMPLETED
        assert colour.do(handle.cancel()) is True, "it still is cancelled"
        with pytest.raises(TaskCancelled, match="'a'"):
            colour.do(handle.result())


def test_cancel_of_a_running_task_is_sent_to_its_server(
    colour: Colour, client: Any, hand: Hand, store: Store
) -> None:
    handle = colour.do(client.enqueue(Task("t", id="a", retention=60)))
    [held] = hand.take()
    assert colour.do(handle.cancel()) is True
    assert colour.do(handle.info()).cancelled
    inbox = hand.globals.inbox(SERVER)
    with store.client() as redis:
        assert 0 < redis.pttl(inbox) <= 60_000
        [order] = redis.lrange(inbox, 0, -1)
    assert codec.decode(order) == ["cancel", "default", "a"]
    hand.stop(held)
    with pytest.raises(TaskCancelled):
        colour.do(handle.result())


@pytest.mark.parametrize("end", ["success", "death", "left", "never there"])
def test_cancel_of_ended_task_returns_false(
    colour: Colour, client: Any, hand: Hand, end: str
) -> None:
    handle = client.handle("a")
    if end != "never there":
        handle = colour.do(client.enqueue(Task("t", id="a", retention=60)))
        [held] = hand.take()
        if end == "success":
            hand.succeed(held)
        elif end == "death":
            hand.kill(held, "boom")
        else:
            hand.finish(held)
    before = hand.state("a")
    assert colour.do(handle.cancel()) is False
    assert colour.do(client.handle("a").cancel()) is False
    assert hand.state("a") is before


# reschedule


@pytest.mark.parametrize("state", ["scheduled", "retry"])
def test_reschedule_changes_when_a_waiting_task_is_due(
    colour: Colour, client: Any, hand: Hand, state: str
) -> None:
    handle = colour.do(
        client.enqueue(Task("t", id="a", delay=60 if state == "scheduled" else None))
    )
    if state == "retry":
        hand.retry(hand.one())
    at = datetime(2100, 1, 1, tzinfo=UTC)
    assert colour.do(handle.reschedule(process_at=at)) == at
    assert colour.do(handle.info()).due_at == at
    due = colour.do(client.handle("a").reschedule(delay=timedelta(seconds=30)))
    assert timedelta(seconds=20) < due - datetime.now(UTC) < timedelta(seconds=40)
    assert hand.state("a") == state
    assert colour.do(handle.reschedule(process_at=datetime(2000, 1, 1, tzinfo=UTC))) <= due
    assert hand.one().id == "a"


@pytest.mark.parametrize("state", ["pending", "active", "completed", "cancelled", "dead"])
def test_reschedule_in_another_state_is_an_error_that_names_it(
    colour: Colour, client: Any, hand: Hand, state: str
) -> None:
    handle = colour.do(client.enqueue(Task("t", id="a", retention=60)))
    if state == "cancelled":
        colour.do(handle.cancel())
    elif state != "pending":
        held = hand.one()
        if state == "completed":
            hand.succeed(held)
        elif state == "dead":
            hand.kill(held, "boom")
    with pytest.raises(TaskNotWaiting, match=f"'a' in queue 'default' is {state}") as raised:
        colour.do(handle.reschedule(delay=5))
    assert raised.value.state == state
    assert colour.do(handle.info()).state == state


@pytest.mark.parametrize(
    ("times", "error"),
    [
        ({}, "delay and process_at: both are None; pass one of them"),
        ({"delay": 1, "process_at": datetime.now(UTC)}, "cannot be used together"),
        ({"delay": -1}, "delay: -1 is not between 0"),
        ({"delay": True}, "delay: True"),
        ({"process_at": datetime(2100, 1, 1)}, "process_at: 2100-01-01T00:00:00 is naive"),  # noqa: DTZ001
        ({"process_at": 5}, "process_at: 5 is not a datetime"),
    ],
)
def test_reschedule_to_a_wrong_time_is_refused(
    colour: Colour, client: Any, times: dict[str, Any], error: str
) -> None:
    handle = colour.do(client.enqueue(Task("t", id="a", delay=60)))
    before = colour.do(handle.info()).due_at
    with pytest.raises(InvalidTask, match=error):
        colour.do(handle.reschedule(**times))
    assert colour.do(handle.info()).due_at == before


def test_reschedule_beyond_the_deadline_is_refused(colour: Colour, client: Any) -> None:
    deadline = datetime.now(UTC) + timedelta(hours=1)
    handle = colour.do(client.enqueue(Task("t", id="a", delay=60, deadline=deadline)))
    before = colour.do(handle.info()).due_at
    error = f"due at 2.* UTC, not before its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC"
    for times in ({"delay": 3601}, {"process_at": deadline}):
        with pytest.raises(InvalidTask, match=error):
            colour.do(handle.reschedule(**times))
    assert colour.do(handle.info()).due_at == before
    last = deadline - timedelta(microseconds=1)
    assert colour.do(handle.reschedule(process_at=last)) == last


def test_reschedule_of_a_missing_task_is_an_error(colour: Colour, client: Any) -> None:
    with pytest.raises(TaskNotFound, match="'a'"):
        colour.do(client.handle("a").reschedule(delay=5))


# lost replies


@pytest.mark.faults(35)
def test_repeated_cancel_and_reschedule_return_the_first_outcome(
    colour: Colour, store: Store, prefix: str, hand: Hand
) -> None:
    with Proxy(store.port) as proxy:
        client = colour.client(proxy.url, prefix)

        def lose_reply(call: Callable[[], Any], is_done: Callable[[], Any]) -> Any:
            proxy.down.cut = 1.0
            answer = colour.begin(call)
            wait_until(is_done)
            proxy.heal()
            return answer.result(10)

        first = colour.do(client.enqueue(Task("t", delay=60)))
        colour.do(first.reschedule(delay=60))  # makes the store load the scripts
        assert colour.do(first.cancel())
        gone = colour.do(client.enqueue(Task("t", id="a", delay=60)))
        assert lose_reply(gone.cancel, lambda: hand.state("a") is None) is True
        soon = colour.do(client.enqueue(Task("t", id="b", delay=60)))

        def taken() -> Any:
            with contextlib.suppress(AssertionError):
                return hand.take()

        due = lose_reply(lambda: soon.reschedule(delay=0), taken)
        assert due < datetime.now(UTC) + timedelta(seconds=30)
        assert hand.state("b") == "active"
        assert colour.do(gone.cancel()) is False
        with pytest.raises(TaskNotWaiting):
            colour.do(soon.reschedule(delay=0))
        colour.close_client(client)


# handles


def test_handles_are_equal_when_id_and_queue_are(colour: Colour, client: Any) -> None:
    handle = colour.do(client.enqueue(Task("t", id="a", queue="q")))
    rebuilt = client.handle("a", queue="q")
    assert handle == rebuilt
    assert len({handle, rebuilt, client.handle("a"), client.handle("b", queue="q")}) == 3
    assert handle != "a"
    assert (handle.created, rebuilt.created) == (True, False)
    kind = type(handle).__name__
    assert repr(handle) == f"<{kind} id='a' queue='q' created=True>"


@pytest.mark.parametrize(
    ("id", "queue", "field"),
    [("", "q", "id"), ("a b", "q", "id"), (None, "q", "id"), ("a", "{q}", "queue")],
)
def test_handle_with_an_invalid_name_is_refused(
    client: Any, id: Any, queue: str, field: str
) -> None:
    with pytest.raises(InvalidTask, match=rf"^{field}: "):
        client.handle(id, queue=queue)


def test_cluster_handle_reads_results_and_cancels_on_the_right_node(
    colour: Colour, cluster: Cluster, prefix: str
) -> None:
    client = colour.client(cluster.url, prefix)
    for queue in ("one", "two", "three", "four"):
        with Hand(cluster.url, prefix, queue) as hand:
            done, stopped = colour.do(client.enqueue_many([KEPT.replace(queue=queue)] * 2))
            held, _ = hand.take(2)
            waiting = colour.begin(done.result)
            holder = cluster.holder(hand.keys.done)
            wait_until(partial(_listened, holder, hand))
            hand.succeed(held, value=queue)
            assert waiting.result(10) == queue
            assert colour.do(stopped.cancel())


async def test_waiting_callers_do_not_read_payloads(store: Store, prefix: str) -> None:
    """If callers that wait read payloads, 500 callers would request half a gigabyte at the same
    time."""

    broker = AsyncBroker(redis_clients.parse(store.url))
    async with AsyncClient(broker, prefix=prefix) as client:
        tasks = [Task("x", b"x" * 100_000, retention=60) for _ in range(100)]
        handles = await client.enqueue_many(tasks)
        with store.client() as redis:
            before = redis.info("stats")["total_net_output_bytes"]
            results = await asyncio.gather(
                *(handle.result(timeout=0.05) for handle in handles), return_exceptions=True
            )
            sent = redis.info("stats")["total_net_output_bytes"] - before
        assert all(isinstance(result, ResultTimeout) for result in results)
        assert sent < 1_000_000
