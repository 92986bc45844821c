"""python -m tools.mutants: plant each known mistake; print which check finds it, and how soon.

A check that cannot find mistakes proves nothing. `--write` stores the table for
docs/reliability.md. To plant only some mistakes, pass their names as arguments; `--sample N` plants
N random mistakes. The program exits with 1 if a mistake is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import redis
from hypothesis import Phase

from qsync.errors import QsyncError
from tests.scripts.model.machine import Scripts, run_machine
from tests.scripts.model.mistakes import IN_SCRIPTS, Plant, named
from tests.simulation.mutants import MUTANTS, caught
from tests.support.cancellation import connection_kept_after_a_cancel, mixed_up
from tests.support.full_store import (
    fetching_while_settlements_are_refused,
    result_sent_again_to_a_full_store,
    wrong_when_full,
)
from tests.support.queue_driver import Rig, shared_store
from tests.support.stalled_node import (
    map_requested_from_one_node,
    partial_cluster,
    registration_awaited_by_clients,
    registration_awaited_by_periodic_tasks,
    wrong_with_a_node_away,
)

TABLE: Final = Path(__file__).parent / "mutants.json"
ENOUGH: Final = 2000
"""Maximum number of seeds or examples that it may take to find a mistake."""

SHOWN: Final = 110


@dataclass(frozen=True)
class Found:
    """How a mistake was found. `needed` is None if the mistake was not found."""

    mistake: str
    by: str
    needed: int | None
    seen: str

    def __str__(self) -> str:
        needed = f"after {self.needed}" if self.needed else "not"
        return f"{self.mistake}: {self.by}, {needed}: {self.seen}"


def by_model(plant: Plant, most: int) -> tuple[int, str] | None:
    """Run the model check until it finds the mistake; return the number of runs and the error."""
    first: list[tuple[int, str]] = []

    class Counting(Scripts):
        runs = 0

        def teardown(self) -> None:
            """Count the run that has ended and record its error."""
            Counting.runs += 1
            error = sys.exc_info()[1]
            if isinstance(error, AssertionError | QsyncError) and not first:
                first.append((Counting.runs, str(error)))
            super().teardown()

    with Rig("valkey") as rig, plant():
        try:
            run_machine(rig, examples=most, fixed=True, phases=(Phase.generate,), machine=Counting)
        except (AssertionError, QsyncError, BaseExceptionGroup):
            if not first:
                raise
    if first:  # without a mistake, the same runs find nothing
        with Rig("valkey") as rig:
            run_machine(rig, examples=first[0][0], fixed=True, phases=(Phase.generate,))
    return first[0] if first else None


def by_simulation(plant: Plant, most: int) -> tuple[int, str] | None:
    """Simulate histories until one shows the mistake; return their number and the problem."""
    socket = str(shared_store("valkey").config["unixsocket"])
    with redis.Redis(unix_socket_path=socket, protocol=2) as client:
        outcome = caught(plant, client, range(most))
    return None if outcome is None else (outcome.seed + 1, outcome.wrong[0])


def by_cancelling(plant: Plant, most: int) -> tuple[int, str] | None:
    """Cancel calls in rounds until one shows the mistake; return the number of rounds and the
    problem."""
    url = shared_store("valkey").url
    for seed in range(most):
        with plant():
            wrong = mixed_up(url, "mutants", seed)
        if wrong and not mixed_up(url, "without", seed):
            return seed + 1, wrong
    return None


def by_full_store(plant: Plant, most: int) -> tuple[int, str] | None:
    """Return the first problem that the mistake causes on a store that is full or refuses
    settlements."""
    store = shared_store("valkey")
    with plant():
        wrong = wrong_when_full(store, "mutants")
    return (1, wrong) if wrong and not wrong_when_full(store, "without") else None


def by_cluster(plant: Plant, most: int) -> tuple[int, str] | None:
    """Return the first problem that the mistake causes on a cluster with a stopped node."""
    with partial_cluster() as cluster:
        with plant():
            wrong = wrong_with_a_node_away(cluster, "mutants")
        return (1, wrong) if wrong and not wrong_with_a_node_away(cluster, "without") else None


Search = Callable[[Plant, int], tuple[int, str] | None]

IN_FULL_STORE: Final = named(
    result_sent_again_to_a_full_store, fetching_while_settlements_are_refused
)

IN_CLUSTER: Final = named(
    registration_awaited_by_clients,
    registration_awaited_by_periodic_tasks,
    map_requested_from_one_node,
)

PLANTED: Final[list[tuple[str, str, Plant, Search]]] = [
    *((name, "model check", plant, by_model) for name, plant in IN_SCRIPTS.items()),
    *((name, "simulation", plant, by_simulation) for name, plant in MUTANTS.items()),
    (
        "connection kept after a cancel", "cancelled calls",
        connection_kept_after_a_cancel, by_cancelling,
    ),
    *((name, "full store", plant, by_full_store) for name, plant in IN_FULL_STORE.items()),
    *((name, "cluster", plant, by_cluster) for name, plant in IN_CLUSTER.items()),
]  # fmt: skip


def look_for(name: str, by: str, plant: Plant, search: Search, most: int = ENOUGH) -> Found:
    """Plant a mistake and search for it."""
    found = search(plant, most)
    return Found(name, by, *(found or (None, "")))


def shown(found: Found) -> dict[str, Any]:
    """Return a row of the table, without parts that differ between machines."""
    text = re.sub(r"unix://\S+|/tmp/\S+", "unix://...", found.seen.partition("\n")[0])
    text = re.sub(r"^\d+\.\d+ ", "", text)
    text = text if len(text) <= SHOWN else text[:SHOWN].rstrip() + " ..."
    needed = "not found" if found.needed is None else found.needed
    return {**asdict(found), "needed": needed, "seen": text}


def keep(rows: Sequence[Found]) -> None:
    """Write these rows to the table; they replace earlier rows for the same mistakes."""
    before = json.loads(TABLE.read_text("utf-8")) if TABLE.exists() else []
    table = {(row["mistake"], row["by"]): row for row in [*before, *map(shown, rows)]}
    kept = [table[name, by] for name, by, _, _ in PLANTED if (name, by) in table]
    TABLE.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--by", choices=sorted({by for _, by, _, _ in PLANTED}))
    parser.add_argument(
        "--sample", type=int, metavar="N", help="number of mistakes to plant, chosen at random"
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = []
    chosen = [
        planted
        for planted in PLANTED
        if (not options.names or planted[0] in options.names) and options.by in (None, planted[1])
    ]
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.sample(chosen, options.sample)
    for number, planted in enumerate(chosen, 1):
        sys.stdout.write(f"{number} of {len(chosen)}: ")
        sys.stdout.flush()
        found = look_for(*planted)
        rows.append(found)
        sys.stdout.write(f"{found.mistake} | {shown(found)['by']} | ")
        sys.stdout.write(f"{shown(found)['needed']} | {shown(found)['seen']}\n")
        sys.stdout.flush()
        if options.write:
            keep(rows)
    return 1 if any(one.needed is None for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
