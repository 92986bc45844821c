"""Kills the processes around an outbox, round after round, and checks that the task of each
committed row ran once.

    python -m tests.chaos.outbox_rounds --rounds 1000

An application writes orders and their tasks in transactions, and rolls some back. In each round,
one or two parts are killed with SIGKILL and started again. The parts are the application, the
relay, the store and the database. The command above runs 1,000 rounds with PostgreSQL and 1,000
with SQLite, which has no server to kill. The server that runs the tasks is not killed, because a
task whose server dies runs again with or without an outbox.

The program prints its progress once a minute. Ctrl-C or SIGTERM ends the rounds early and prints
the verdict so far.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, text

from qsync import Qsync
from qsync.contrib.outbox import Outbox
from tests.chaos.outbox_programs import PREFIX, ROLES, Places, make_engine, run_role
from tests.chaos.progress import Progress
from tests.support.postgres import Postgres
from tests.support.stores import Store, wait_until

DATABASES: Final = ("postgresql", "sqlite")
SETTLE_S: Final = 60.0
PROGRESS_S: Final = 60.0
TRANSACTIONS: Final = 5
"""Minimum number of orders committed between two kills."""

LONGEST_MOMENT_S: Final = 0.05
"""Longest time from the last required commit to the next kill, in seconds."""

TABLE: Final = "CREATE TABLE orders (n {}, id varchar(32) NOT NULL UNIQUE)"
COUNTER: Final = {"postgresql": "bigserial PRIMARY KEY", "sqlite": "integer PRIMARY KEY"}
SENT_TWICE: Final = "was sent before"
"""Log message for a row whose task is already in the store."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the rounds."""

    committed: int
    sent_twice: int
    missing: list[str]
    """Orders that were committed but whose tasks did not run."""

    surplus: list[str]
    """Orders that were not committed but whose tasks ran, or whose tasks ran more than once."""

    kills: Counter[str]
    rounds: int = 0


class Rounds:
    """Starts the programs around an outbox, and kills them in rounds."""

    def __init__(
        self, store: Store, database: Postgres | None, folder: Path, progress: Progress
    ) -> None:
        self._store, self._database, self._progress = store, database, progress
        if database is None:
            file = folder / "orders.db"
            addresses = "", f"sqlite:///{file}", f"sqlite+aiosqlite:///{file}"
        else:
            addresses = database.dsn, database.address, database.address
        self._places = Places(store.url, *addresses, folder / "ran", folder / "log")
        self._engine: Engine = make_engine(self._places)
        self._starts: Counter[str] = Counter()
        self._processes: dict[str, BaseProcess] = {}
        # Fork programs from a process that has imported everything, because starting an interpreter
        # takes longer than the rest of a round.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tests.chaos.own_session", "tests.chaos.outbox_programs", "tests.support.postgres"]
        )

    def start(self, part: str) -> None:
        """Start a part. An application or a relay uses the next database library in turn."""
        if part == "store":
            self._store.start()
        elif part == "database":
            assert self._database is not None
            self._database.start()
        else:
            process = self._context.Process(
                target=run_role, args=(part, self._places, self._starts[part]), daemon=True
            )
            process.start()
            self._starts[part] += 1
            self._processes[part] = process

    def kill(self, part: str) -> None:
        """Kill a part with SIGKILL."""
        if part == "store":
            self._store.kill()
        elif part == "database":
            assert self._database is not None
            self._database.kill()
        else:
            self.end(part, signal.SIGKILL)

    def end(self, role: str, number: signal.Signals) -> None:
        """Send a signal to a program and wait until it has ended."""
        process = self._processes.pop(role, None)
        if process is not None and process.pid is not None:
            if process.is_alive():
                os.kill(process.pid, number)
            process.join(30)

    def run(self, rounds: int, seed: int) -> Outcome:
        """Run the rounds, wait until everything has settled, and compare the orders with the
        runs."""
        choice, kills = random.Random(seed), Counter[str]()
        done = 0
        self._make_tables()
        for role in ROLES:
            self.start(role)
        try:
            for victims in self._choose(rounds, choice):
                if self._progress.stopped:
                    break
                self._progress.tell(
                    partial("{} of {} rounds, {} kills".format, done, rounds, kills.total())
                )
                self._see_orders()
                time.sleep(choice.uniform(0.0, LONGEST_MOMENT_S))
                for part in victims:
                    self.kill(part)
                for part in victims:
                    self.start(part)
                kills.update(victims)
                done += 1
            self._see_orders()
            self.end("application", signal.SIGKILL)
            with contextlib.suppress(AssertionError):  # the outcome lists the missing orders
                wait_until(self._is_settled, timeout=SETTLE_S, every=0.1)
            return self.outcome(kills, done)
        finally:
            for role in list(self._processes):
                self.end(role, signal.SIGTERM if role == "server" else signal.SIGKILL)
            self._engine.dispose()

    def _choose(self, rounds: int, choice: random.Random) -> Iterator[list[str]]:
        """Yield the parts to kill in each round: each part in turn, and in a third of the rounds a
        second part."""
        parts = ["application", "relay", "store"]
        if self._database is not None:
            parts.append("database")
        turn: list[str] = []
        for _ in range(rounds):
            turn = turn or choice.sample(parts, len(parts))
            victims = [turn.pop()]
            if choice.random() < 1 / 3:
                victims.append(choice.choice([part for part in parts if part != victims[0]]))
            yield victims

    def _make_tables(self) -> None:
        with self._engine.begin() as connection, Qsync(self._store.url, prefix=PREFIX) as app:
            connection.execute(text(TABLE.format(COUNTER[self._engine.dialect.name])))
            Outbox(app).metadata.create_all(connection)

    def _see_orders(self) -> None:
        """Wait until the application has committed more orders."""
        wanted = self._last_order() + TRANSACTIONS
        try:
            wait_until(lambda: self._last_order() >= wanted, timeout=PROGRESS_S)
        except AssertionError:
            application = self._processes["application"]
            if application.pid is not None and application.is_alive():
                os.kill(application.pid, signal.SIGUSR1)  # make it print its threads' stacks
                time.sleep(1)
            log = self._places.log.read_text(errors="replace")
            log += f"\nthe application: {application.exitcode}"
            raise AssertionError(
                f"no order was committed in {PROGRESS_S:g} s:\n{log[-8000:]}"
            ) from None

    def _last_order(self) -> int:
        return int(self._ask("SELECT coalesce(max(n), 0) FROM orders")[0][0])

    def _ask(self, query: str) -> list[Any]:
        """Return the rows of a query; reconnect if the database has closed the connection."""
        with contextlib.suppress(Exception), self._engine.connect() as connection:
            return list(connection.execute(text(query)))
        self._engine.dispose()
        with self._engine.connect() as connection:
            return list(connection.execute(text(query)))

    def _is_settled(self) -> bool:
        [[left]] = self._ask("SELECT count(*) FROM qsync_outbox")
        return not left and not self.outcome(Counter()).missing

    def outcome(self, kills: Counter[str], rounds: int = 0) -> Outcome:
        """Compare the committed orders with those that ran."""
        orders = {id for (id,) in self._ask("SELECT id FROM orders")}
        ran = self._places.ran
        runs = Counter(ran.read_text().split()) if ran.exists() else Counter[str]()
        return Outcome(
            len(orders),
            self._places.log.read_text(errors="replace").count(SENT_TWICE),
            sorted(orders - runs.keys()),
            sorted(id for id, times in runs.items() if times > 1 or id not in orders),
            kills,
            rounds,
        )


@contextlib.contextmanager
def parts(database: str, progress: Progress | None = None) -> Iterator[Rounds]:
    """Start a database, and a store that loses no data when it is killed; yield the rounds."""
    with (
        tempfile.TemporaryDirectory(prefix="qsync-rounds-") as folder,
        Store("valkey", aof=True) as store,
        Postgres() if database == "postgresql" else contextlib.nullcontext() as postgres,
    ):
        yield Rounds(store, postgres, Path(folder), progress or Progress())


def run(database: str, rounds: int, seed: int, progress: Progress) -> bool:
    """Run the rounds on a database, print the outcome, and return whether each committed order ran
    once."""
    began = time.monotonic()
    with parts(database, progress) as running:
        outcome = running.run(rounds, seed)
    kills = ", ".join(f"{part} {times}" for part, times in sorted(outcome.kills.items()))
    sys.stdout.write(
        f"{database}, seed {seed}: {outcome.rounds} rounds in "
        f"{time.monotonic() - began:.0f} s, killed: {kills}; "
        f"{outcome.committed} orders committed, {outcome.sent_twice} sent twice, "
        f"{len(outcome.missing)} did not run, "
        f"{len(outcome.surplus)} ran without a commit or twice\n"
    )
    sys.stdout.flush()
    return not (outcome.missing or outcome.surplus)


def main() -> int:
    """Run the rounds on each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--database", choices=DATABASES, help="use only this database")
    options = parser.parse_args()
    failed = False
    with Progress() as progress:
        for database in [options.database] if options.database else DATABASES:
            if not progress.stopped:
                failed = not run(database, options.rounds, options.seed, progress) or failed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
