"""Servers isolate suspects, which are tasks that may have killed their process. The tests check how
this protects other tasks, and what it costs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from qsync.broker import op_values, ops
from qsync.broker.op_values import LeaseRef
from qsync.mux import Mux
from qsync.server import crash_isolation
from qsync.task import Task, TaskInfo
from tests.support.client_driver import POLICY
from tests.support.queue_driver import BINARIES, LAPSE, Rig
from tests.support.server import Bench, bench, until
from tests.support.stores import Store


async def crash(b: Bench, ids: list[str], server: str, *, together: bool = False) -> None:
    """Let a server lease all waiting tasks, mark these tasks as running, and die."""
    call = ops.fetch(b.keys(), server=server, number=1, wanted=500, policy=POLICY)
    assert set(ids) <= set((await b.broker.run(call)).ids)
    held = [LeaseRef(id, f"{server}/1") for id in ids]
    await b.broker.run(ops.mark_started(b.keys(), held, together=together))
    await b.broker.run(ops.abandon(b.keys(), server))
    await b.broker.run(ops.fetch(b.keys(), server="finder", number=time.monotonic_ns(), wanted=0,
                                 policy=POLICY))  # fmt: skip


async def make_suspects(b: Bench, tasks: list[Task]) -> list[str]:
    """Enqueue tasks, each of which is running when two servers die."""
    ids = [one.id for one in await b.client.enqueue_many(tasks)]
    for server in ("dead1", "dead2"):
        await crash(b, ids, server)
    infos = [await b.client.handle(id).info() for id in ids]
    assert [one.crashes for one in infos] == [2] * len(ids)
    return ids


class Recorder:
    """Two handlers: one runs until it is released, and the other returns immediately."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []
        self.running: set[str] = set()
        self.gate = asyncio.Event()
        self.mux = Mux()
        self.mux.handle("stay")(self.stay)
        self.mux.handle("quick")(self.quick)

    async def stay(self, task: TaskInfo) -> None:
        self.begun.append((task.id, time.monotonic()))
        self.running.add(task.id)
        await self.gate.wait()
        self.running.discard(task.id)

    async def quick(self, task: TaskInfo) -> None:
        self.begun.append((task.id, time.monotonic()))

    def count(self) -> int:
        return len(self.begun)


@pytest.mark.faults(92)
async def test_long_suspect_delays_others_for_a_second(valkey: Store, prefix: str) -> None:
    recorder = Recorder()
    async with bench(valkey.url, prefix) as b:
        [suspect] = await make_suspects(b, [Task("stay")])
        async with b.server(recorder.mux, concurrency=100):
            await until(lambda: suspect in recorder.running)
            began = time.monotonic()
            await b.client.enqueue_many([Task("quick") for _ in range(100)])
            await until(lambda: recorder.count() == 101)
            times = [at - began for _, at in recorder.begun[1:]]
            assert min(times) > crash_isolation.ALONE_S / 2
            assert max(times) < crash_isolation.ALONE_S + 2.5
            assert suspect in recorder.running
            # From here on, a crash of the server is not charged to this task.
            assert valkey.command("HGET", b.keys().key("crashes"), suspect) == b"2-"
            recorder.gate.set()


@pytest.mark.faults(92)
async def test_many_long_suspects_start_soon_after_each_other(valkey: Store, prefix: str) -> None:
    recorder = Recorder()
    async with bench(valkey.url, prefix) as b:
        ids = await make_suspects(b, [Task("stay") for _ in range(40)])
        async with b.server(recorder.mux, concurrency=100):
            began = time.monotonic()
            await until(lambda: recorder.count() == 1)
            await until(lambda: len(recorder.running) == len(ids))
            assert time.monotonic() - began < crash_isolation.ALONE_S + 4
            recorder.gate.set()
        assert recorder.count() == len(ids)


@pytest.mark.faults(92)
async def test_suspects_share_the_available_slots(valkey: Store, prefix: str) -> None:
    recorder = Recorder()
    async with bench(valkey.url, prefix) as b:
        ids = await make_suspects(b, [Task("stay") for _ in range(12)])
        async with b.server(recorder.mux, concurrency=5):
            await until(lambda: len(recorder.running) == 5)
            recorder.gate.set()
            for id in ids:
                await b.gone(id)


@pytest.mark.faults(92)
async def test_suspects_of_one_crash_run_one_at_a_time(valkey: Store, prefix: str) -> None:
    recorder = Recorder()
    async with bench(valkey.url, prefix) as b:
        ids = await make_suspects(b, [Task("stay") for _ in range(3)])
        await crash(b, ids, "dead3", together=True)
        for id in ids:
            assert (await b.client.handle(id).info()).crashes == 2
            assert valkey.command("HGET", b.keys().key("crashes"), id) == b"2~1"
        async with b.server(recorder.mux, concurrency=100):
            await until(lambda: recorder.count() == 1)
            await b.client.enqueue(Task("quick"))
            await until(lambda: recorder.count() == 2, timeout=crash_isolation.ALONE_S * 8 + 3)
            assert recorder.begun[1][1] - recorder.begun[0][1] >= crash_isolation.ALONE_S * 8
            assert len(recorder.running) == 1, "other suspects do not run alongside the first"
            recorder.gate.set()
            for id in ids:
                await b.gone(id)


async def test_task_is_a_suspect_after_one_crash_if_the_limit_is_two(
    valkey: Store, prefix: str
) -> None:
    recorder = Recorder()
    async with bench(valkey.url, prefix) as b:
        ids = [one.id for one in await b.client.enqueue_many([Task("stay")] * 2)]
        await crash(b, ids, "dead1")
        async with b.server(recorder.mux, concurrency=100, max_crashes=2):
            await until(lambda: recorder.count() == 1)
            signs = [valkey.command("HGET", b.keys().key("crashes"), id) for id in ids]
            assert sorted(signs) == [b"1", b"1+"]
            recorder.gate.set()
            for id in ids:
                await b.gone(id)


# Counting of crashes.


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def die(rig: Rig, *, together: bool) -> bytes | None:
    """Let one server lease the task, mark it as running and die; let another server recover it when
    the lease has expired."""
    held = rig.lease()
    assert rig.run(ops.mark_started(rig.keys, held, together=together)) == ["ok"]
    rig.now += LAPSE
    rig.fetch(0, server="finder")
    found: bytes | None = rig.field("crashes", "a")
    return found


def suspect(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.now += LAPSE
    rig.fetch(0, server="finder")
    assert die(rig, together=False) == b"2"


def test_crash_beside_other_suspects_is_spared_three_times_and_then_counts(rig: Rig) -> None:
    suspect(rig)
    assert [die(rig, together=True) for _ in range(3)] == [b"2~1", b"2~2", b"2~3"]
    assert rig.fetch(0, server="finder").spared == {}
    assert rig.state("a") == "pending"
    assert die(rig, together=True) == b"3~3!"
    assert rig.state("a") == "dead"


def test_a_crash_alone_counts_after_spared_crashes(rig: Rig) -> None:
    suspect(rig)
    assert die(rig, together=True) == b"2~1"
    assert die(rig, together=False) == b"3~1!"
    assert rig.state("a") == "dead"


def test_fetch_reports_number_of_spared_crashes(rig: Rig) -> None:
    suspect(rig)
    die(rig, together=True)
    fetched = rig.fetch(server="next")
    assert (fetched.crashes, fetched.spared) == ([2], {"a": 1})


def test_success_removes_the_mark_and_keeps_spared_crashes(rig: Rig) -> None:
    suspect(rig)
    die(rig, together=True)
    held = rig.lease()
    rig.run(ops.mark_started(rig.keys, held))
    assert rig.field("crashes", "a") == b"2~1+"
    rig.run(ops.mark_started(rig.keys, held, together=True))
    assert rig.field("crashes", "a") == b"2~1-"
    rig.run(ops.hand_back(rig.keys, [op_values.HandedBack(*held[0])], now_us=rig.now))
    assert rig.field("crashes", "a") == b"2~1"
