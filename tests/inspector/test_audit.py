"""The audit finds and repairs each kind of damage and does not change intact data."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from qsync import Mux, Retry, SkipRetry, Task, TaskInfo
from qsync.bounds import Bounds
from qsync.broker import bounds_ops, limit_ops, ops, redis_clients, schedule_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.op_values import LeaseRef
from qsync.cli.main import app
from qsync.diagnostics.audit import LEASE_US, MEANINGS, Auditor, Damage, Report
from qsync.limit import LimitRule
from qsync.state import STORED, TaskState
from tests.support.limits import with_limits
from tests.support.queue_driver import BINARIES, LEASE, Rig, S, shared_store
from tests.support.server import bench
from tests.support.stores import Binary, Cluster, Store


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        rig.url = shared_store(request.param).url  # type: ignore[attr-defined]
        yield rig


def auditing(rig: Rig, *, repair: bool = False, queue: str | None = None) -> Report:
    """Audit the store of the rig; with `repair`, also repair the damage."""

    async def main() -> Report:
        broker = AsyncBroker(redis_clients.parse(rig.url), connections=1)  # type: ignore[attr-defined]
        try:
            auditor = Auditor(broker, prefix="test")
            report = await auditor.audit(queue)
            if repair:
                await auditor.repair(report.damages)
            return report
        finally:
            await broker.aclose()

    return asyncio.run(main())


def fill(rig: Rig) -> None:
    """Enqueue tasks in all states, with every kind of record about them."""
    rig.client.sadd("test:queues", "queue")
    rig.enqueue("done", "kept", "failed", "dead", "crashed", "running")
    rig.enqueue("window", unique=1000)
    held = {one.id: one for one in rig.lease()}
    rig.complete(held["done"])
    rig.complete(held["kept"], retention_us=10**16, result=b"r")
    rig.retry(held["failed"], delay_us=10**16)
    rig.kill(held["dead"], held["window"])
    rig.now += LEASE + S
    rig.fetch(0, server="other")  # this recovers the task with the expired lease
    running = rig.lease()
    rig.mark_started(*running)
    rig.run(ops.progress(rig.keys, [(*running[0], 1, 2)]))
    rig.cancel("running", retention_us=S)
    rig.enqueue("pending", unique=True, fairness_key="tenant")
    rig.enqueue("later", delay=10**8, unique=True)
    rig.enqueue("other")
    rig.run(limit_ops.put_limit_rules(rig.keys, {"c": LimitRule(concurrency=1)}, now_us=rig.now))
    rig.send([with_limits(task, "c:1") for task in rig.tasks("holder", "limited")])
    rig.run(schedule_ops.put_schedule(rig.keys, "daily", 10**16, b"record", now_us=rig.now))
    rig.run(schedule_ops.announce_schedules(rig.globals, "queue", 1))


def test_sound_store_has_no_damage(rig: Rig) -> None:
    fill(rig)
    report = auditing(rig)
    assert report.damages == []
    assert report.queues == ["queue"]
    ids = ("pending", "limited", "later", "dead", "failed", "kept", "running")
    assert {rig.state(id) for id in ids} == {*STORED}
    assert report.ids > 20
    assert (report.lost_payloads, report.truncated, report.unknown) == (0, False, [])


def test_empty_store_has_no_damage(rig: Rig) -> None:
    assert auditing(rig) == Report()
    assert auditing(rig, queue="none") == Report(queues=["none"])


@dataclass(frozen=True)
class Plant:
    """A kind of damage: how to cause it, what the audit finds, and how to check the repair."""

    name: str
    plant: Callable[[Rig], object]
    found: set[tuple[str, str]]
    mended: Callable[[Rig], bool]


def _key(rig: Rig, name: str) -> str:
    return rig.keys.key(name)


def _state(rig: Rig) -> bytes:
    """Return the stored state of a limit that has a waiter."""
    state = rig.field("limits", "c:1")
    assert state is not None
    return state


def _lose(name: str, id: str) -> Callable[[Rig], object]:
    def plant(rig: Rig) -> object:
        take = rig.client.zrem if name in {*TaskState} else rig.client.hdel
        return take(_key(rig, name), id)

    return plant


def _write(name: str, id: str, value: str = "x") -> Callable[[Rig], object]:
    def plant(rig: Rig) -> object:
        if name in {*TaskState}:
            return rig.client.zadd(_key(rig, name), {id: 1})
        return rig.client.hset(_key(rig, name), id, value)

    return plant


def _lock_of(rig: Rig, id: str) -> str:
    return rig.locks()["@" + id]


def _leased_anew(rig: Rig) -> bool:
    """Return whether the task is leased and its holder may complete it."""
    ahead = (rig.score("active", "crashed") or 0) / S - time.time()
    token = rig.field("owner", "crashed") or b""
    ended = rig.complete(LeaseRef("crashed", token.decode()))
    return 0 < ahead <= LEASE_US / S and ended == ["ok"]


def _lapsed(rig: Rig) -> bool:
    """Return whether the next fetch recovers the task."""
    rig.now = round(time.time() * S)
    return rig.fetch(0).recovered == 1 and rig.state("crashed") == "pending"


def _error(rig: Rig, id: str) -> str:
    status = rig.status(id)
    return str(status and status.last_error)


def _bound(rig: Rig) -> None:
    """Set a bound, so that the queue records the size of its messages."""
    rig.run(bounds_ops.put_program_bounds(rig.keys, Bounds(max_bytes=10**9)))


def _next_run(rig: Rig) -> bytes:
    """Return a record for the next run of a task; it contains the message of another task."""
    return b"%d 0 " % rig.now + (rig.field("tasks", "pending") or b"")


def _bytes_kept(rig: Rig) -> int:
    return sum(map(len, rig.client.hvals(_key(rig, "tasks"))))


PLANTS = [
    Plant(
        "pending and dead",
        _write("dead", "pending"),
        {("several states", "pending")},
        lambda rig: rig.state("pending") == "pending",
    ),
    Plant(
        "active and completed",
        _write("completed", "crashed"),
        {("several states", "crashed")},
        lambda rig: rig.state("crashed") == "active",
    ),
    Plant(
        "active without an owner, and pending",
        lambda rig: (_write("pending", "crashed")(rig), _lose("owner", "crashed")(rig)),
        {("several states", "crashed"), ("not owned", "crashed")},
        _lapsed,
    ),
    Plant(
        "pending nowhere",
        _lose("pending", "other"),
        {("no state", "other")},
        lambda rig: (
            (rig.state("other"), _error(rig, "other"))
            == ("dead", "an audit found the task in no state")
        ),
    ),
    Plant("active nowhere", _lose("active", "crashed"), {("no state", "crashed")}, _leased_anew),
    Plant(
        "pending without a message",
        _lose("tasks", "pending"),
        {("no message", "pending")},
        lambda rig: (rig.state("pending"), "@pending" in rig.locks()) == ("dead", False),
    ),
    Plant(
        "active without a message",
        _lose("tasks", "crashed"),
        {("no message", "crashed")},
        lambda rig: (rig.state("crashed"), rig.field("owner", "crashed")) == ("dead", None),
    ),
    Plant(
        "no task at all",
        lambda rig: rig.client.zadd(_key(rig, "pending"), {b"\xff\n": 1}),
        {("no message", "\udcff\n")},
        lambda rig: rig.client.zscore(_key(rig, "dead"), b"\xff\n") is not None,
    ),
    Plant(
        "owned and pending",
        _write("owner", "pending", "s/1"),
        {("not leased", "pending")},
        lambda rig: (rig.state("pending"), rig.field("owner", "pending")) == ("pending", None),
    ),
    Plant("active and not owned", _lose("owner", "crashed"), {("not owned", "crashed")}, _lapsed),
    *[
        Plant(
            f"left in {name}",
            _write(name, "ghost"),
            {("leftover", "ghost")},
            lambda rig, name=name: rig.field(name, "ghost") is None,  # type: ignore[misc]
        )
        for name in (
            "owner",
            "crashes",
            "failures",
            "results",
            "keys",
            "cancels",
            "progress",
            "successors",
        )
    ],
    Plant(
        "a dead task with a next run",
        lambda rig: rig.set("successors", "dead", _next_run(rig)),
        {("next run kept", "dead")},
        lambda rig: (
            rig.state("dead") == "scheduled"
            and rig.field("successors", "dead") is None
            and rig.field("failures", "dead") is None
        ),
    ),
    Plant(
        "a dead task with an unreadable next run",
        lambda rig: rig.set("successors", "dead", b"nonsense"),
        {("next run kept", "dead")},
        lambda rig: (rig.state("dead"), rig.field("successors", "dead")) == ("dead", None),
    ),
    Plant(
        "a lock of a dead task",
        lambda rig: rig.client.hset(
            _key(rig, "unique"), mapping={"@dead": "lock", "=lock": "0:dead"}
        ),
        {("lock kept", "dead")},
        lambda rig: not {"@dead", "=lock"} & set(rig.locks()),
    ),
    Plant(
        "a lock without a task",
        _write("unique", "@ghost", "lock"),
        {("lock kept", "ghost")},
        lambda rig: "@ghost" not in rig.locks(),
    ),
    Plant(
        "a lock that is missing",
        lambda rig: _lose("unique", "=" + _lock_of(rig, "later"))(rig),
        {("lock lost", "later")},
        lambda rig: (
            rig.enqueue("again", payload=b"later", unique=True)[0][1] == "later"
            and rig.locks()["=" + _lock_of(rig, "later")] == "0:later"
        ),
    ),
    Plant(
        "a lock without its owner",
        _lose("unique", "@later"),
        {("lock unkept", "later")},
        lambda rig: rig.enqueue("again", payload=b"later", unique=True)[0][1] == "later",
    ),
    Plant(
        "no lock at all",
        _write("unique", "nonsense"),
        {("strange lock", "")},
        lambda rig: "nonsense" not in rig.locks(),
    ),
    Plant(
        "wakes",
        lambda rig: rig.client.rpush(_key(rig, "wake"), "1", "1", "1"),
        {("several wakes", "")},
        lambda rig: rig.client.llen(_key(rig, "wake")) == 1,
    ),
    Plant(
        "a dead task that holds a limit",
        lambda rig: rig.set("holds", "dead", "c:1"),
        {("hold kept", "dead")},
        lambda rig: rig.field("holds", "dead") is None,
    ),
    Plant(
        "a task without its limits",
        lambda rig: rig.client.hdel(_key(rig, "holds"), "holder"),
        {("hold lost", "holder"), ("limit count", "c:1")},
        lambda rig: {rig.state("holder"), rig.state("limited")} == {"pending", "limited"},
    ),
    Plant(
        "a limit with waiters that no entry names",
        lambda rig: rig.client.delete(_key(rig, "waiters")),
        {("not listed", "limited")},
        lambda rig: rig.client.zcard(_key(rig, "waiters")) == 1,
    ),
    Plant(
        "a waiter without a task",
        lambda rig: rig.client.zadd(_key(rig, "waiters"), {b"c:1\0tag bytesghost": 0}),
        {("stray waiter", "c:1\0tag bytesghost")},
        lambda rig: rig.client.zcard(_key(rig, "waiters")) == 1,
    ),
    Plant(
        "a first waiter without a task",
        lambda rig: rig.set("limits", "c:1", _state(rig) + b"\x0etag bytesghost"),
        {("stray waiter", "c:1\0tag bytesghost")},
        lambda rig: not _state(rig).endswith(b"ghost"),
    ),
    Plant(
        "waiters that their limit has lost",
        lambda rig: rig.set("limits", "c:1", _state(rig).partition(b"\0")[0]),
        {("stray waiter", "c:1\0"), ("not listed", "limited")},
        lambda rig: _state(rig).endswith(b"limited"),
    ),
    Plant(
        "a limit that counts too many tasks",
        lambda rig: rig.set("limits", "c:1", _state(rig).replace(b"0 1", b"5 0", 1)),
        {("limit count", "c:1")},
        lambda rig: _state(rig).partition(b"\0")[0] == b"0 1 0 0",
    ),
    Plant(
        "a limit that stays closed",
        lambda rig: rig.set("limit_rules", "c", "2 0 0 0"),
        {("limit shut", "c:1")},
        lambda rig: rig.state("limited") == "pending",
    ),
    Plant(
        "a queue whose layout lacks limits",
        lambda rig: rig.set("meta", "schema", "1"),
        {("layout lost", "")},
        lambda rig: rig.field("meta", "schema") == b"2",
    ),
    Plant(
        "a schedule without a next tick",
        lambda rig: rig.client.zrem(rig.keys.key("next_ticks"), "daily"),
        {("no tick", "daily")},
        lambda rig: rig.client.zscore(rig.keys.key("next_ticks"), "daily") is not None,
    ),
    Plant(
        "a queue with a wrong number of bytes",
        lambda rig: (_bound(rig), rig.set("meta", "bytes", 5)),
        {("wrong bytes", "{test:queue}:meta")},
        lambda rig: rig.field("meta", "bytes") == b"%d" % _bytes_kept(rig),
    ),
    Plant(
        "a queue whose schedules servers ignore",
        lambda rig: rig.client.delete("test:schedule_queues"),
        {("not announced", "test:schedule_queues")},
        lambda rig: rig.client.hexists("test:schedule_queues", "queue"),
    ),
    Plant(
        "an unknown queue",
        lambda rig: rig.client.delete("test:queues"),
        {("not registered", "test:queues")},
        lambda rig: rig.client.smembers("test:queues") == {b"queue"},
    ),
]


@pytest.mark.faults(20, 80)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_each_damage_is_found_and_repaired(rig: Rig, plant: Plant) -> None:
    fill(rig)
    plant.plant(rig)
    found = auditing(rig, repair=True).damages
    assert {(damage.kind, damage.id) for damage in found} == plant.found
    assert len(found) == len(plant.found)
    after = auditing(rig)
    assert after.damages == []
    assert plant.mended(rig)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_damage_in_bounded_queue_is_repaired(rig: Rig, plant: Plant) -> None:
    """Damage may also make the recorded size of all messages wrong; the repair corrects this
    size."""
    fill(rig)
    _bound(rig)
    plant.plant(rig)
    found = {(damage.kind, damage.id) for damage in auditing(rig, repair=True).damages}
    wrong = {("wrong bytes", _key(rig, "meta"))}
    assert found | wrong == plant.found | wrong
    assert auditing(rig).damages == []
    assert rig.field("meta", "bytes") == b"%d" % _bytes_kept(rig)


def test_each_kind_of_damage_is_planted() -> None:
    planted = {kind for plant in PLANTS for kind, _ in plant.found}
    assert planted == {kind for kind, (_, cure) in MEANINGS.items() if cure}


def test_repair_skips_changed_data(rig: Rig) -> None:
    """If the damage is gone when the repair runs, the repair does nothing."""
    fill(rig)
    before = rig.dump()
    stale = [
        Damage(kind, "queue", id, "nonsense")
        for kind, (_, cure) in MEANINGS.items()
        if cure
        for id in ("pending", "crashed", "dead", "kept", "later", "ghost")
    ]

    async def main() -> Any:
        broker = AsyncBroker(redis_clients.parse(rig.url), connections=1)  # type: ignore[attr-defined]
        try:
            return await Auditor(broker, prefix="test").repair(stale)
        finally:
            await broker.aclose()

    assert asyncio.run(main()) == {}
    assert rig.dump() == before


def test_task_that_ended_without_its_message_is_counted(rig: Rig) -> None:
    fill(rig)
    rig.client.hdel(_key(rig, "tasks"), "dead", "kept")
    report = auditing(rig, repair=True)
    assert (report.damages, report.lost_payloads) == ([], 2)
    assert (rig.state("dead"), rig.state("kept")) == ("dead", "completed")


def test_lock_of_another_task_is_not_repaired(rig: Rig) -> None:
    fill(rig)
    lock = _lock_of(rig, "later")
    rig.client.hset(_key(rig, "unique"), mapping={f"={lock}": "0:other", "@other": lock})
    for _ in range(2):
        damages = auditing(rig, repair=True).damages
        assert [(damage.kind, damage.id) for damage in damages] == [("lock lost", "later")]


def test_lock_window_of_an_earlier_task_is_not_damage(rig: Rig) -> None:
    fill(rig)
    rig.delete("dead", "window")
    assert any(value.endswith(":window") for value in rig.locks().values())
    rig.enqueue("window")
    assert auditing(rig).damages == []


def test_foreign_keys_are_named(rig: Rig) -> None:
    fill(rig)
    rig.client.mset({"test:foo": 1, "{test:queue}:foo": 1, "{test:!}:tasks": 1, "tester:foo": 1})
    rig.client.set("{test:queue}:passing", 1, ex=1000)
    rig.client.hset("test:server:a", "f", 1)
    rig.client.rpush("test:inbox:b", 1)
    rig.client.pexpire("test:inbox:b", 100_000)
    rig.client.xadd("test:events", {"action": "delete"})  # this event is about a deleted queue
    rig.client.hset("test:schedule_queues", "queue", 1)
    found = {(damage.kind, damage.id) for damage in auditing(rig, repair=True).damages}
    strays = {"test:foo", "{test:queue}:foo", "{test:!}:tasks", "test:server:a"}
    assert found == {("stray key", key) for key in strays}
    assert rig.client.exists(*strays) == 4


def test_key_of_the_wrong_type_is_named_and_left(rig: Rig) -> None:
    fill(rig)
    rig.client.set(_key(rig, "ticks"), "x")
    [damage] = auditing(rig, repair=True).damages
    assert (damage.kind, damage.id, damage.repairable) == ("wrong type", _key(rig, "ticks"), False)


def test_audit_accepts_larger_scan_pages(rig: Rig) -> None:
    """If a key has a compact encoding, the store returns all its entries in one step of a scan,
    however many there are."""
    setting = "zset-max-listpack-entries"
    before = rig.client.config_get(setting)[setting]
    rig.client.config_set(setting, 20_000)
    try:
        for base in range(0, 9000, 500):
            rig.enqueue(*[f"{base + at}" for at in range(500)], payload=b"x")
        rig.client.sadd("test:queues", "queue")
        rig.client.zrem(_key(rig, "pending"), "0", "8999")
        assert [damage.id for damage in auditing(rig).damages] == ["0", "8999"]
    finally:
        rig.client.config_set(setting, before)


def test_many_damages_are_all_repaired(rig: Rig) -> None:
    rig.enqueue(*[f"t{number}" for number in range(450)])
    rig.client.delete(_key(rig, "pending"))
    report = auditing(rig, repair=True)
    assert len(report.damages) == 451, "450 tasks, and the missing registration"
    assert auditing(rig).damages == []
    assert len(rig.ids("dead")) == 450


@pytest.mark.faults(80)
@pytest.mark.guarantee(2)
def test_store_in_use_has_no_damage(own_store: Store, prefix: str) -> None:
    """Audits find no damage while tasks run, fail, or are retried, cancelled or recovered."""
    mux = Mux()

    @mux.handle("t")
    async def handler(task: TaskInfo) -> str:
        match int(task.payload) % 5:
            case 0:
                raise Retry(delay=0.05)
            case 1:
                raise SkipRetry("no")
            case 2:
                await asyncio.sleep(0.02)
        return "x"

    async def load(client: Any, until: float) -> None:
        number = 0
        while time.monotonic() < until:
            tasks = [
                Task(
                    "t", str(number + at).encode(), queue="ab"[at % 2], retry=1,
                    delay=0.01 if at % 3 else None, unique=0.05 if at % 2 else None,
                    retention=0.1 if at % 4 else None, fairness_key="k" if at % 7 else None,
                )
                for at in range(50)
            ]  # fmt: skip
            number += 50
            handles = await client.enqueue_many(tasks)
            await asyncio.gather(*[handle.cancel() for handle in handles[::10]])

    async def main() -> list[Report]:
        reports = []
        async with bench(own_store.url, prefix) as made:
            queues = {"a": 1, "b": 1}
            async with made.server(mux, queues=queues), made.server(mux, queues=queues):
                working = asyncio.create_task(load(made.client, time.monotonic() + 2))
                auditor = Auditor(made.broker, prefix=prefix)
                while not working.done() or len(reports) < 3:
                    reports.append(await auditor.audit())
                await working
        return reports

    reports = asyncio.run(main())
    assert [report.damages for report in reports] == [[]] * len(reports)
    assert max(report.ids for report in reports) > 100


def test_a_cluster_is_audited_node_by_node(cluster: Cluster, prefix: str) -> None:
    queues = [f"q{number}" for number in range(8)]

    async def main() -> tuple[Report, Report]:
        async with bench(cluster.url, prefix) as made:
            await made.client.enqueue_many([Task("t", queue=queue) for queue in queues])
            with cluster.client() as own:
                own.delete(f"{prefix}:queues")
                own.delete(made.keys("q3").key("pending"))
                own.set(f"{prefix}:stray", 1)
            auditor = Auditor(made.broker, prefix=prefix)
            report = await auditor.audit()
            await auditor.repair(report.damages)
            return report, await auditor.audit()

    report, after = asyncio.run(main())
    assert report.queues == queues
    kinds = [damage.kind for damage in report.damages]
    assert sorted(kinds) == ["no state", *["not registered"] * 8, "stray key"]
    assert [(damage.kind, damage.id) for damage in after.damages] == [
        ("stray key", f"{prefix}:stray")
    ]


@pytest.mark.faults(47)
def test_audit_continues_after_a_refused_command(own_store: Store, prefix: str) -> None:
    rules = ("on", ">x", "~*", "&*", "+@all", "-scan", "-sscan")
    own_store.command("ACL", "SETUSER", "blind", *rules)

    async def main() -> tuple[Report, Report]:
        async with bench(own_store.url.replace("//", "//blind:x@"), prefix) as made:
            await made.client.enqueue(Task("t"))
            auditor = Auditor(made.broker, prefix=prefix)
            return await auditor.audit(), await auditor.audit("default")

    report, one = asyncio.run(main())
    assert [text.rpartition(": ")[2] for text in report.unknown] == [
        "the store denies SSCAN",
        "the store denies SCAN",
    ]
    assert (one.damages, one.ids, one.unknown) == ([], 2, [])


# The command


@pytest.mark.parametrize("binary", BINARIES)
def test_audit_command_reports_and_repairs(binary: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    with Rig(binary) as rig:
        monkeypatch.setenv("QSYNC_URL", shared_store(binary).url)
        monkeypatch.setenv("QSYNC_PREFIX", "test")
        fill(rig)
        sound = runner.invoke(app, ["doctor", "--audit"])
        assert (sound.exit_code, "0 damaged" in sound.stdout) == (0, True), sound.output
        rig.client.zrem(_key(rig, "pending"), "other")
        rig.client.set("test:\x1bstray", "1")
        found = runner.invoke(app, ["doctor", "--audit"])
        assert found.exit_code == 1
        assert "no state: a task is in no state, so it never runs: queue other\n" in found.stdout
        assert "\x1b" not in found.stdout
        told = runner.invoke(app, ["doctor", "--audit", "--queue", "queue", "--json"])
        assert told.exit_code == 1
        [damage] = json.loads(told.stdout)["damages"]
        assert damage == {"kind": "no state", "queue": "queue", "id": "other", "lock": ""}
        mended = runner.invoke(app, ["doctor", "--audit", "--queue", "queue", "--repair"])
        assert (mended.exit_code, "repaired: no state, 1" in mended.stdout) == (0, True)
        for words in ([], ["--repair"], ["--json"]):
            typo = runner.invoke(app, ["doctor", "--audit", "--queue", "quue", *words])
            assert (typo.exit_code, typo.stdout) == (1, "")
            assert "there is no queue quue; did you mean queue?" in typo.stderr
        left = runner.invoke(app, ["doctor", "--audit", "--repair", "--json"])
        assert left.exit_code == 1
        assert [one["kind"] for one in json.loads(left.stdout)["left"]] == ["stray key"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repair"], "need --audit"),
        (["--queue", "a"], "need --audit"),
        (["--audit", "--role", "client"], "--role and --audit cannot be used together"),
        (["--audit", "--queue", "a b"], "queue: 'a b' is not"),
        (["--prefix", "a b"], "prefix: 'a b' is not"),
        (["--url", "http://x"], "is not a scheme of a store"),
    ],
)
def test_audit_command_refuses_wrong_arguments(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSYNC_URL", "redis://127.0.0.1:1")
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
