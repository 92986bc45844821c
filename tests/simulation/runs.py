"""Runs many seeds one after another, or divided among processes that each have a store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from tests.chaos.progress import Progress
from tests.simulation.history import Outcome, live

ROOT: Final = Path(__file__).parents[2]

SHOWN: Final = 8
"""Maximum number of findings to print per seed."""


@dataclass(slots=True)
class Summary:
    """The outcomes of many seeds."""

    seeds: int = 0
    bad: dict[int, list[str]] = field(default_factory=dict)
    calls: int = 0
    tasks: int = 0
    lapsed: int = 0
    recreated: int = 0
    lost: int = 0
    seconds: float = 0.0
    recovery_s: float = 0.0
    resume_s: float = 0.0
    drained_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    """Number of error replies by code and script, e.g. `LOADING fetch`."""

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of a seed."""
        self.seeds += 1
        if outcome.wrong:
            self.bad[outcome.seed] = list(outcome.wrong[:SHOWN])
        for name in ("calls", "tasks", "lapsed", "recreated", "lost", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(outcome, name))
        for name in ("recovery_s", "resume_s", "drained_s"):
            setattr(self, name, max(getattr(self, name), getattr(outcome, name)))
        self.faults += outcome.faults
        for (code, script), count in outcome.refusals.items():
            self.refusals[f"{code.split()[0]} {script}"] += count

    def merge(self, other: Summary) -> None:
        """Add the outcomes of another process."""
        self.bad |= other.bad
        for name in ("seeds", "calls", "tasks", "lapsed", "recreated", "lost", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("recovery_s", "resume_s", "drained_s"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.faults += other.faults
        self.refusals += other.refusals

    def encode(self) -> str:
        """Return the summary as a string, for another process."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def decode(cls, text: str) -> Summary:
        """Return the summary from the output of `encode`."""
        found: dict[str, Any] = json.loads(text)
        found["bad"] = {int(seed): wrong for seed, wrong in found["bad"].items()}
        for name in ("faults", "refusals"):
            found[name] = Counter(found[name])
        return cls(**found)

    def __str__(self) -> str:
        each = max(self.seeds, 1)
        faults = ", ".join(f"{name} {count}" for name, count in self.faults.most_common())
        return (
            f"{self.seeds} seeds, {self.calls} calls, {self.tasks} tasks, "
            f"{self.lapsed} expired leases, {self.recreated} tasks created again, "
            f"{self.lost} tasks lost with the store's data, "
            f"{self.seconds / each:.1f} virtual seconds per seed; longest recovery "
            f"{self.recovery_s:.1f} s, longest wait for a fetch after the store's return "
            f"{self.resume_s:.1f} s, longest drain after the last fault {self.drained_s:.1f} s; "
            f"{self.faults.total() / each:.1f} faults per seed: {faults}; "
            f"bad: {list(self.bad) or 'none'}"
        )


def outcomes(
    client: redis.Redis,
    seeds: Iterable[int],
    *,
    within_s: float | None = None,
    at_least: int = 0,
    progress: Progress | None = None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Run seeds in order until the time is over, and call `tell` with each outcome.

    `progress` prints a line per minute. The run ends when `progress` is stopped.

    At least `at_least` seeds run, however long that takes.
    """
    ends = None if within_s is None else time.monotonic() + within_s
    summary = Summary()
    for seed in seeds:
        if ends is not None and summary.seeds >= at_least and time.monotonic() > ends:
            break
        if progress is not None:
            if progress.stopped:
                break
            progress.tell(lambda: f"{summary.seeds} seeds, bad: {list(summary.bad) or 'none'}")
        outcome = live(seed, client)
        summary.add(outcome)
        tell(outcome)
    return summary


def spread(
    seeds: int,
    *,
    first: int = 0,
    processes: int | None = None,
    within_s: float | None = None,
    at_least: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Run the seeds in several processes, each with its own store; each process takes every n-th
    seed.

    Each process prints its own line once a minute; the signal that stops `progress` stops all
    processes.
    """
    number = processes or max(1, os.cpu_count() or 1)
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                _child(
                    f"--from={first + part}",
                    f"--every={number}",
                    f"--seeds={len(range(part, seeds, number))}",
                    f"--at-least={len(range(part, at_least, number))}",
                    *([] if within_s is None else [f"--within={within_s}"]),
                )
            )
            for part in range(min(number, seeds))
        ]
        if progress is not None:
            progress.on_stop = lambda: [child.send_signal(signal.SIGTERM) for child in children]
        summary = Summary()
        for text in _results(children):
            summary.merge(Summary.decode(text))
    return summary


def _child(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.simulation", "--json", *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _results(children: Iterable[subprocess.Popen[str]]) -> Iterator[str]:
    open_ = list(children)
    try:
        while open_:
            text, _ = open_[0].communicate()
            child = open_.pop(0)
            if child.returncode == -signal.SIGTERM:
                continue  # stopped before the child's first seed
            if child.returncode not in (0, 1):
                raise RuntimeError(f"a process of the simulation ended with {child.returncode}")
            yield text
    finally:
        for child in open_:
            child.send_signal(signal.SIGINT)  # so that the child stops its store
