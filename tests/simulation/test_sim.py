"""Real clients and servers run in virtual time with every kind of fault. No task is lost or runs
early.

Each seed is one history. QSYNC_SIM_SEEDS sets the number of seeds, QSYNC_SIM_SECONDS the maximum
duration; QSYNC_SIM_SEED=n repeats only that seed, exactly. `python -m tests.simulation` runs more
seeds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, Final

import pytest
import redis

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.op_values import FetchPolicy
from qsync.keys import QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.task import Task
from tests.simulation import clock
from tests.simulation.entries import US
from tests.simulation.faults import HOUR_S
from tests.simulation.history import History, Outcome, live
from tests.simulation.ledger import Ledger
from tests.simulation.mutants import MUTANTS, caught
from tests.simulation.network import CODES, RESUME_S
from tests.simulation.population import LEASE, PREFIX, SCHEDULES, SWEEP
from tests.simulation.process import FATES, WALL, Proc
from tests.simulation.profile import FAULTS, LOSSES, OPERATORS, OUTAGES
from tests.simulation.runs import spread
from tests.simulation.work import QUEUES
from tests.support.queue_driver import shared_store
from tests.support.stores import available

SEED: Final = os.environ.get("QSYNC_SIM_SEED")
SEEDS: Final = int(os.environ.get("QSYNC_SIM_SEEDS", "500"))
SECONDS: Final = float(os.environ.get("QSYNC_SIM_SECONDS", "40"))

AT_LEAST: Final = 50
"""Minimum number of seeds, even on a busy machine: this many seeds cause every kind of fault."""

QUICK: Final = (
    "settle without token", "heartbeat on the loop", "noscript not handled",
    "deadline by own clock", "settling not renewed", "ticks by own clock",
    "promoted but not pending", "lock outlives death", "stored tick of an old version",
    "slot freed twice", "waiters not moved",
)  # fmt: skip
"""Mistakes that a few seeds are enough to find. `python -m tests.simulation --mistakes` lists all
mistakes."""

LONG: Final = (
    "settle without token", "slot freed twice", "promoted but not pending", "lock outlives death",
    "stored tick of an old version",
)  # fmt: skip
"""Mistakes that take long to find."""

ENOUGH: Final = 64
"""Maximum number of seeds that it takes to find each slow mistake."""

POLICY: Final = FetchPolicy(
    lease_us=round(LEASE * US), max_crashes=3, dead_limit=100, dead_age_us=86_400 * US
)

SERVER_SCRIPTS: Final = ("fetch", "complete", "retry", "kill", "renew", "hand_back")

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkey")


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    """Yield a connection to the store of the histories."""
    socket = str(shared_store("valkey").config["unixsocket"])
    with redis.Redis(unix_socket_path=socket, protocol=2) as client:
        yield client


def check(outcome: Outcome) -> None:
    found = "\n".join(outcome.wrong)
    assert not outcome.wrong, f"reproduce this with QSYNC_SIM_SEED={outcome.seed}:\n{found}"


@pytest.mark.faults(3, 7, 8, 9, 10, 17, 18, 19, 22, 24, 25, 26, 28, 34, 35, 36, 45, 46, 56)
@pytest.mark.faults(67, 71, 72, 79, 80)
@pytest.mark.guarantee(1, 2, 3, 4, 5, 6, 7)
@pytest.mark.timeout(0 if SEEDS > 500 else 240)
def test_no_fault_loses_a_task(client: redis.Redis, record_property: Callable[..., None]) -> None:
    if SEED:
        check(live(int(SEED), client))
        return
    summary = spread(SEEDS, within_s=SECONDS, at_least=AT_LEAST)
    record_property("simulation", str(summary))
    for seed, wrong in summary.bad.items():
        found = "\n".join(wrong)
        pytest.fail(f"reproduce this with QSYNC_SIM_SEED={seed}:\n{found}")
    if SEEDS >= AT_LEAST:
        assert summary.seeds >= AT_LEAST
        assert not {*FAULTS, *LOSSES, *OPERATORS, *OUTAGES, *FATES} - summary.faults.keys()
        assert summary.lapsed > summary.seeds
        assert summary.lost


def test_seed_reproduces_its_history(client: redis.Redis) -> None:
    for seed in (3, 14):
        first, _, again = live(seed, client), live(seed + 1, client), live(seed, client)
        assert first.events == again.events
        assert (first.digest, first.wrong) == (again.digest, again.wrong)


PARTS: Final = (
    "client|handle|queue_announcer|result_listener|results|sending|subscriptions|task"
    r"|worker\.lease_abandoner"
)
"""Modules that take part in histories, in addition to those of servers and brokers."""


def test_ledger_processes_the_calls_of_scripts_that_exist() -> None:
    seen = {name.removeprefix("_see_") for name in vars(Ledger) if name.startswith("_see_")}
    assert "mark_started" in seen
    scripts = files("qsync.broker") / "lua"
    assert seen <= {path.name.removesuffix(".lua") for path in scripts.iterdir()}


def test_history_reads_no_machine_clock() -> None:
    for layer in ("broker", "server"):
        for entry in pkgutil.iter_modules(importlib.import_module(f"qsync.{layer}").__path__):
            importlib.import_module(f"qsync.{layer}.{entry.name}")
    timed = {
        name
        for name, module in sys.modules.items()
        if re.fullmatch(rf"qsync\.((broker|server)\.\w+|{PARTS})", name)
        and getattr(module, "time", None) is time
    }
    assert timed == {module.__name__ for module in clock.TIMED} | clock.UNUSED


@pytest.mark.parametrize(
    ("sent_again", "found"),
    [
        pytest.param([(1, False)], 0, id="a copy arrives after the next fetch"),
        pytest.param([(2, False)], 0, id="a copy of the last fetch arrives"),
        pytest.param([(2, True)], 1, id="the server repeats its last fetch"),
        pytest.param(
            [(2, False), (2, True)],
            1,
            id="a copy of a fetch arrives, then the server repeats the fetch",
        ),
    ],
)
def test_expired_lease_needs_a_cause_unless_no_server_reads_of_it(
    client: redis.Redis, sent_again: list[tuple[int, bool]], found: int
) -> None:
    """The network can duplicate an answered fetch. No server reads the reply to the duplicate."""
    client.flushall()
    history = History(0, client)
    process, keys = Proc(history.loop, "server1", history.rng), QueueKeys(PREFIX, QUEUES[0])
    history.ledger.servers |= {"a": process, "b": process}

    def run(call: Call[Any]) -> Any:
        command = ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        return history.network.store.execute(process, [command])[0]

    def fetch(server: str, number: int, *, again: bool = False) -> list[bytes]:
        call = ops.fetch(keys, server=server, number=number, wanted=1, policy=POLICY, again=again)
        ids: list[bytes] = run(call)[5]
        return ids

    with contextlib.closing(history.loop):
        assert fetch("a", 1) == fetch("a", 2) == []
        sent = new_task(Task("work"), new_nonce())
        run(ops.enqueue(keys, [sent]))
        for number, again in sent_again:
            assert fetch("a", number, again=again) == [sent.id.encode()]
        history.population.check_left(process, "a")
        assert len(history.ledger.wrong) == found
        recovered = []
        for number in range(1, 5):  # after a gap of over a second, no lease would expire
            history.loop.now += LEASE / 3
            recovered += fetch("b", number)
        assert recovered == [sent.id.encode()]
        assert len(history.ledger.wrong) == 2 * found, history.ledger.wrong


# Each test allows only one kind of fault, so that this fault is more frequent than in a history
# with all kinds.


def only(history: History, *kinds: str, hard: bool = True) -> None:
    """Allow only these faults, and no faults of calls."""
    profile = history.profile
    profile.faults = dict.fromkeys(kinds, 1.0)
    profile.link = dict.fromkeys(FATES, 0.0)
    profile.seconds, profile.servers = 8.0, 3
    profile.tasks, profile.poison = 30, 0
    profile.periodic = True
    if hard:
        profile.pause_s = 1.0


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        pytest.param("restart", 15, marks=pytest.mark.faults(17, 25)),
        pytest.param("flush", 15, marks=pytest.mark.faults(18)),
        pytest.param("roll_back", 15, marks=pytest.mark.faults(19, 20, 22)),
        ("away", 15),
        pytest.param("outage", 4, marks=pytest.mark.faults(85)),
        pytest.param("store_jump", 15, marks=pytest.mark.faults(46)),
        pytest.param("clock_jump", 15, marks=pytest.mark.faults(45)),
        pytest.param("stall", 15, marks=pytest.mark.faults(4)),
        pytest.param("freeze", 15, marks=pytest.mark.faults(3)),
        pytest.param("crash", 15, marks=[pytest.mark.faults(1, 2), pytest.mark.guarantee(4)]),
    ],
)
def test_tasks_survive_consecutive_faults(client: redis.Redis, kind: str, least: int) -> None:
    faults: Counter[str] = Counter()
    lost, resumed_s = 0, 0.0
    for seed in range(4):
        outcome = live(seed, client, arrange=lambda history: only(history, kind))
        check(outcome)
        faults += outcome.faults
        if kind == "crash":
            assert outcome.recovery_s <= SWEEP + 1
        lost, resumed_s = lost + outcome.lost, max(resumed_s, outcome.resume_s)
    assert faults[kind] >= least
    if kind == "restart":
        assert 0 < resumed_s <= RESUME_S
    assert (lost > 0) == (kind in ("flush", "roll_back"))


@pytest.mark.faults(23, 24, 26)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.split()[0])
def test_store_errors_end_no_server_and_charge_no_task(client: redis.Redis, code: str) -> None:
    def arrange(history: History) -> None:
        only(history, "quiet")
        history.profile.link["refused"] = 0.25
        history.network.codes = (code,)

    met: set[str] = set()
    for seed in range(12):
        outcome = live(seed, client, arrange=arrange)
        check(outcome)
        met |= {script for (_, script), count in outcome.refusals.items() if count}
        if met >= {"enqueue", "enqueue_one", *(() if code.startswith("OOM") else SERVER_SCRIPTS)}:
            return
    pytest.fail(f"only these scripts were answered with {code}: {met}")


def test_problem_found_early_causes_no_others(client: redis.Redis) -> None:
    """Once a problem has been found, the servers stop soon after the faults end, and tasks that are
    due later do not count as lost."""
    client.flushall()
    history = History(0, client)
    only(history)
    history.loop.call_later(1.0, history.ledger.find, "planted")
    history.loop.call_later(history.profile.seconds - 0.5, history.plague.store_jump, -60.0)
    outcome = history.run()
    assert [text.partition(" ")[2] for text in outcome.wrong] == ["planted"]
    assert any(
        entry.phase == "waiting" and entry.created for entry in history.ledger.entries.values()
    )


# Periodic tasks and locks.


@pytest.mark.faults(67)
def test_each_tick_is_enqueued_once_despite_server_faults(client: redis.Redis) -> None:
    ticks = 0
    for seed in range(6):
        histories: list[History] = []

        def arrange(history: History) -> None:
            only(history, "crash", "freeze", "clock_jump", "stop")
            histories.append(history)  # noqa: B023 - it is called at once

        check(live(seed, client, arrange=arrange))
        [history] = histories
        [(_, times)] = [item for item in history.ledger.ticks.times.items() if item[0][1] == "tick"]
        assert times == sorted(set(times))
        ticks += len(times)
    assert ticks > 6 * 4


@pytest.mark.faults(46, 68)
def test_missed_ticks_are_caught_up_by_their_policy(client: redis.Redis) -> None:
    history = History(1, client)
    client.flushall()
    only(history)
    history.profile.seconds = 12.0
    history.loop.call_later(3.0, history.plague.store_jump, HOUR_S)
    for at in (3.5, 4.0, 4.5):  # new servers read the new time
        history.loop.call_later(at, history.plague.crash)
    check(history.run())
    ticks = {name: times for (_, name), times in history.ledger.ticks.times.items()}
    began, ended = round(WALL + 3.0), round(WALL + HOUR_S + 3.0)
    period = round(SCHEDULES["all"][0])
    missed = [at * US for at in range(began, ended + 1) if at % period == 0]
    assert len(missed) == HOUR_S / period
    assert ticks["all"] == missed
    assert ticks["once"] == missed[-1:]
    skipped = [at for at in ticks["tick"] if began * US + 10 * US < at < (ended - 31) * US]
    assert skipped == []
    assert ticks["tick"][-1] > ended * US


@pytest.mark.faults(71, 72, 73)
@pytest.mark.guarantee(6)
def test_no_two_tasks_run_under_one_lock(client: redis.Redis) -> None:
    held = 0
    for seed in range(6):
        histories: list[History] = []

        def arrange(history: History) -> None:
            only(history, "crash", "freeze", "restart")
            history.profile.unique = 0.8
            histories.append(history)  # noqa: B023 - it is called at once

        check(live(seed, client, arrange=arrange))
        held += sum(bool(entry.lock) for entry in histories[0].ledger.entries.values())
    assert held > 6 * 5


def stalls_without_scripts(history: History) -> None:
    """Let event loops stall before they can repeat a call whose script the store has forgotten.

    A settlement then stays unanswered for a long time while its server can still renew the lease.
    With all kinds of faults, one history in twenty reveals the mistake; with these two, one in five
    does.
    """
    profile = history.profile
    profile.faults = {"stall": 1.0, "flush_scripts": 1.0}
    profile.link = dict.fromkeys(FATES, 0.0)
    profile.pause_s, profile.concurrency = 0.3, 10


ARRANGED: Final = {"settling not renewed": stalls_without_scripts}
"""Functions that change a history so that it reveals a rare mistake early."""


def test_planted_mistakes_take_the_arguments_of_what_they_replace() -> None:
    for plant in MUTANTS.values():
        with plant():
            pass


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in QUICK],
)
def test_planted_mistake_is_found(client: redis.Redis, name: str) -> None:
    found = caught(MUTANTS[name], client, range(ENOUGH), arrange=ARRANGED.get(name))
    assert found is not None
