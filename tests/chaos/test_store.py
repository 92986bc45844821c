"""Clients and servers survive one store fault at a time: the store dies, loses data, is full,
hangs, or closes connections."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsync.backoff import AWAY_CAP_S
from qsync.errors import QueueFull
from qsync.keys import QueueKeys
from qsync.task import Task
from tests.chaos.doing import counter, damages, enqueue, pass_time, wait_empty
from tests.chaos.flow import Flow
from tests.chaos.proxy import Proxy
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, task
from tests.support.stores import Store, wait_until

LEASE_S, SWEEP_S = 1.0, 0.2


@pytest.mark.faults(17)
@pytest.mark.guarantee(1, 7)
@pytest.mark.parametrize("restarts", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_tasks_run_within_two_seconds_after_a_store_restart(
    durable: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    restarts: int,
) -> None:
    """The store is down for at most 2.5 s, since the delay between tries grows with the length of
    the outage."""
    chance = random.Random(restarts)
    launch(durable.url, lease=10.0, concurrency=20)
    delays = []
    for at in range(restarts):
        running = enqueue(durable.url, prefix, [task(sleep=0.3) for _ in range(10)])
        history.wait("start", 10 * (at + 1) + at)
        durable.kill()
        pass_time(chance.uniform(0.0, 2.5 if at % 2 else 0.5))
        durable.start()
        back_at = time.monotonic()
        [id] = enqueue(durable.url, prefix, [task()])
        [started] = history.wait("start", 1, id=id)
        delays.append(started.at - back_at)
        wait_empty(durable, prefix)
        assert history.ids("end") >= {*running, id}
    measured("store restarts: longest time until a new task started, in seconds", max(delays))
    measured(
        "store restarts: median time until a new task started, in seconds",
        sorted(delays)[len(delays) // 2],
    )
    assert max(delays) <= 2
    # Leases outlast the outage, so no task ran twice.
    assert set(Counter(event.id for event in history.of("start")).values()) == {1}


def copied(store: Store, folder: Path) -> Path:
    """Copy the append-only file to the folder; return the path of its incremental part."""
    shutil.copytree(store.folder / "appendonlydir", folder / "appendonlydir")
    [grows] = (folder / "appendonlydir").glob("*.incr.aof")
    return grows


@pytest.mark.faults(19)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("cuts", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_truncated_append_only_file_leaves_sound_data(
    prefix: str,
    tmp_path: Path,
    launch: Launch,
    history: History,
    measured: Measured,
    cuts: int,
) -> None:
    """After a power failure, the file may end anywhere, even in the middle of a command."""
    chance = random.Random(cuts)
    config = {"auto-aof-rewrite-percentage": 0}
    with Store("valkey", aof=True, config=config) as store:
        servers = [launch(store.url, server_id=f"s{n}", concurrency=10) for n in range(2)]

        def make(number: int) -> Task:
            options = {"id": f"{number:06}", "retention": 3600, "retry_delay": 0.02}
            match number % 5:
                case 0:
                    return task(fail=1, **options)
                case 1:
                    return task(delay=0.1, **options)
                case 2:
                    return task(unique=True, unique_key=str(number), **options)
                case 3:
                    return task(fairness_key=str(number % 3), sleep=0.02, **options)
            return task(retry=0, fail=9, **options)

        with Flow(store.url, prefix, make=make, every=0.0) as flow:
            history.wait("end", 200)
            servers[0].kill()  # its leases expire
            history.wait("end", 400)
        assert flow.errors == []
        servers[1].kill()
        store.stop()
        accepted = sorted(flow.ids)
        original = copied(store, tmp_path)
        whole = original.read_bytes()
    lost = []
    key = QueueKeys(prefix, "default").key("tasks")
    for at in range(cuts):
        end = chance.randrange(len(whole) + 1) if at else len(whole)
        original.write_bytes(whole[:end])
        with Store("valkey", aof=True, folder=tmp_path, config=config) as cut:
            assert damages(cut, prefix) == []
            kept = [id.decode() for id in cut.command("HKEYS", key)]
        assert sorted(kept) == accepted[: len(kept)], "only the last writes are lost"
        lost.append(len(accepted) - len(kept))
    measured("file cut: number of cuts", cuts)
    measured("file cut: tasks in the whole file", len(accepted))
    measured("file cut: minimum and maximum number of lost tasks", (min(lost), max(lost)))
    assert lost[0] == 0
    assert max(lost) > 0


@pytest.mark.faults(20)
@pytest.mark.guarantee(2)
def test_old_copy_of_the_store_is_drained(
    prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """The store is restored to an earlier state, so old leases expire and the server reports the
    ends of tasks that no longer exist."""
    with Store("valkey", config={"save": '""'}) as store:
        server = launch(store.url, concurrency=20)
        first = enqueue(store.url, prefix, [task(sleep=0.5, retention=60) for _ in range(40)])
        history.wait("start", 20)
        assert len(leases(store, prefix)) >= 20
        store.command("SAVE")
        old = (store.folder / "dump.rdb").read_bytes()
        history.wait("end", 40)
        later = enqueue(store.url, prefix, [task(sleep=0.6) for _ in range(20)])
        history.wait("start", 60)
        store.kill()
        (store.folder / "dump.rdb").write_bytes(old)
        store.start()
        back_at = time.monotonic()
        left = max(leases(store, prefix).values()) / 1e6 - time.time()
        wait_until(lambda: counter(store, prefix, "completed") == 40, timeout=20)
        again = [event for event in history.of("start") if event.at > back_at]
        measured("old copy restored: seconds until its leases had expired", again[0].at - back_at)
        measured("old copy restored: tasks that ran again", len(again))
        measured(
            "old copy restored: lost tasks, which were enqueued after the copy", len(set(later))
        )
        measured("old copy restored: longest remaining lease, in seconds", left)
        # The server has to reconnect, and after an outage no lease expires until a third of the
        # lease time has passed.
        healed_s = max(left, AWAY_CAP_S + LEASE_S / 3) + 2 * SWEEP_S
        assert again[0].at - back_at <= healed_s
        assert {event.id for event in again} <= set(first)
        assert server.running
        assert "ERROR" not in server.log()
        assert damages(store, prefix) == []
        [id] = enqueue(store.url, prefix, [task()])
        history.wait("end", 1, id=id)


@contextlib.contextmanager
def storming(store: Store, every: float, *command: str) -> Iterator[list[object]]:
    """Send a command repeatedly during the block. Afterwards, the yielded list holds the
    replies."""
    over, replies = threading.Event(), []

    def storm() -> None:
        with store.client() as client:
            while not over.wait(every):
                replies.append(client.execute_command(*command))

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        yield replies
    finally:
        over.set()
        thread.join()


FLUSHES_A_S = 50.0


@pytest.mark.faults(25)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("flushes", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_tasks_complete_while_scripts_are_flushed(
    durable: Store, prefix: str, launch: Launch, history: History, measured: Measured, flushes: int
) -> None:
    """SCRIPT FLUSH runs up to 50 times per second, between the calls of clients and of a server
    with two queues."""
    queues = ("default", "other")
    server = launch(durable.url, concurrency=20, queues=dict.fromkeys(queues, 1))

    def make(number: int) -> Task:
        return task(queue=queues[number % 2], fail=int(number % 5 == 0), retry_delay=0)

    began = time.monotonic()
    with (
        storming(durable, 0.5 / FLUSHES_A_S, "SCRIPT", "FLUSH", "SYNC") as flushed,
        Flow(durable.url, prefix, make=make, callers=5) as flow,
        Flow(durable.url, prefix, make=make, blocking=True) as blocking,
    ):
        wait_until(lambda: len(flushed) >= flushes, timeout=2 * flushes / FLUSHES_A_S)
        rate = len(flushed) / (time.monotonic() - began)
    ids = flow.ids | blocking.ids
    wait_until(lambda: ids <= history.ids("end"))
    wait_empty(durable, prefix)
    measured("scripts flushed: number of flushes per second", rate)
    measured("scripts flushed: tasks", len(ids))
    assert rate >= FLUSHES_A_S / 2
    assert flow.errors + blocking.errors == []
    runs = Counter((event.id, event.attempt) for event in history.of("start"))
    assert set(runs.values()) == {1}
    assert {event.crashes for event in history.of("start")} == {0}
    for name in ("enqueued", "completed"):
        assert sum(counter(durable, prefix, name, queue) for queue in queues) == len(ids)
    assert "ERROR" not in server.log()


@pytest.mark.faults(31)
@pytest.mark.guarantee(1, 7)
def test_tasks_complete_while_connections_are_closed(
    durable: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    server = launch(durable.url, concurrency=20, lease=10.0)
    with (
        storming(durable, 0.1, "CLIENT", "KILL", "TYPE", "normal") as killed,
        Flow(durable.url, prefix, callers=5) as flow,
        Flow(durable.url, prefix, blocking=True) as blocking,
    ):
        pass_time(1.5)
    ids = flow.ids | blocking.ids
    wait_until(lambda: ids <= history.ids("end"))
    wait_empty(durable, prefix)
    measured("connections closed", sum(killed))
    measured("connections closed: tasks", len(ids))
    assert flow.errors + blocking.errors == []
    assert history.ids("start") == ids
    assert {event.crashes for event in history.of("start")} == {0}
    assert server.running
    assert "ERROR" not in server.log()


@pytest.mark.faults(26)
@pytest.mark.guarantee(7)
def test_full_store_drains_and_then_accepts_tasks(
    durable: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    big = {"big": "x" * 4000}
    tasks = [task(sleep=0.5, headers=big) for _ in range(300)]
    enqueue(durable.url, prefix, tasks)
    server = launch(durable.url, concurrency=50)
    history.wait("start", 50)
    with durable.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        try:
            with pytest.raises(QueueFull):
                enqueue(durable.url, prefix, [task(headers=big)])
            full_at = time.monotonic()

            def takes() -> bool:
                try:
                    return bool(enqueue(durable.url, prefix, [task()]))
                except QueueFull:
                    return False

            wait_until(takes, every=0.1)
            measured("store full: seconds until it accepts tasks again", time.monotonic() - full_at)
            history.wait("end", 301)
            wait_empty(durable, prefix)
        finally:
            client.config_set("maxmemory", 0)
    starts = history.of("start")
    assert len(starts) == 301
    assert {(event.attempt, event.crashes) for event in starts} == {(1, 0)}
    assert counter(durable, prefix, "lost") == 0
    assert "was lost" not in server.log()


@pytest.mark.faults(28)
@pytest.mark.guarantee(3)
@pytest.mark.parametrize("share", [pytest.param(0.6, marks=pytest.mark.slow), 0.9])
def test_pause_of_the_store_shorter_than_a_lease_repeats_nothing(
    durable: Store, prefix: str, launch: Launch, history: History, share: float
) -> None:
    """A lease that has just been renewed survives a pause of 0.9 of its duration; any lease
    survives 0.6 of it."""
    lease = 1.5
    servers = [launch(durable.url, lease=lease, concurrency=20) for _ in range(2)]
    enqueue(durable.url, prefix, [task(sleep=2.5) for _ in range(20)])
    history.wait("start", 20)
    if share == 0.9:
        before = leases(durable, prefix)
        wait_until(lambda: all(leases(durable, prefix)[id] > at for id, at in before.items()))
    durable.pause()
    pass_time(share * lease)
    durable.resume()
    wait_empty(durable, prefix)
    assert all(server.running for server in servers)
    assert len(history.of("start")) == len(history.of("end")) == 20


@pytest.mark.faults(28)
@pytest.mark.guarantee(3)
def test_pause_of_the_store_longer_than_a_lease_loses_nothing(
    durable: Store, proxy: Proxy, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """A server that renews too late has lost its tasks, notices this, and changes nothing."""
    config = {"lease": 1.0, "concurrency": 20}
    loser = launch(proxy.url, server_id="loser", **config)
    sleeps = {"loser": 600.0}
    tasks = [task(sleep_at=sleeps, sleep=1.0, retention=60) for _ in range(20)]
    ids = enqueue(durable.url, prefix, tasks)
    history.wait("start", 20, pid=loser.pid)
    winner = launch(durable.url, server_id="winner", **config)
    proxy.forget = False
    durable.pause()
    pass_time(1.5)
    proxy.up.hole = True  # let the other server reach the store first
    durable.resume()
    history.wait("start", 20, pid=winner.pid)
    back_at = time.monotonic()
    proxy.heal()
    cancelled = history.wait("cancelled", 20, pid=loser.pid)
    measured("store hung for 1.5 leases: seconds until the lost tasks were stopped",
             cancelled[-1].at - back_at)  # fmt: skip
    wait_until(lambda: counter(durable, prefix, "completed") == 20)
    assert {event.crashes for event in history.of("start", pid=winner.pid)} == {1}
    assert {event.id for event in history.of("end", pid=winner.pid)} == set(ids)
    assert counter(durable, prefix, "enqueued") == 20
    assert damages(durable, prefix) == []


def leases(store: Store, prefix: str) -> dict[bytes, float]:
    """Return when the lease of each active task expires."""
    with store.client() as client:
        active = client.zrange(QueueKeys(prefix, "default").key("active"), 0, -1, withscores=True)
    return dict(active)


@pytest.mark.faults(2)
@pytest.mark.guarantee(4)
def test_next_server_takes_over_after_all_servers_died(
    durable: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    dying = [launch(durable.url, server_id=f"dying-{n}", concurrency=10) for n in range(2)]
    sleeps = {"dying-0": 600.0, "dying-1": 600.0}
    ids = set(enqueue(durable.url, prefix, [task(sleep_at=sleeps) for _ in range(20)]))
    history.wait("start", 20)
    for server in dying:
        server.kill()
    late = launch(durable.url)
    ready_at = time.monotonic()
    again = history.wait("start", 20, pid=late.pid)
    measured("all servers died: seconds until a new server had started their tasks",
             again[-1].at - ready_at)  # fmt: skip
    assert {event.id for event in again} == ids
    assert again[-1].at - ready_at <= LEASE_S + SWEEP_S
    wait_empty(durable, prefix)


@pytest.mark.faults(1, 64)
@pytest.mark.guarantee(1, 5)
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_due_tasks_survive_a_kill_during_promotion(
    durable: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    kills: int,
) -> None:
    """Tasks become due continuously while the servers that promote them keep dying."""
    chance = random.Random(kills)
    # Several kills may hit the same task, which must not become dead.
    config = {"concurrency": 10, "max_crashes": 100}

    def make(number: int) -> Task:
        return task(delay=chance.uniform(0.0, 0.5), retry=5, fail=number % 2, retry_delay=0.05)

    servers = [launch(durable.url, **config) for _ in range(2)]
    with Flow(durable.url, prefix, make=make, every=0.002) as flow:
        for at in range(kills):
            before = len(history.of("start"))
            history.wait("start", before + chance.randrange(1, 60))
            servers[at % 2].kill()
            servers[at % 2] = launch(durable.url, ready=False, **config)
    assert flow.errors == []
    wait_until(lambda: flow.ids <= history.ids("end"), timeout=60)
    wait_empty(durable, prefix)
    measured("servers killed", kills)
    measured("servers killed: tasks", len(flow.ids))
    assert history.ids("start") == flow.ids
