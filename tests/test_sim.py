"""Real clients and servers on virtual time, with every fault: no task is lost, none is run early.

Each seed is one history. QSYNC_SIM_SEEDS sets how many are lived through, QSYNC_SIM_SEED=n lives
through that one alone, and exactly as before. `python -m tests.sim` does more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest
import redis

from tests.rig import shared_store
from tests.sim.history import Outcome, live
from tests.sim.mutants import MUTANTS, caught
from tests.stores import available

SEEDS: Final = os.environ.get("QSYNC_SIM_SEEDS")
SEED: Final = os.environ.get("QSYNC_SIM_SEED")
PARTS: Final = 4

QUICK: Final = (
    "settle without token", "heartbeat on the loop", "noscript not handled",
    "deadline by own clock", "settling not renewed", "ticks by own clock",
    "promoted and forgotten", "lock outlives death",
)  # fmt: skip
"""Mistakes that a few seeds find; `python -m tests.sim --mistakes` tells of all of them."""

ENOUGH: Final = 20
"""Seeds within which each of these is found."""

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkey")


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    """A connection to the store in which the histories take place."""
    socket = str(shared_store("valkey").config["unixsocket"])
    with redis.Redis(unix_socket_path=socket, protocol=2) as client:
        yield client


def check(outcome: Outcome) -> None:
    found = "\n".join(outcome.wrong)
    assert not outcome.wrong, f"QSYNC_SIM_SEED={outcome.seed} brings this about again:\n{found}"


@pytest.mark.timeout(0 if SEEDS else 120)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_loses_a_task(client: redis.Redis, part: int) -> None:
    seeds = [int(SEED)] if SEED else range(part, int(SEEDS or 160), PARTS)
    for seed in seeds:
        check(live(seed, client))


def test_a_seed_is_the_same_history_each_time(client: redis.Redis) -> None:
    for seed in (3, 14):
        first, _, again = live(seed, client), live(seed + 1, client), live(seed, client)
        assert first.events == again.events
        assert (first.digest, first.wrong) == (again.digest, again.wrong)


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_mistake_is_found(client: redis.Redis, name: str) -> None:
    assert caught(MUTANTS[name], client, range(ENOUGH)) is not None
