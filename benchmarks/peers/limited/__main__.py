"""The command `python -m benchmarks.peers.limited`."""
# ruff: noqa: T201 - it prints what it measures

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers import environments, interpreter
from benchmarks.peers.shared import ROOT
from benchmarks.peers.table import BY_NAME, HIREDIS, QSYNC, REDIS, Peer
from tests.support.stores import Store

PATIENCE = 1200.0
"""Time limit for the slot of a killed task to become free again, in seconds."""
AGAIN_PATIENCE = 400.0
"""Time limit for the killed tasks to run again after the slot is free, in seconds."""
SLOTS = 2
TASKS = 100
STARTS = 200
HERE = "benchmarks.peers.limited"
WORKERS = {
    QSYNC: ("qsync", "worker", f"{HERE}.qsync_tasks:app", "--log-level", "warning"),
    "docket": ("docket", "worker", "--docket", "limited", "--url", "{url}", "--tasks",
               f"{HERE}.docket_tasks:tasks"),
    "rq": ("rq", "worker", "--url", "{url}", "--quiet"),
}  # fmt: skip
ENVIRONMENTS = {
    QSYNC: BY_NAME[QSYNC],
    "docket": BY_NAME["docket"],
    "rq": replace(
        BY_NAME["rq"], environment="rq-limits", requirements=("rq==3.0.0", REDIS, HIREDIS)
    ),
}


@dataclass(frozen=True)
class Line:
    """The start or end of a task, as recorded by the task."""

    event: str
    number: int
    pid: int
    at: float


class Run:
    """One run of a peer, with its own store and log."""

    def __init__(self, peer: str, store: Store, folder: Path) -> None:
        self.peer, self.folder = peer, folder
        self.log, self.hold = folder / "log", folder / "hold"
        self.log.touch()
        self.url = store.url
        self._environment = {
            **os.environ, "BENCH_URL": self.url, "PYTHONPATH": str(ROOT), "QSYNC_URL": self.url,
            "LIMITED_LOG": str(self.log), "LIMITED_HOLD": str(self.hold),
        }  # fmt: skip

    def _program(self, name: str) -> Path:
        return environments.program(ENVIRONMENTS[self.peer], name)

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Run workers, each in its own process group. Kill remaining processes at the end."""
        first, *words = (word.format(url=self.url) for word in WORKERS[self.peer])
        running = []
        try:
            with (self.folder / "output").open("ab") as output:
                running = [
                    subprocess.Popen(  # noqa: S603 - the command of the table
                        [self._program(first), *words], cwd=ROOT, env=self._environment,
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                        start_new_session=True,
                    )
                    for _ in range(count)
                ]  # fmt: skip
            yield running
        finally:
            for worker in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()

    def enqueue(self, task: str, first: int, last: int) -> None:
        module = f"{HERE}.{self.peer}_tasks"
        subprocess.run(  # noqa: S603 - our own program
            [self._program("python"), "-m", module, task, str(first), str(last)],
            cwd=ROOT, env=self._environment, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def lines(self) -> list[Line]:
        rows = [row.split() for row in self.log.read_text().splitlines()]
        return [Line(row[0], int(row[1]), int(row[2]), float(row[3])) for row in rows]

    def starts(self, after: float = 0.0) -> list[Line]:
        return [line for line in self.lines() if line.event == "start" and line.at > after]

    def ended(self) -> set[int]:
        return {line.number for line in self.lines() if line.event == "end"}

    def wait(self, count: int, *, after: float = 0.0, patience: float = 60.0) -> list[Line]:
        """Wait for `count` starts after this time; return the starts that were recorded."""
        end = time.monotonic() + patience
        while len(starts := self.starts(after)) < count and time.monotonic() < end:
            time.sleep(0.01)
        return starts


@contextlib.contextmanager
def run_of(peer: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, Store("valkey", aof=False) as store:
        yield Run(peer, store, Path(folder))


def measure_slots(peer: str) -> str:
    with run_of(peer) as run:
        run.enqueue("hold", 0, TASKS)
        with run.workers(2):
            end = time.monotonic() + 120
            while len(run.ended()) < TASKS and time.monotonic() < end:
                time.sleep(0.05)
        times = [line.at for line in run.lines()]
        return f"{max(times) - min(times):.1f} s"


def measure_pace(peer: str) -> str:
    if peer == "rq":
        return "no rates"
    with run_of(peer) as run:
        with run.workers(2):
            run.enqueue("pace", 0, STARTS)
            times = [line.at for line in run.wait(STARTS)]
        return str(max(sum(1 for at in times if 0 <= at - first < 1) for first in times))


def measure_killed(peer: str, *, parents: bool) -> str:
    """Kill the processes that hold both slots; with `parents`, also kill their parent processes.

    An RQ worker runs one task at a time, each in a child process, so its parent is always killed
    too.
    """
    with run_of(peer) as run:
        run.hold.touch()
        with run.workers(2) as holders:
            run.enqueue("hold", 0, SLOTS)
            held = run.wait(SLOTS)
            with run.workers(2):
                time.sleep(3.0)
                run.enqueue("hold", SLOTS, 3 * SLOTS)
                time.sleep(1.0)
                killed = time.monotonic()
                pids = {line.pid for line in held}
                if parents or peer == "rq":
                    for worker in holders:
                        os.killpg(worker.pid, signal.SIGKILL)
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                run.hold.unlink()
                return _after(run, killed, {line.number for line in held})


def _after(run: Run, killed: float, held: set[int]) -> str:
    starts = run.wait(1, after=killed, patience=PATIENCE)
    if not starts:
        return f"no start within {PATIENCE:.0f} s"
    waited = starts[0].at - killed
    end = time.monotonic() + AGAIN_PATIENCE
    while len(run.ended()) < 3 * SLOTS and time.monotonic() < end:
        time.sleep(0.05)
    again = len(held & {line.number for line in run.starts(killed)})
    run.hold.touch()
    last = time.monotonic()
    run.enqueue("hold", 3 * SLOTS, 5 * SLOTS)
    left = len(run.wait(SLOTS, after=last, patience=10))
    return f"{waited:.2f} s; {again} of {SLOTS} ran again; {SLOTS - left} slots lost"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare limits of qsync, docket and RQ.")
    parser.add_argument("--only", default=",".join(WORKERS), help="e.g. qsync,docket")
    peers: list[str] = parser.parse_args().only.split(",")
    if unknown := set(peers) - set(WORKERS):
        parser.error(f"no peer {', '.join(sorted(unknown))}, only {', '.join(WORKERS)}")
    python = str(interpreter.choose(None)["program"])
    for name in peers:
        peer: Peer = ENVIRONMENTS[name]
        versions = environments.install(peer, python)
        package = {QSYNC: "qsync-py", "docket": "pydocket"}.get(name, name)
        print(f"{name} {versions.get(package, '')}", flush=True)
        print(f"  slots: {measure_slots(name)}", flush=True)
        print(f"  most starts in any second: {measure_pace(name)}", flush=True)
    with ThreadPoolExecutor() as pool:  # the workers wait for minutes and use no CPU
        rounds = [(name, False) for name in peers]
        rounds += [(QSYNC, True)] if QSYNC in peers else []
        kills = [pool.submit(measure_killed, name, parents=parents) for name, parents in rounds]
        for (name, parents), kill in zip(rounds, kills, strict=True):
            print(f"{name}{', with its parent' * parents}: {kill.result()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
