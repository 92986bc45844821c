"""The core of the suite checks that the scripts behave like the model for any sequence of calls.

QSYNC_MODEL_EXAMPLES sets the number of runs, each of STEPS calls. The runs then differ each time,
unless `--hypothesis-seed N` fixes them. With `-s`, the progress is printed once a minute. A failure
prints the steps that led to it.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any, Final

import pytest

from qsync.state import TRANSITIONS
from tests.chaos.progress import Progress
from tests.scripts.model.machine import Scripts, run_machine
from tests.scripts.model.mistakes import IN_SCHEDULES, IN_SCRIPTS
from tests.support.invariants import VERBS
from tests.support.queue_driver import BINARIES, LEASE, Rig, S
from tests.support.stores import Binary, available
from tools.mutants import by_model

EXAMPLES: Final = os.environ.get("QSYNC_MODEL_EXAMPLES")
DEFAULT: Final = {"valkey": 100, "redis": 25}


@pytest.mark.faults(25, 29, 34, 35, 36, 46, 61, 64, 71, 72, 73, 74, 76, 79)
@pytest.mark.guarantee(1, 2, 3, 5, 6)
@pytest.mark.timeout(0 if EXAMPLES else 300)
@pytest.mark.parametrize("binary", BINARIES)
def test_scripts_match_the_model(binary: Binary) -> None:
    with Rig(binary) as rig:
        examples = int(EXAMPLES or DEFAULT[binary])
        run_machine(rig, examples=examples, fixed=EXAMPLES is None, machine=counted(examples))


def counted(examples: int) -> type[Scripts]:
    """Return a machine that prints its progress once a minute."""
    progress, made = Progress(), count(1)

    class Counted(Scripts):
        def teardown(self) -> None:
            super().teardown()
            number = next(made)
            progress.tell(lambda: f"{number} of {examples} runs")

    return Counted


@pytest.mark.parametrize("binary", BINARIES)
def test_paused_type_does_not_change_its_limits(binary: Binary) -> None:
    """Random runs rarely make these calls in this order; the store is compared with the model after
    each call."""
    with Rig(binary) as rig:
        machine = type("Scripts", (Scripts,), {"rig": rig, "flow": "limits"})()
        machine._restart()
        machine.enqueue([("a", {"limits": ("r",)})])
        machine.fetch("s", 1, 1)
        machine.hand_back([0], 60 * S, ("r", 30 * S), True)
        machine.time(40 * S)
        machine.pause_type("type")
        machine.enqueue([("b", {"limits": ("r",)})])
        assert list(machine.model.limits.stored) == ["r"], (
            "the limit `r` is open again, but its record has not been deleted yet"
        )
        machine.resume_type("type")
        machine.pause_type("type")
        machine.wake()
        machine.delete([0], "limited")
        assert "@type" in machine.model.limits.openings
        machine.resume_type("type")
        machine.wake()  # no task was waiting
        machine.fetch("s", 1, 1)
        assert machine.model.limits.stored == machine.model.limits.openings == {}


@pytest.mark.parametrize("binary", BINARIES)
def test_a_successor_gets_the_first_limits_of_its_queue(binary: Binary) -> None:
    """The task is replaced after any outcome of its attempt, even if no other task has limits."""
    ends: dict[str, tuple[Any, ...]] = {
        "complete": ([0], None),
        "retry": ([0], S),
        "kill": ([0], True),
        "hand_back": ([0], None, ("", 0), True),
        "stopped": ([0],),
        "crash": (False, "t", 0),
        "cancelled and crash": (False, "t", 0),
    }
    with Rig(binary) as rig:
        machine = type("Scripts", (Scripts,), {"rig": rig, "flow": "limits"})()
        for end, arguments in ends.items():
            machine._restart()
            machine.enqueue([("@b", {"unique_key": "l", "on_duplicate": "replace"})])
            machine.fetch("s", 1, 1)
            if end.startswith("cancelled"):
                machine.cancel(0)
            machine.enqueue(
                [("new", {"limits": ("c:1",), "unique_key": "l", "on_duplicate": "replace"})]
            )
            getattr(machine, end.removeprefix("cancelled and "))(*arguments)
            machine.time(LEASE // 2)  # after an outage, servers first get time to return
            machine.fetch("t", 0, 1)
            assert rig.field("holds", "@b") == b"c:1", end
            machine.fetch("t", 1, 1)
            assert rig.field("limits", "c:1").split()[:2] == [b"1", b"0"], end


@pytest.mark.parametrize("binary", BINARIES)
def test_server_that_leases_a_waiter_is_registered(binary: Binary) -> None:
    """The time at which a server with tasks was last seen shows whether the store was
    unavailable."""
    with Rig(binary) as rig:
        machine = type("Scripts", (Scripts,), {"rig": rig, "flow": "limits"})()
        machine._restart()
        machine.enqueue([("a", {"limits": ("r",)}), ("b", {"limits": ("r",)})])
        machine.fetch("s", 1, 1)
        machine.complete([0], None)
        machine.time(7 * S)
        machine.fetch("s", 1, 1)
        assert machine.model.tasks["b"].state == "active"
        machine.renew([0], S)
        machine.fetch("t", 1, 1)
        assert machine.model.returned is None, "no outage"
        machine.complete([0], None)
        machine.enqueue([("-1", {"limits": ("free",)})])
        machine.pause_type("other")
        machine.time(7 * S)
        machine.fetch("s", 1, 1)  # the fetch only sets the task aside
        assert machine.model.seen == rig.now - 7 * S
        machine.enqueue([("=l", {})])
        machine.fetch("s", 1, 1)
        machine.renew([0], S)
        machine.fetch("t", 1, 1)


@pytest.mark.skipif(not available("valkey"), reason="needs valkey")
def test_flood_of_a_paused_type_is_set_aside_in_steps() -> None:
    """The queue holds more tasks than a fetch sets aside, and more than it reads in one step."""
    with Rig("valkey") as rig:
        machine = type("Scripts", (Scripts,), {"rig": rig, "flow": "limits"})()
        machine._restart()
        machine.enqueue([(f"{n}", {}) for n in range(400)])
        machine.enqueue([("-1", {})])
        machine.enqueue([(f"{n}", {}) for n in range(400, 800)])
        machine.pause_type("type")
        for limited, held in ((300, []), (600, ["-1"]), (800, ["-1"])):
            machine.fetch("s", 2, 1)
            assert len(machine.model.those("limited")) == limited
            assert [one.id for one in machine.held] == held


QUICK: Final = (
    "settle without token", "lock outlives death", "recovery reads messages",
    "no script runs out of memory", "due tasks moved in two steps",
)  # fmt: skip
"""Mistakes that the tests plant; `python -m tools.mutants` plants all mistakes."""


@pytest.mark.skipif(not available("valkey"), reason="needs valkey")
@pytest.mark.parametrize("name", [*QUICK, *IN_SCHEDULES])
def test_model_finds_each_planted_mistake(name: str) -> None:
    assert by_model({**IN_SCRIPTS, **IN_SCHEDULES}[name], 100) is not None


def test_model_covers_every_transition() -> None:
    verbs = {verb for verbs in VERBS.values() for verb in verbs}
    assert {verb for _, verb in TRANSITIONS} == verbs
