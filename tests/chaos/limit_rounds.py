"""Kills servers whose tasks have limits, and checks that no slot is lost or granted twice.

    python -m tests.chaos.limit_rounds --rounds 10000
    python -m tests.chaos.limit_rounds --minutes 60

Each kill hits one to three servers or the store. The next kill follows as soon as some tasks have
run, which gives about 20 server kills per minute. All kills use SIGKILL, at random moments, and a
killed process is immediately started again. Each of four customers has two slots for its tasks.
Some tasks have a rate, either instead of slots or in addition to them. After each kill, the counts
in the store are compared with the active tasks. At the end, all tasks have run. The history of
leases then shows whether a limit was ever exceeded and how much of the rate was used.

The program prints its progress once a minute. Ctrl-C or SIGTERM ends the kills early and prints the
verdict so far.
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
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from qsync import Qsync, Task
from qsync.keys import QueueKeys
from tests.chaos.limit_programs import BURST, PREFIX, RATE, SLOTS, Setting, run_server
from tests.chaos.limit_verdict import (
    LATENESS,
    given_twice,
    most_above_rate,
    read_ends,
    read_runs,
    used,
)
from tests.chaos.progress import Progress
from tests.support.invariants import check_limits, numbers
from tests.support.server import left_over
from tests.support.stores import Store, wait_until

KINDS: Final = (
    ("slot:a",), ("slot:b",), ("slot:c", "rate"), ("slot:d", "rate"), ("rate",), ("rate",),
)  # fmt: skip
"""Limits that are assigned to tasks in turn."""

SERVERS: Final = 4
BACKLOG: Final = 400
PROGRESS: Final = 2
"""Minimum number of tasks that end between two kills."""

LONGEST_MOMENT_S: Final = 0.03
"""Longest time from the end of the last of these tasks to the kill, in seconds."""

STORE_KILLS: Final = 0.05
"""Share of the rounds that kill the store."""

PROGRESS_S: Final = 60.0
KILLS_A_MINUTE: Final = 20
LEAST_USED: Final = 0.99


@dataclass
class Outcome:
    """The result of the rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    runs: int = 0
    looks: int = 0
    wrong: list[str] = field(default_factory=list)
    above_rate: float = 0.0
    """Largest number of starts by which any window exceeded its rate; at most the burst is
    allowed."""

    used: float = 0.0
    """Share of the allowed starts that were used."""


class Rounds:
    """Starts and kills the servers and the store, and checks the limits."""

    def __init__(self, store: Store, folder: Path, lease_s: float, progress: Progress) -> None:
        self._store, self._lease_s, self._progress = store, lease_s, progress
        self._history = folder / "history"
        self._history.touch()
        self._setting = Setting(store.url, self._history, lease_s)
        self._keys = QueueKeys(PREFIX, "default")
        self._app = Qsync(store.url, prefix=PREFIX, patience=30)
        self._client = self._app.client()
        self._limits: dict[str, tuple[str, ...]] = {}
        self._read = self._ended = 0
        self._servers: list[BaseProcess] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tests.chaos.own_session", "tests.chaos.limit_programs"]
        )
        self._outcome = Outcome()

    def run(self, seed: int, *, rounds: int = 0, minutes: float = 0.0) -> Outcome:
        """Run all rounds of kills, wait until all tasks have run, and return the verdict."""
        choice = random.Random(seed)
        try:
            for _ in range(SERVERS):
                self._start()
            if rounds:
                self._kill_at_once(rounds, choice)
            else:
                self._kill_in_time(minutes, choice)
            with contextlib.suppress(AssertionError):  # the verdict names missing tasks
                wait_until(self._is_empty, timeout=PROGRESS_S, every=0.1)
            return self._judge()
        finally:
            for process in self._servers:
                process.kill()
                process.join(30)
            self._client.close()
            self._app.close()

    def _kill_at_once(self, rounds: int, choice: random.Random) -> None:
        while self._outcome.kills.total() < rounds and not self._progress.stopped:
            self._progress.tell(self._describe)
            self._see_ends()
            time.sleep(choice.uniform(0.0, LONGEST_MOMENT_S))
            if choice.random() < STORE_KILLS:
                self._kill_store()
            else:
                left = rounds - self._outcome.kills.total()
                self._kill_servers(min(left, choice.randint(1, SERVERS - 1)), choice)
            self._look()

    def _kill_in_time(self, minutes: float, choice: random.Random) -> None:
        began = time.monotonic()
        ends, next_kill = began + 60 * minutes, began + 60 / KILLS_A_MINUTE
        while (now := time.monotonic()) < ends and not self._progress.stopped:
            self._progress.tell(self._describe)
            self._fill()
            self._look()
            if now >= next_kill:
                next_kill += 60 / KILLS_A_MINUTE * choice.uniform(0.5, 1.5)
                self._kill_servers(1, choice)
            time.sleep(0.05)

    def _describe(self) -> str:
        outcome = self._outcome
        return (
            f"{outcome.kills.total()} kills, {self._ended} of {len(self._limits)} tasks ended, "
            f"{len(outcome.wrong)} violations"
        )

    def _start(self) -> None:
        process = self._context.Process(target=run_server, args=(self._setting,), daemon=True)
        process.start()
        self._servers.append(process)

    def _kill_store(self) -> None:
        self._outcome.kills["store"] += 1
        self._store.kill()
        self._store.start()

    def _kill_servers(self, number: int, choice: random.Random) -> None:
        self._outcome.kills["server"] += number
        victims = choice.sample(self._servers, number)
        for process in victims:
            assert process.pid is not None
            assert process.is_alive(), f"a server has ended by itself: {process.exitcode}"
            os.kill(process.pid, signal.SIGKILL)
        for process in victims:
            process.join(30)
            self._servers.remove(process)
            self._start()

    def _fill(self) -> None:
        """Enqueue enough tasks that some are always waiting."""
        with self._history.open("rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
        self._read += len(lines) + 1 if lines else 0
        self._ended += lines.count(b"end ")
        if len(self._limits) - self._ended < BACKLOG:
            for _ in range(BACKLOG // 4):
                number = len(self._limits)
                self._limits[f"t{number}"] = KINDS[number % len(KINDS)]
            new = list(self._limits.items())[-(BACKLOG // 4) :]
            self._client.enqueue_many([Task("work", id=id, limits=[*held]) for id, held in new])

    def _see_ends(self) -> None:
        """Wait until more tasks have ended."""
        self._fill()
        wanted = self._ended + PROGRESS

        def ended() -> bool:
            self._fill()
            return self._ended >= wanted

        wait_until(ended, timeout=PROGRESS_S, message="no task has ended; slots may be lost")

    def _look(self) -> None:
        """Compare the counts of limits with the active tasks, in one atomic read."""
        with self._store.client() as client, client.pipeline(transaction=True) as pipe:
            for name in ("limits", "holds"):
                pipe.hgetall(self._keys.key(name))
            for name in ("active", "pending", "limited", "waiters"):
                pipe.zrange(self._keys.key(name), 0, -1, withscores=True)
            limits, holds, *sets = pipe.execute()
        names = ("active", "pending", "limited", "waiters")
        dump: dict[str, Any] = {"limits": limits, "holds": holds}
        dump |= {name: dict(rows) for name, rows in zip(names, sets, strict=True)}
        self._outcome.looks += 1
        try:
            check_limits(dump)
        except AssertionError as error:
            self._outcome.wrong.append(str(error))
        for limit, text in limits.items():
            if limit.startswith(b"slot:") and int(numbers(text)[0]) > SLOTS:
                self._outcome.wrong.append(f"{limit.decode()}: {numbers(text)}")

    def _is_empty(self) -> bool:
        with self._store.client() as client:
            left = left_over(client, PREFIX)
        return not left.keys() & {"scheduled", "pending", "active", "retry", "limited"}

    def _judge(self) -> Outcome:
        outcome, runs = self._outcome, read_runs(self._history)
        self._look()
        with self._store.client() as client:
            kept = client.hgetall(self._keys.key("limits"))
        outcome.wrong += [
            f"{limit.decode()}: the store still has the counts {numbers(text)} after all "
            f"tasks have ended"
            for limit, text in kept.items()
            if numbers(text)[:2] != [b"0", b"0"]
        ]
        slots = {f"slot:{name}": SLOTS for name in "abcd"}
        outcome.wrong += given_twice(runs, self._limits, slots, round(self._lease_s * 1e6))
        ended = read_ends(self._history)
        outcome.wrong += [f"{id} did not run" for id in self._limits if id not in ended]
        times = [run.leased_us for run in runs if "rate" in self._limits[run.id]]
        outcome.above_rate = most_above_rate(times, RATE)
        if outcome.above_rate > BURST + LATENESS:
            outcome.wrong.append(f"{outcome.above_rate:.2f} more starts than the rate allows")
        outcome.tasks, outcome.runs = len(self._limits), len(runs)
        outcome.used = used(times, RATE, BURST)
        return outcome


@contextlib.contextmanager
def parts(lease_s: float = 0.5, progress: Progress | None = None) -> Iterator[Rounds]:
    """Start a store that loses no data when it is killed, and yield the rounds on it."""
    with (
        tempfile.TemporaryDirectory(prefix="qsync-limits-") as folder,
        Store("valkey", aof=True) as store,
    ):
        yield Rounds(store, Path(folder), lease_s, progress or Progress())


def main() -> int:
    """Run the given number of rounds, or run for the given time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="number of kills")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="run time, with 20 kills per minute"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    began = time.monotonic()
    timed = options.minutes > 0
    with Progress() as progress, parts(2.0 if timed else 0.5, progress) as rounds:
        outcome = rounds.run(
            options.seed, rounds=0 if timed else options.rounds, minutes=options.minutes
        )
    if timed and outcome.used < LEAST_USED:
        outcome.wrong.append(f"only {outcome.used:.2%} of the rate was used")
    kills = ", ".join(f"{part} {times}" for part, times in sorted(outcome.kills.items()))
    sys.stdout.write(
        f"seed {options.seed}: {time.monotonic() - began:.0f} s, killed: {kills}; "
        f"{outcome.tasks} tasks ran in {outcome.runs} starts, {outcome.looks} checks of the store; "
        f"at most {outcome.above_rate:.1f} more starts than a window allows (burst {BURST}), "
        f"{outcome.used:.1%} of the rate used; {len(outcome.wrong)} violations\n"
    )
    sys.stdout.writelines(f"    {line}\n" for line in outcome.wrong[:20])
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
