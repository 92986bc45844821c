"""Failed tasks with the same error share a group even if their messages differ."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from qsync import Mux, Qsync, Task, TaskInfo, codec
from qsync.fingerprint import fingerprint_of, mark_of
from qsync.inspector import ErrorGroup, Filter, Inspector, merge_groups
from qsync.inspector.error_groups import KEYS_SHOWN, OTHER_KEYS
from qsync.message import Failure
from qsync.server.error_text import describe
from qsync.state import TaskState
from tests.support.inspector_driver import Bed, S, bed
from tests.support.stores import Store, wait_until_async


def described(raise_it: Callable[[], object]) -> str:
    """Return the exception that a call raises, in the form in which it is stored."""
    try:
        raise_it()
    except Exception as error:
        return describe(error)
    raise AssertionError("nothing was raised")


def one_way(number: int) -> None:
    if number > 5:
        raise ValueError(f"over five: {number}")
    raise ValueError(f"up to five: {number}")


def another_way(number: int) -> None:
    raise ValueError(f"up to five: {number}")


def group(type: str, raise_it: Callable[[], object]) -> str:
    return fingerprint_of(type, described(raise_it)).id


def test_message_and_line_number_do_not_change_the_group() -> None:
    assert group("t", lambda: one_way(1)) == group("t", lambda: one_way(9))


def test_type_class_and_function_define_a_group() -> None:
    groups = {
        group("t", lambda: one_way(1)), group("u", lambda: one_way(1)),
        group("t", lambda: another_way(1)), group("t", lambda: int("x" * 3)),
        group("t", lambda: {}["missing"]),
    }  # fmt: skip
    assert len(groups) == 5


def test_location_of_an_error_is_the_innermost_function_of_the_program() -> None:
    found = fingerprint_of("t", described(lambda: json.loads("{")))
    assert found.error == "JSONDecodeError"
    assert found.where.startswith("inspector/test_errors.py:")
    assert found.where.endswith(" in <lambda>")
    # A traceback that has only library code is grouped by the library's function.
    text = 'KeyError: 1\n\n  File "/x/site-packages/lib/a.py", line 3, in get\n    raise\n'
    assert fingerprint_of("t", text).where == "lib/a.py:3 in get"


def test_causes_do_not_hide_the_raising_function() -> None:
    def wrapped() -> None:
        try:
            another_way(1)
        except ValueError as error:
            raise RuntimeError("wrapped") from error

    found = fingerprint_of("t", described(wrapped))
    assert (found.error, found.where.split(" in ")[1]) == ("RuntimeError", "wrapped")


def test_release_in_another_folder_keeps_the_same_groups() -> None:
    text = 'KeyError: 1\n\n  File "/srv/{}/shop/tasks.py", line 7, in charge\n    raise\n'
    assert fingerprint_of("t", text.format(1)).id == fingerprint_of("t", text.format(2)).id


@pytest.mark.parametrize("error", ["", "\n", ":", "crashed 3 times", "é: \n\n\n", "x" * 9000])
def test_every_error_text_has_a_group(error: str) -> None:
    found = fingerprint_of("t", error)
    assert len(found.id) == 8
    assert found.where == ""


def single(at: int, **fields: Any) -> ErrorGroup:
    time = datetime.fromtimestamp(at, UTC)
    given = {
        "id": "a", "type": "t", "error": "E", "where": "", "text": f"E: {at}", "sample": f"s{at}",
        "queue": "q", "states": {TaskState.DEAD: 1}, "queues": {"q": 1}, "keys": {},
        "first_at": time, "last_at": time, **fields,
    }  # fmt: skip
    return ErrorGroup(**given)


def test_merged_groups_keep_the_latest_sample_and_all_counts() -> None:
    states = {TaskState.RETRY: 2}
    parts = [single(5), single(9, states=states, queues={"r": 2}), single(1), single(3, id="b")]
    first, second = merge_groups(parts)
    assert (first.id, first.count, second.count) == ("a", 4, 1)
    assert first.states == {TaskState.DEAD: 2, TaskState.RETRY: 2}
    assert first.queues == {"q": 2, "r": 2}
    assert (first.sample, first.text) == ("s9", "E: 9")
    assert first.first_at == single(1).first_at
    assert first.last_at == single(9).last_at
    assert merge_groups([merge_groups(parts[:2])[0], *parts[2:]]) == [first, second]


def test_keys_are_bounded_and_none_is_dropped() -> None:
    parts = [single(at, keys={f"k{at}": 1}) for at in range(KEYS_SHOWN + 5)]
    [merged] = merge_groups(parts)
    assert len(merged.keys) == KEYS_SHOWN + 1
    assert merged.keys[OTHER_KEYS] == 5
    assert sum(merged.keys.values()) == len(parts)


@pytest.fixture
async def inspector(valkey: Store, prefix: str) -> AsyncIterator[Inspector]:
    """Yield an inspector for 300 dead tasks with one error, 7 with another, and 2 tasks that wait
    for a retry."""
    mux = Mux()

    @mux.handle("one")
    async def one(task: TaskInfo) -> None:
        one_way(int(task.payload))

    @mux.handle("two")
    async def two(task: TaskInfo) -> None:
        another_way(int(task.payload))

    app = Qsync(valkey.url, prefix=prefix, mux=mux)
    async with app, app.async_client() as client, app.inspector() as inspector:
        await client.enqueue_many(Task("one", str(n).encode(), retry=0) for n in range(300))
        await client.enqueue_many(
            Task("two", b"1", retry=0, fairness_key="acme", queue="other") for _ in range(7)
        )
        await client.enqueue_many(
            Task("two", b"2", retry=5, retry_delay=600, queue="other") for _ in range(2)
        )

        async def failed() -> bool:
            queues = (await inspector.overview()).queues
            return sum(
                queue.states[state] for queue in queues for state in ("dead", "retry")
            ) == 309  # fmt: skip

        async with app.server(queues=["default", "other"], log_errors="class"):
            await wait_until_async(failed)
        yield inspector


async def groups_of(inspector: Inspector, queue: str, state: str) -> list[ErrorGroup]:
    groups, cursor = list[ErrorGroup](), None
    while True:
        part = await inspector.errors(queue, state, cursor=cursor)
        groups, cursor = merge_groups([*groups, *part.groups]), part.cursor
        if cursor is None:
            return groups


async def test_groups_of_a_store_are_listed(inspector: Inspector) -> None:
    [many] = await groups_of(inspector, "default", "dead")
    assert (many.count, many.type, many.error) == (300, "one", "ValueError")
    assert many.where.endswith(" in one_way")
    [few] = await groups_of(inspector, "other", "dead")
    assert (few.count, few.keys, few.queues) == (7, {"acme": 7}, {"other": 7})
    [waiting] = await groups_of(inspector, "other", "retry")
    assert waiting.id == few.id
    assert merge_groups([few, waiting])[0].states == {TaskState.DEAD: 7, TaskState.RETRY: 2}


async def test_retry_and_delete_of_a_group_leave_other_tasks(inspector: Inspector) -> None:
    [few] = await groups_of(inspector, "other", "dead")
    only = Filter(group=few.id)
    none = await inspector.retry_matching("default", "dead", only)
    assert (none.scanned, none.done) == (250, 0)
    page = await inspector.tasks("other", "dead", filter=only)
    assert {row.id for row in page.tasks} >= {few.sample}
    assert (await inspector.delete_matching("other", "dead", only)).done == 7
    assert (await inspector.retry_matching("other", "retry", only)).done == 2
    states = {queue.name: queue.states for queue in (await inspector.overview()).queues}
    assert states["default"]["dead"] == 300
    assert states["other"]["pending"] == 2


async def test_states_without_errors_are_refused(inspector: Inspector) -> None:
    with pytest.raises(ValueError, match="pending tasks cannot be grouped by error; use dead or"):
        await inspector.errors("default", "pending")


# Counts that the store maintains.

KEYS = (*[f"k{n:02d}" for n in range(12)], "x" * 30, "y" * 250, "z" * 256, "ключ")


async def both_ways(made: Bed, queue: str, state: str) -> tuple[list[ErrorGroup], int]:
    """Return the groups that the store counts, after checking that a scan of all tasks finds the
    same groups."""
    scanned, cursor, found = list[ErrorGroup](), None, list[ErrorGroup]()
    everything = Filter(older_than=-1e9)
    while True:
        part = await made.inspector.errors(queue, state, everything, cursor=cursor)
        scanned, cursor = [*scanned, *part.groups], part.cursor
        if cursor is None:
            break
    parts = 0
    while True:
        part = await made.inspector.errors(queue, state, cursor=cursor)
        found, cursor, parts = [*found, *part.groups], part.cursor, parts + 1
        if cursor is None:
            break
    expected, counted = merge_groups(scanned), merge_groups(found)
    plain = [replace(group, keys={}, sample="", text="") for group in expected]
    assert [replace(group, keys={}, sample="", text="") for group in counted] == plain
    for one, other in zip(expected, counted, strict=True):
        assert sum(one.keys.values()) == sum(other.keys.values())
        assert (len(one.keys), bool(other.text)) == (len(other.keys), bool(one.text))
    return counted, parts


async def test_the_store_counts_what_a_scan_finds(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        for number in range(3):
            for key in KEYS[: 16 - number]:
                tasks = [Task("t", fairness_key=key)] * (30 + number)
                await made.dead(*tasks, error=f"ValueError: {key}\n\n  line\n", queue="marked")
            await made.dead(*[Task("u")] * 100, error=f"KeyError: {number}", queue="marked")
        counted, parts = await both_ways(made, "marked", "dead")
        assert parts == 1
        assert [group.count for group in counted] == [16 * 30 + 15 * 31 + 14 * 32, 300]
        assert len(counted[0].keys) == KEYS_SHOWN + 1
        [sample] = [
            await made.inspector.task(group.sample, queue="marked") for group in counted[1:]
        ]
        assert sample is not None
        assert (sample.error, counted[1].text) == ("KeyError: 2", "KeyError: 2")

        for type, numbers in (("u*", [300]), ("none", []), ("t", [counted[0].count])):
            part = await made.inspector.errors("marked", "dead", Filter(type=type))
            assert [group.count for group in part.groups] == numbers

        # Some records are from an older version, some are missing, and some are from a server that
        # died.
        client = valkey.client()
        ids = client.zrange(made.keys("marked").key("dead"), 0, -1)
        for number, id in enumerate(ids[5::140]):
            record = b"\x99" + codec.encode(Failure(1, "OSError: old", 7 * S))[1:-1]
            if number % 3 == 0:
                client.hset(made.keys("marked").key("failures"), id, record)
            elif number % 3 == 1:
                client.hdel(made.keys("marked").key("failures"), id)
            else:
                client.hset(made.keys("marked").key("crashes"), id, "3!")
        counted, parts = await both_ways(made, "marked", "dead")
        assert parts > 1
        assert {group.error for group in counted} >= {"OSError", "crashed", "ValueError"}

        await made.enqueue(*[Task("r", retry=9)] * 520)
        for delay in (500, 900):
            held = await made.lease(260)
            await made.retry(held, "E: x", delay, mark=mark_of("r", "E: x", None))
        [waiting], parts = await both_ways(made, "default", "retry")
        assert (waiting.count, parts) == (520, 1)
        assert waiting.last_at == datetime.fromtimestamp(1_700_000_000, UTC)
