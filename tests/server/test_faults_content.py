"""Invalid or hostile content of a message, a result or an exception affects at most one task."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsync import codec
from qsync.broker import operator_ops, ops
from qsync.errors import InvalidTask, QsyncError
from qsync.message import ERROR_LIMIT, Failure, decode_failure, decode_message
from qsync.mux import Mux
from qsync.new_task import new_nonce, new_task
from qsync.task import PAYLOAD_LIMIT, Task, TaskInfo
from tests.support.queue_driver import POLICY
from tests.support.server import Bench, bench, left_over, until
from tests.support.stores import Store

GARBAGE = b"\xc1 this is no message"


def echoing(ran: list[str]) -> Mux:
    """Return a mux whose handler of `x` records the tasks."""
    mux = Mux()

    @mux.handle("x")
    async def x(task: TaskInfo) -> bytes:
        ran.append(task.id)
        return task.payload

    return mux


def counters(store: Store, b: Bench) -> dict[str, int]:
    with store.client() as client:
        stored = client.hgetall(b.keys().key("stats"))
    return {name.decode(): int(value) for name, value in stored.items()}


@pytest.mark.faults(55)
async def test_one_bad_message_in_a_thousand_is_dead_and_the_others_complete(
    store: Store, prefix: str
) -> None:
    ran: list[str] = []
    async with bench(store.url, prefix) as b:
        handles = await b.client.enqueue_many([Task("x") for _ in range(1000)])
        store.client().hset(b.keys().key("tasks"), handles[500].id, GARBAGE)
        async with b.server(echoing(ran)):
            await until(lambda: len(ran) == 999, 20)
        assert sorted(ran) == sorted(one.id for one in handles if one is not handles[500])
        assert await b.state(handles[500].id) == "dead"
        assert store.client().hget(b.keys().key("tasks"), handles[500].id) == GARBAGE
        assert "undecodable" in ((await handles[500].info()).last_error or "")


@pytest.mark.faults(55)
async def test_recovery_does_not_read_messages(store: Store, prefix: str) -> None:
    """A server dies with ten tasks, one of which has a damaged message; all ten are recovered."""

    ran: list[str] = []
    async with bench(store.url, prefix) as b:
        handles = await b.client.enqueue_many([Task("x") for _ in range(10)])
        fetch = ops.fetch(b.keys(), server="gone", number=1, wanted=10, policy=POLICY)
        assert len((await b.broker.run(fetch)).ids) == 10
        store.client().hset(b.keys().key("tasks"), handles[3].id, GARBAGE)
        assert await b.broker.run(ops.abandon(b.keys(), "gone")) == ("0", 10)
        async with b.server(echoing(ran)):
            await b.reaches(handles[3].id, "dead")
            await until(lambda: len(ran) == 9)
        assert counters(store, b)["crashed"] == 10


def changed(data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return the message with changed elements."""
    elements = msgspec.msgpack.decode(data)
    change(elements)
    return msgspec.msgpack.encode(elements)


@pytest.mark.faults(57)
async def test_messages_of_other_versions_are_handled(store: Store, prefix: str) -> None:
    """Tasks run if their messages have a later or an earlier minor version, with more or fewer
    elements. A message of a later major version makes its task dead, and its bytes are kept."""

    ran: list[str] = []
    async with bench(store.url, prefix) as b:
        names = ("same", "later", "earlier", "major")
        handles = await b.client.enqueue_many([Task("x", id=name) for name in names])
        key, client = b.keys().key("tasks"), store.client()
        stored: dict[str, bytes] = {name: client.hget(key, name) for name in names}
        stored["later"] = changed(stored["later"], lambda parts: parts.append({"new": 1}))
        stored["earlier"] = changed(stored["earlier"], lambda parts: parts.pop())
        stored["major"] = changed(stored["major"], lambda parts: parts.__setitem__(0, 2))
        client.hset(key, mapping=stored)
        async with b.server(echoing(ran)):
            await b.reaches("major", "dead")
            await until(lambda: len(ran) == 3)
        assert sorted(ran) == ["earlier", "later", "same"]
        assert client.hget(key, "major") == stored["major"]
        assert "version 2" in ((await handles[3].info()).last_error or "")
        assert await b.broker.run(operator_ops.run(b.keys(), "major", "dead")) == ("ok", "")


@pytest.mark.faults(56)
def test_rollout_and_rollback_of_a_new_type_lose_no_task_and_charge_no_attempt(
    store: Store, prefix: str
) -> None:
    """First old servers run, then old and new servers, then new servers, then old servers again,
    and finally new servers."""

    async def main() -> None:
        ran: list[str] = []
        old, new = Mux(), echoing(ran)

        @old.handle("y")
        @new.handle("y")
        async def y(task: TaskInfo) -> None:
            ran.append(task.id)

        async def enqueue(b: Bench) -> None:
            both = [Task(type, retry=0) for type in "xy" for _ in range(20)]
            accepted.extend(await b.client.enqueue_many(both))

        def done(type: str) -> Callable[[], bool]:
            wanted = {one.id for at, one in enumerate(accepted) if type == "xy"[at % 40 // 20]}
            return lambda: wanted <= set(ran)

        accepted: list[Any] = []
        async with bench(store.url, prefix) as b:
            async with b.server(old):
                await enqueue(b)
                await until(done("y"))
                async with b.server(new):
                    await until(done("x"))
            async with b.server(new):
                await enqueue(b)
                await until(done("x"))
                await until(done("y"))
            async with b.server(old):  # the rollback
                await enqueue(b)
                await until(done("y"))
            async with b.server(new):
                await until(done("x"))
            assert sorted(ran) == sorted(one.id for one in accepted), "each task runs once"
            counted = counters(store, b)
            assert counted.keys().isdisjoint({"failed", "dead", "crashed", "retried"})

    asyncio.run(main())
    assert left_over(store.client(), prefix).keys() <= {"calls"}


@pytest.mark.faults(56)
async def test_type_without_a_handler_for_an_hour_is_dead(store: Store, prefix: str) -> None:
    async with bench(store.url, prefix) as b, b.server(Mux()):
        early, late = await b.client.enqueue_many([Task("nobodys") for _ in range(2)])
        client, keys = store.client(), b.keys()
        for handle, minutes in ((early, 59), (late, 61)):
            await b.reaches(handle.id, "scheduled")
            before = decode_failure(client.hget(keys.key("failures"), handle.id))
            since = before.unknown_since_us - minutes * 60_000_000
            record = Failure(unknown_since_us=since, unknown_times=7)
            client.hset(keys.key("failures"), handle.id, codec.encode(record))
            client.zadd(keys.key("scheduled"), {handle.id: 1})
            client.lpush(keys.key("wake"), "1")
        await b.reaches(late.id, "dead")
        assert "for an hour" in ((await late.info()).last_error or "")
        assert await b.state(early.id) != "dead"


@pytest.mark.faults(59)
@pytest.mark.parametrize("over", [0, 1])
async def test_result_over_a_megabyte_is_an_error_without_a_retry(
    store: Store, prefix: str, over: int
) -> None:
    mux, runs = Mux(), list[int]()

    @mux.handle("big")
    async def big(task: TaskInfo) -> bytes:
        runs.append(task.attempt)
        return b"x" * (PAYLOAD_LIMIT + over)

    async with bench(store.url, prefix) as b, b.server(mux):
        handle = await b.client.enqueue(Task("big", retention=60, retry=3))
        await b.reaches(handle.id, "dead" if over else "completed")
        if over:
            with pytest.raises(QsyncError, match="exceeds the limit"):
                await handle.result(5)
        else:
            assert len(await handle.result(5)) == PAYLOAD_LIMIT
    assert runs == [1]


@pytest.mark.faults(59)
def test_payload_over_a_megabyte_is_refused() -> None:
    assert new_task(Task("x", b"x" * PAYLOAD_LIMIT), new_nonce())
    with pytest.raises(InvalidTask, match="over the limit"):
        new_task(Task("x", b"x" * (PAYLOAD_LIMIT + 1)), new_nonce())


HEADS = b"\x00\x90\x98\xc0\xc1\xcf\xdd\xdf\xff"
"""First bytes of msgpack values."""


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """Change, delete or insert some bytes of a message."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(4):
            case 0:
                spoilt[at : at + 1] = chance.randbytes(1)
            case 1:
                del spoilt[at : at + chance.randint(1, 8)]
            case 2:
                spoilt[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                spoilt[at : at + 1] = bytes(
                    [chance.choice(b"\x00\x90\x98\xc0\xc1\xcf\xdd\xdf\xff")]
                )
    return bytes(spoilt)


@pytest.mark.faults(60)
def test_100_000_random_blobs_are_decoded_or_refused() -> None:
    chance = random.Random(60)
    stored = b"\x98\x01\xcf" + bytes(8) + new_task(Task("x", {"a": [1] * 9}), new_nonce()).message
    refused = 0
    for _ in range(100_000):
        blob = spoilt(chance, stored)
        try:
            decode_message(blob)
        except codec.CodecError:
            refused += 1
        decode_failure(blob)
    assert 1_000 < refused < 100_000


@pytest.mark.faults(60)
async def test_a_server_survives_messages_of_any_bytes(store: Store, prefix: str) -> None:
    """Each of 2,000 tasks completes, dies, or waits for a server that has its handler."""

    chance, ran = random.Random(61), list[str]()
    async with bench(store.url, prefix) as b:
        handles = await b.client.enqueue_many(
            [Task("x", {"n": n}, deadline=None, headers={"h": "v"}) for n in range(2000)]
        )
        key, client = b.keys().key("tasks"), store.client()
        stored = client.hgetall(key)
        client.hset(key, mapping={id: spoilt(chance, blob) for id, blob in stored.items()})
        async with b.server(echoing(ran)) as server:
            pending, active = b.keys().key("pending"), b.keys().key("active")
            await until(lambda: not client.exists(pending, active), 20)
            good = await b.client.enqueue(Task("x", retention=60))
            assert await good.result(10) == b""
            assert not server.broken
        assert len(handles) > len(ran) > 10
        assert client.zcard(b.keys().key("dead")) > 100


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.just("\ud800") | st.just("a\x00b") | st.integers(4000, 16_000).map(lambda n: 1 << n),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.faults(60)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(value=values, depth=st.sampled_from((0, 10, 63, 64, 65, 2000)))
def test_any_value_is_carried_or_refused_at_once(value: Any, depth: int) -> None:
    for _ in range(depth):
        value = [value]
    try:
        sent = new_task(Task("x", value), new_nonce())
    except InvalidTask:
        return
    message = decode_message(b"\x98\x01\xcf" + bytes(8) + sent.message)
    assert message.type == "x"
    if message.is_value:
        assert codec.encode_value(codec.decode(message.payload)) == message.payload


class Hostile(type):
    """An exception class whose name cannot be read."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NoTextAtAll(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class NoString(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class NoPickle(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__()

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class NoTraceback(Exception):
    @property
    def traceback(self) -> str:
        raise RuntimeError("no traceback")


class ExitingTraceback(Exception):
    @property
    def traceback(self) -> str:
        raise SystemExit


class OddTraceback(Exception):
    traceback = 5


class NoName(Exception, metaclass=Hostile):
    pass


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    else:
        raise ValueError("deep")


def nested() -> None:
    error: Exception = ValueError("x" * 1000)
    for _ in range(500):
        error = ExceptionGroup("many", [error, ValueError("y" * 1000)])
    raise error


def raise_(error: BaseException) -> None:
    raise error


HOSTILE: dict[str, Callable[[], None]] = {
    "text raises": lambda: raise_(NoText()),
    "formatting raises a BaseException": lambda: raise_(NoTextAtAll()),
    "text is none": lambda: raise_(NoString()),
    "cannot be pickled": lambda: raise_(NoPickle(1, 2)),
    "traceback raises": lambda: raise_(NoTraceback("x")),
    "traceback exits": lambda: raise_(ExitingTraceback("x")),
    "traceback is none": lambda: raise_(OddTraceback("x")),
    "name raises": lambda: raise_(NoName("x")),
    "100 MB of text": lambda: raise_(ValueError("x" * 100_000_000)),
    "text is no UTF-8": lambda: raise_(ValueError("\ud800\x00\udfff")),
    "deep": lambda: deep(800),
    "nested": nested,
}


@pytest.mark.faults(62)
@pytest.mark.parametrize("place", ["loop", "thread"])
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_exception_fails_only_its_task(
    valkey: Store, prefix: str, name: str, place: str
) -> None:
    mux = echoing([])

    def explode(task: TaskInfo) -> None:
        HOSTILE[name]()

    async def explode_on_loop(task: TaskInfo) -> None:
        HOSTILE[name]()

    mux.handle("bad")(explode if place == "thread" else explode_on_loop)
    async with bench(valkey.url, prefix) as b, b.server(mux, concurrency=1):
        bad = await b.client.enqueue(Task("bad", retry=1, retry_delay=0))
        await b.reaches(bad.id, "dead")
        info = await bad.info()
        assert info.attempt == 2
        assert 0 < len((info.last_error or "").encode()) <= ERROR_LIMIT
        good = await b.client.enqueue(Task("x", b"well", retention=60))
        assert await good.result(5) == b"well"


@pytest.mark.faults(62)
async def test_hostile_error_hook_does_not_affect_the_server(valkey: Store, prefix: str) -> None:
    mux = echoing([])

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise NoText

    def on_error(error: BaseException, info: TaskInfo) -> None:
        raise NoText

    async with bench(valkey.url, prefix) as b, b.server(mux, on_error=on_error):
        handle = await b.client.enqueue(Task("bad", retry=0))
        await b.reaches(handle.id, "dead")
        good = await b.client.enqueue(Task("x", b"well", retention=60))
        assert await good.result(5) == b"well"
