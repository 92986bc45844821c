"""Workers, store and network fail at the same time, following a plan made from a seed; every
guarantee holds.

CHAOS_SEED replays a seed; CHAOS_SECONDS sets the duration. A seed always gives the same faults, but
the processes react differently in each run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from qsync.broker.leased_batch import crash_count
from qsync.keys import QUEUE_KEYS, QueueKeys
from qsync.message import Result, decode_failure
from tests.chaos.evidence import Dead, Evidence, read_notes
from tests.chaos.faults import Faults, plan
from tests.chaos.fleet import Worker
from tests.chaos.proxy import Proxy
from tests.chaos.users import Users
from tests.chaos.verdict import judge, reasons_of, recovery_times, sequence
from tests.guarantees.conftest import Measured
from tests.support.counters import with_counted
from tests.support.processes import ROOT
from tests.support.server import left_over
from tests.support.stores import Store, wait_until

LEASE: Final = 1.5
MAX_CRASHES: Final = 3
WORKERS: Final = 2
DRAIN_S: Final = 60.0
QUEUE: Final = "default"


@pytest.fixture
def durable_store() -> Iterator[Store]:
    """Yield a store that loses no data when it is killed."""
    with Store("valkey", aof=True) as store:
        yield store


class Chaos:
    """A chaos run, from its seed to its evidence."""

    def __init__(self, store: Store, prefix: str, folder: Path, seed: int, seconds: float) -> None:
        self.store, self.prefix, self.folder = store, prefix, folder
        self.seed, self.seconds = seed, seconds
        self.evidence = Evidence(LEASE, MAX_CRASHES)
        self.keys = QueueKeys(prefix, QUEUE)
        self.peace_at = self.over_at = 0.0
        self.faults: Faults
        self.users: Users

    def run(self) -> Evidence:
        started: list[Worker] = []
        with (
            Proxy(self.store.port, seed=self.seed) as for_workers,
            Proxy(self.store.port, seed=self.seed) as for_clients,
        ):

            def start() -> Worker:
                options = ("--lease", str(LEASE), "--shutdown-timeout", "0.5", "-c", "20")
                worker = Worker(for_workers.url, self.prefix, self.folder, *options)
                started.append(worker.start())
                return worker

            try:
                self._live(start, {"workers": for_workers, "clients": for_clients})
            finally:
                for worker in started:
                    worker.kill()
        self._look()
        return self.evidence

    def _live(self, start: object, proxies: dict[str, Proxy]) -> None:
        steps = plan(self.seed, self.seconds, LEASE)
        self.faults = Faults(steps, self.store, proxies, start, WORKERS, self.evidence)  # type: ignore[arg-type]
        for worker in self.faults.workers:
            worker.wait_ready()
        self.users = Users(proxies["clients"].url, self.prefix, self.evidence, self.seed)
        self.users.start()
        try:
            self.faults.run()
        finally:
            self.users.stop()
        self.peace_at = time.monotonic()
        wait_until(self._drained, timeout=DRAIN_S, every=0.1, message="the queue does not drain")
        self.over_at = time.monotonic()
        for worker in self.faults.workers:
            assert worker.stop() == 0, worker.log()

    def _drained(self) -> bool:
        with self.store.client() as client:
            return not any(
                client.zcard(self.keys.key(name))
                for name in ("scheduled", "pending", "active", "retry")
            )

    def _look(self) -> None:
        """Record the contents of the store at the end."""
        evidence, key = self.evidence, self.keys.key
        evidence.notes = read_notes(self.folder / "history")
        with self.store.client() as client:
            counters = with_counted(client.hgetall(key("stats")), client.hgetall(key("meta")))
            evidence.counters = {
                name.decode(): int(value) for name, value in counters.items() if b":" not in name
            }
            for id in client.zrange(key("dead"), 0, -1):
                failure = decode_failure(client.hget(key("failures"), id))
                text = client.hget(key("crashes"), id)
                crashes = crash_count(text)
                error = (
                    f"crashed {crashes} times" if (text or b"").endswith(b"!") else failure.error
                )
                evidence.dead[id.decode()] = Dead(str(error), failure.attempts, crashes)
            for id, packed in client.hgetall(key("results")).items():
                result = msgspec.msgpack.decode(packed, type=Result)
                value = msgspec.msgpack.decode(result.value) if result.value else result.error
                evidence.results[id.decode()] = str(value)
            evidence.left = left_over(client, self.prefix, QUEUE)
            evidence.keys = {one.decode() for one in client.scan_iter() if client.ttl(one) == -1}
        evidence.broken = [
            line
            for log in sorted(self.folder.glob("worker-*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if " ERROR " in line
            # Dead tasks are checked separately, including those that were rerun or deleted
            # immediately.
            and not re.search(" is dead: | more tasks? crashed too often and became dead", line)
            and not killed_by_test(line, evidence)
        ]
        audit = subprocess.run(
            [sys.executable, "-m", "qsync", "doctor", "--audit", "--json"],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={**os.environ, "QSYNC_URL": self.store.url, "QSYNC_PREFIX": self.prefix},
        )  # fmt: skip
        evidence.audit = "" if audit.returncode == 0 else audit.stdout + audit.stderr
        assert json.loads(audit.stdout), "the audit printed a report"


def killed_by_test(line: str, evidence: Evidence) -> bool:
    """Return whether the line reports a process that the test killed while it was starting or
    stopping."""
    said = re.search(r"\(pid (\d+)\) (?:failed to start|ended): killed by SIGKILL", line)
    kills = {trouble.pid for trouble in evidence.troubles if trouble.kind == "kill"}
    return said is not None and int(said[1]) in kills


def seeds() -> list[object]:
    if given := os.environ.get("CHAOS_SEED"):
        return [(int(given), float(os.environ.get("CHAOS_SECONDS", "8")))]
    short = [(seed, 8.0) for seed in (1, 2)]
    long = [pytest.param((seed, 120.0), marks=pytest.mark.slow) for seed in range(3, 11)]
    return [*short, *long]


@pytest.mark.timeout(400)
@pytest.mark.faults(1, 17, 25, 26, 31, 71, 74, 79, 80)
@pytest.mark.guarantee(1, 2, 5, 6, 7)
@pytest.mark.parametrize("given", seeds(), ids=str)
def test_guarantees_hold_while_workers_store_and_network_fail(
    durable_store: Store,
    prefix: str,
    tmp_path: Path,
    measured: Measured,
    given: tuple[int, float],
) -> None:
    seed, seconds = given
    measured("chaos: seed", seed)
    chaos = Chaos(durable_store, prefix, tmp_path, seed, seconds)
    evidence = chaos.run()
    assert set(evidence.left) <= set(QUEUE_KEYS)
    measured("chaos: faults", dict(sorted(chaos.faults.done.items())))
    measured("chaos: tasks accepted", len(evidence.accepted))
    measured("chaos: calls that failed because the store was down", chaos.users.unavailable)
    measured("chaos: enqueues refused as duplicates", len(evidence.refused))
    measured("chaos: starts", sum(note.kind == "start" for note in evidence.notes))
    measured("chaos: reasons for which tasks started again", reasons_of(evidence))
    measured("chaos: dead tasks", len(evidence.dead))
    measured("chaos: seconds from the last fault until all tasks had ended",
             chaos.over_at - chaos.peace_at)  # fmt: skip
    recovered = recovery_times(evidence) or [0.0]
    measured("chaos: tasks of killed servers that ran again", len(recovered))
    measured("chaos: longest time until a killed task ran again, in seconds", max(recovered))
    assert chaos.users.errors == []
    assert len(evidence.accepted) > 10 * seconds, "the users enqueued too few tasks"
    assert threading.active_count() < 50
    wrong = judge(evidence)
    for one in wrong[:5]:
        measured(one, sequence(evidence.notes, one.split()[0]))
    assert not wrong, f"seed {seed} (CHAOS_SEED={seed} replays it): {wrong}"
