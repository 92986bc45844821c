"""No slot is lost or granted twice while servers are killed; `make soak` kills 500 times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.limit_programs import BURST
from tests.chaos.limit_rounds import parts
from tests.chaos.limit_verdict import LATENESS, given_twice, most_above_rate, read_runs, used
from tests.conftest import NEEDS
from tests.support.stores import available


@pytest.mark.timeout(300)
def test_limits_hold_while_servers_are_killed() -> None:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with parts() as rounds:
        outcome = rounds.run(4, rounds=10)
    assert outcome.kills.total() == 10
    assert min(outcome.runs, outcome.tasks, outcome.looks) > 0
    assert outcome.above_rate <= BURST + LATENESS
    assert outcome.wrong == []


def test_verdict_finds_slots_granted_twice_and_excess_starts(tmp_path: Path) -> None:
    lines = (
        "lease 1000000 s/1 a", "start 1001000 s/1 a", "lease 1002000 t/1 b", "start 1003000 t/1 b",
        "end 1004000 s/1 a", "lease 1005000 t/2 c", "start 1006000 t/2 c",
        "lease 1600000 t/3 d", "start 1601000 t/4 d", "start 1602000 t/3 d",
    )  # fmt: skip
    history = tmp_path / "history"
    history.write_text("".join(f"{line}\n" for line in lines))
    runs = read_runs(history)
    assert [(run.id, run.ended_us) for run in runs] == [
        ("a", 1_004_000), ("b", None), ("c", None), ("d", None)
    ]  # fmt: skip
    limits = dict.fromkeys("abcd", ("slot",))
    assert given_twice(runs, limits, {"slot": 2}, 500_000) == []
    assert given_twice(runs, limits, {"slot": 1}, 500_000) == [
        "b was given slot, already held by ['a']", "c was given slot, already held by ['b']",
    ]  # fmt: skip
    times = [run.leased_us for run in runs]
    assert most_above_rate(times, 10) == pytest.approx(2.95)
    assert used(times, 10, 1) == pytest.approx(4 / 7)
