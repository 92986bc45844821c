"""Blocking and async clients put, read and delete stored schedules."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from qsync import InvalidTask, QsyncError, SchemaMismatch, Task
from qsync.broker import program_schedule_ops
from qsync.codec import decode
from qsync.keys import QueueKeys
from qsync.schedules import SCHEDULES_PER_CALL, AsyncSchedules, Schedules
from tests.conftest import Colour
from tests.support.stores import Cluster, Store


@pytest.fixture
def client(colour: Colour, store: Store, prefix: str) -> Any:
    return colour.client(store.url, prefix)


def test_put_schedule_is_read_as_it_was_put(colour: Colour, client: Any) -> None:
    put = colour.do(
        client.schedules.put(
            "report-42", Task("report", {"n": 42}, retry=1), cron="0  9 * * *",
            tz=ZoneInfo("Asia/Tokyo"), missed="once",
        )
    )  # fmt: skip
    assert colour.do(client.schedules.get("report-42")) == put
    assert (put.name, put.queue, put.type) == ("report-42", "default", "report")
    assert (put.cron, put.tz, put.every, put.missed) == ("0 9 * * *", "Asia/Tokyo", None, "once")
    assert decode(put.payload) == {"n": 42}
    assert put.next_at.astimezone(ZoneInfo("Asia/Tokyo")).hour == 9
    assert timedelta() < put.next_at - put.put_at <= timedelta(days=1)
    assert put.paused is False


def test_second_put_replaces_the_first_even_in_another_queue(colour: Colour, client: Any) -> None:
    colour.do(client.schedules.put("a", Task("t"), every=60))
    colour.do(client.schedules.put("a", Task("u", queue="other"), every=timedelta(hours=1)))
    [found] = colour.do(client.schedules.list())
    assert (found.queue, found.type, found.every) == ("other", "u", 3600.0)
    assert colour.do(client.schedules.delete("a")) is True
    assert colour.do(client.schedules.delete("a")) is False
    assert colour.do(client.schedules.get("a")) is None
    assert colour.do(client.schedules.list()) == []


def test_list_has_all_names_with_the_prefix_in_order(colour: Colour, client: Any) -> None:
    names = sorted(f"report-{number}" for number in range(30))
    for name in [*names, "x"]:
        colour.do(client.schedules.put(name, Task("t"), every=3600))
    assert [one.name for one in colour.do(client.schedules.list("report-"))] == names
    assert [one.name for one in colour.do(client.schedules.list())] == [*names, "x"]
    assert colour.do(client.schedules.list("nothing")) == []
    assert len(names) < SCHEDULES_PER_CALL


def test_put_of_a_paused_schedule_returns_its_pause(
    colour: Colour, client: Any, store: Store, prefix: str
) -> None:
    colour.do(client.schedules.put("a", Task("t"), every=60))
    colour.do(
        client._broker.run(
            program_schedule_ops.pause_schedule(QueueKeys(prefix, "default"), "a", b"me")
        )
    )
    assert colour.do(client.schedules.get("a")).paused
    assert colour.do(client.schedules.put("a", Task("t"), every=61)).paused


GOOD: dict[str, Any] = {"name": "a", "task": Task("t"), "every": 60}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "cron": ({"every": None, "cron": "61 * * * *"}, "cron='61 [*] [*] [*] [*]'"),
    "cron of another type": ({"every": None, "cron": 5}, "cron=5: must be a string"),
    "cron that is never due": ({"every": None, "cron": "0 0 29 2 1#6"}, "cron=.*Bad day"),
    "long cron": (
        {"every": None, "cron": ",".join(["1"] * 600) + " * * * *"}, "cron=.*characters exceed",
    ),
    "time zone": ({"every": None, "cron": "* * * * *", "tz": "Mars"}, "tz='Mars': not in the time"),
    "time zone without cron": ({"tz": "UTC"}, "tz: 'UTC' needs cron="),
    "two schedules": ({"cron": "* * * * *"}, "pass either cron= or every="),
    "no schedule": ({"every": None}, "pass either cron= or every="),
    "every": ({"every": 0}, "every=0: must be seconds"),
    "missed": ({"missed": "never"}, "missed='never': must be one of"),
    "empty name": ({"name": ""}, "name='': must be 1 to 128"),
    "long name": ({"name": "n" * 129}, "name='nnn.*must be 1 to 128"),
    "name with a space": ({"name": "a b"}, "name='a b'"),
    "name of another type": ({"name": b"a"}, "name=b'a'"),
    "no task": ({"task": "t"}, "Task"),
    "id": ({"task": Task("t", id="x")}, "id: 'x' would be the same at every tick of 'a'"),
    "delay": ({"task": Task("t", delay=5)}, "delay: 5 would be the same"),
    "process_at": (
        {"task": Task("t", process_at=datetime.fromisoformat("2099-01-01T00:00:00Z"))},
        "process_at: .* would be the same",
    ),
    "deadline": (
        {"task": Task("t", deadline=datetime.fromisoformat("2099-01-01T00:00:00Z"))},
        "deadline: .* would be the same",
    ),
    "large payload": ({"task": Task("t", b"x" * (1 << 20) + b"x")}, "payload: .* over the limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value_is_refused_by_name(colour: Colour, client: Any, case: str) -> None:
    changes, text = WRONG[case]
    given = GOOD | changes
    with pytest.raises(InvalidTask, match=text):
        colour.do(client.schedules.put(given.pop("name"), given.pop("task"), **given))
    assert colour.do(client.schedules.list()) == []


def test_wrong_name_is_refused_by_the_other_calls(colour: Colour, client: Any) -> None:
    for call, field in ((client.schedules.get, "name"), (client.schedules.delete, "name"),
                        (client.schedules.list, "prefix")):  # fmt: skip
        with pytest.raises(InvalidTask, match=f"{field}='a b[*]'"):
            colour.do(call("a b*"))


def test_name_of_a_program_is_refused_with_both_named(
    colour: Colour, client: Any, store: Store, prefix: str
) -> None:
    from qsync.broker.schedule_records import record_of
    from qsync.schedule import Cron, Periodic

    record = record_of(Periodic("nightly", Cron("0 3 * * *")), "clean")
    call = program_schedule_ops.publish_schedules(
        QueueKeys(prefix, "default"), [("nightly", record, b"")]
    )
    colour.do(client._broker.run(call))
    text = (
        r"name='nightly': a program has a periodic task of this name for queue 'default' "
        r"\(0 3 \* \* \* \(UTC\), task 'clean'\), so every 1 min, task 't', cannot be stored"
    )
    with pytest.raises(InvalidTask, match=text):
        colour.do(client.schedules.put("nightly", Task("t"), every=60))
    assert colour.do(client.schedules.get("nightly")) is None
    colour.do(client.schedules.put("nightly", Task("t", queue="other"), every=60))


def test_data_of_a_later_version_is_left_unchanged(
    colour: Colour, client: Any, store: Store, prefix: str
) -> None:
    colour.do(client.schedules.put("a", Task("t"), every=60))
    store.client().hset(QueueKeys(prefix, "default").key("meta"), "schema", 3)
    for call in (
        lambda: client.schedules.put("a", Task("t"), every=61),
        lambda: client.schedules.get("a"),
        client.schedules.list,
        lambda: client.schedules.delete("a"),
    ):
        with pytest.raises(SchemaMismatch):
            colour.do(call())


def test_unreadable_record_is_named(colour: Colour, client: Any, store: Store, prefix: str) -> None:
    colour.do(client.schedules.put("a", Task("t"), every=60))
    key = QueueKeys(prefix, "default").key("stored_schedules")
    for record in (b"", b"x", b"12345678", b"12345678\x10\xff\xff", b"12345678\xf0\0\0"):
        store.client().hset(key, "a", record)
        with pytest.raises(QsyncError, match="schedule 'a' of queue 'default' cannot be read"):
            colour.do(client.schedules.get("a"))
    assert colour.do(client.schedules.delete("a"))


def test_closed_client_raises_an_error(colour: Colour, store: Store, prefix: str) -> None:
    client = colour.client(store.url, prefix)
    colour.do(client.aclose() if colour.name == "async" else client.close())
    with pytest.raises(QsyncError, match="closed"):
        colour.do(client.schedules.get("a"))


def test_schedules_work_in_a_cluster(colour: Colour, cluster: Cluster, prefix: str) -> None:
    client = colour.client(cluster.url, prefix)
    queues = [f"q{number}" for number in range(6)]
    for queue in queues:
        colour.do(client.schedules.put(f"of-{queue}", Task("t", queue=queue), every=60))
        colour.do(client.schedules.put("moves", Task("t", queue=queue), every=60))
    found = {one.name: one.queue for one in colour.do(client.schedules.list())}
    assert found == {"moves": "q5"} | {f"of-{queue}": queue for queue in queues}
    assert colour.do(client.schedules.delete("moves"))


@pytest.mark.parametrize("method", ["put", "get", "list", "delete"])
def test_sync_and_async_schedules_have_the_same_methods(method: str) -> None:
    import inspect

    one: Callable[..., Any] = getattr(Schedules, method)
    other: Callable[..., Any] = getattr(AsyncSchedules, method)
    assert inspect.signature(one) == inspect.signature(other)
    assert one.__doc__ == other.__doc__
