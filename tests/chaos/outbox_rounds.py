"""Kills the parts around an outbox, round after round, and checks that each committed row ran once.

    python -m tests.chaos.outbox_rounds --rounds 1000

An application writes orders and the tasks for them in transactions of PostgreSQL, and rolls some
back. In each round one of the application, the relay, the store and the database is killed with
SIGKILL and started again. The server that runs the tasks lives on: a task whose server dies runs
again, with or without an outbox.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.contrib.outbox import Outbox
from tests.support.postgres import Postgres
from tests.support.stores import Store, wait_until

ROOT: Final = Path(__file__).parents[2]
PREFIX: Final = "outbox-rounds"
VICTIMS: Final = ("application", "relay", "store", "database")
SETTLE_S: Final = 60.0
PROGRESS_S: Final = 60.0


class Undo(Exception):
    """Rolls a transaction back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the rounds have shown."""

    committed: int
    missing: list[str]
    """Orders that were committed and did not run."""

    surplus: list[str]
    """Orders that ran and were not committed, or ran more than once."""


# The programs that are killed.


def application(app: Qsync, address: str) -> None:
    """Write orders without end."""
    outbox = Outbox(app)
    while True:
        with contextlib.suppress(psycopg.Error), psycopg.connect(address) as connection:
            while True:
                write_order(outbox, connection)
        time.sleep(0.05)  # the database is away


def write_order(outbox: Outbox, connection: psycopg.Connection[Any]) -> None:
    """Write an order with its task; roll one in four back."""
    order = secrets.token_hex(8)
    with contextlib.suppress(Undo), outbox.transaction(connection) as rows:
        connection.execute("INSERT INTO orders (id) VALUES (%s)", (order,))
        rows.add(Task("pack", order))
        if random.random() < 0.25:
            raise Undo


def relay(app: Qsync, address: str) -> None:
    """Run a relay without end."""
    with Outbox(app).relay(address):
        threading.Event().wait()


def server(app: Qsync, address: str) -> None:
    """Run the tasks, and note each run in a file by one write."""
    mux = Mux()
    ran = os.open(os.environ["ROUNDS_RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @mux.handle("pack")
    async def pack(task: TaskInfo) -> None:
        os.write(ran, f"{task.value(str)}\n".encode())

    asyncio.run(app.server(mux).run())


ROLES: Final = {"application": application, "relay": relay, "server": server}


# The rounds.


class Rounds:
    """The parts, and the rounds on them."""

    def __init__(self, store: Store, database: Postgres, ran: Path) -> None:
        self._store, self._database, self._ran = store, database, ran
        self._log = ran.with_name("log")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str) -> None:
        """Start a program."""
        with self._log.open("ab") as log:
            self._processes[role] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.outbox_rounds", "--role", role],
                cwd=ROOT,
                env={
                    **os.environ,
                    "QSYNC_URL": self._store.url,
                    "ROUNDS_DATABASE": self._database.dsn,
                    "ROUNDS_RAN": str(self._ran),
                },
                stderr=log,
            )

    def kill(self, part: str) -> None:
        """Kill a part and start it again."""
        if part == "store":
            self._store.kill()
            self._store.start()
        elif part == "database":
            self._database.kill()
            self._database.start()
        else:
            self.end(part, signal.SIGKILL)
            self.start(part)

    def end(self, role: str, number: signal.Signals) -> None:
        """End a program."""
        process = self._processes.pop(role, None)
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def run(self, rounds: int, seed: int) -> Outcome:
        """Run the rounds, wait until everything has settled, and compare."""
        choice, victims = random.Random(seed), list[str]()
        with psycopg.connect(self._database.dsn) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)")
            with Qsync(self._store.url, prefix=PREFIX) as app:
                connection.execute(Outbox(app).create_table)
        for role in ROLES:
            self.start(role)
        try:
            for _ in range(rounds):
                if not victims:
                    victims = choice.sample(VICTIMS, len(VICTIMS))
                self._see_orders()
                time.sleep(choice.uniform(0.0, 0.3))
                self.kill(victims.pop())
            self._see_orders()
            self.end("application", signal.SIGKILL)
            with contextlib.suppress(AssertionError):  # the outcome says what is missing
                wait_until(self._is_settled, timeout=SETTLE_S, every=0.1)
            return self.outcome()
        finally:
            for role in list(self._processes):
                self.end(role, signal.SIGTERM if role == "server" else signal.SIGKILL)

    def _see_orders(self) -> None:
        """Wait until the application has committed another order."""
        before = len(self.orders())
        try:
            wait_until(lambda: len(self.orders()) > before, timeout=PROGRESS_S)
        except AssertionError:
            application = self._processes["application"]
            application.send_signal(signal.SIGUSR1)  # it writes where its threads are
            time.sleep(1)
            log = self._log.read_text(errors="replace")
            log += f"\nthe application: {application.poll()}"
            raise AssertionError(
                f"no order was committed in {PROGRESS_S:g} s:\n{log[-8000:]}"
            ) from None

    def orders(self) -> set[str]:
        """The orders that are committed."""
        with psycopg.connect(self._database.dsn) as connection:
            return {id for (id,) in connection.execute("SELECT id FROM orders")}

    def runs(self) -> Counter[str]:
        """How often each order has run."""
        return Counter(self._ran.read_text().split()) if self._ran.exists() else Counter()

    def _is_settled(self) -> bool:
        with psycopg.connect(self._database.dsn) as connection:
            left = connection.execute("SELECT count(*) FROM qsync_outbox").fetchone()
        return left == (0,) and not self.outcome().missing

    def outcome(self) -> Outcome:
        """Compare what is committed with what has run."""
        orders, runs = self.orders(), self.runs()
        return Outcome(
            len(orders),
            sorted(orders - runs.keys()),
            sorted(id for id, times in runs.items() if times > 1 or id not in orders),
        )


@contextlib.contextmanager
def parts() -> Iterator[Rounds]:
    """A store that loses nothing when it is killed, a database, and the rounds on them."""
    with (
        tempfile.TemporaryDirectory(prefix="qsync-rounds-") as folder,
        Store("valkey", aof=True) as store,
        Postgres() as database,
    ):
        yield Rounds(store, database, Path(folder, "ran"))


def main() -> int:
    """Run a role, or the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    if options.role is not None:
        faulthandler.register(signal.SIGUSR1)
        app = Qsync(prefix=PREFIX)
        ROLES[options.role](app, os.environ["ROUNDS_DATABASE"])
        return 0
    with parts() as rounds:
        began = time.monotonic()
        outcome = rounds.run(options.rounds, options.seed)
    sys.stdout.write(
        f"seed {options.seed}: {options.rounds} rounds in {time.monotonic() - began:.0f} s, "
        f"{outcome.committed} orders committed, {len(outcome.missing)} did not run, "
        f"{len(outcome.surplus)} ran without a commit or twice\n"
    )
    return 1 if outcome.missing or outcome.surplus else 0


if __name__ == "__main__":
    sys.exit(main())
