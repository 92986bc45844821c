"""Runs one history: processes, clients and faults, then a quiet period and the final check."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from tests.simulation import brokers, clock
from tests.simulation.faults import Plague
from tests.simulation.ledger import Ledger
from tests.simulation.loop import SimLoop, Stuck
from tests.simulation.network import Network
from tests.simulation.population import LEASE, NEW, OLD, Population
from tests.simulation.profile import Profile
from tests.simulation.threads import Turns
from tests.simulation.verdict import Verdict
from tests.simulation.work import QUEUES, Books


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a seed."""

    seed: int
    wrong: tuple[str, ...]
    digest: str
    calls: int
    tasks: int
    lapsed: int
    recreated: int
    lost: int
    """Number of tasks that the store lost with its data."""
    seconds: float
    """Duration of the history, in seconds of virtual time."""
    recovery_s: float
    """Longest wait of a task after a dead server's lease on the task had expired, in seconds."""
    resume_s: float
    """Longest time until a server fetched after the store had become available again, in
    seconds."""
    drained_s: float
    """Time from the end of the faults until all tasks had ended, in seconds."""
    faults: Counter[str]
    """Number of faults of processes, of the store and of calls, by kind."""
    refusals: Counter[tuple[str, str]]
    """Number of error replies from the store, by code and script."""
    events: tuple[tuple[Any, ...], ...] = field(default=(), repr=False)


class History:
    """Runs a seed from its first call to its verdict."""

    def __init__(self, seed: int, store: redis.Redis) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")
        self.profile = Profile(random.Random(f"profile {seed}"))
        self.loop = SimLoop(f"order {seed}")
        self.turns = Turns(self.loop)
        self.loop.executor = self.turns.run_in_thread
        self.ledger = Ledger(self.loop.time)
        self.network = Network(self.loop, store, self.ledger, f"network {seed}", lease_s=LEASE)
        self.network.latencies = self.profile.latencies
        self.books = Books(self.ledger, self.network.store)
        self.faulty = True
        self.faults_end = 0.0
        """Time at which the faults end."""
        self.peace_at = self.drained_at = 0.0
        self.population = Population(self)
        self.plague = Plague(self, self.population)
        self.loop.set_exception_handler(self._broken)

    async def _course(self) -> None:
        profile, population = self.profile, self.population
        for at in range(profile.servers):
            population.start_server(NEW if at == 0 else self.rng.choice((OLD, NEW)))
        population.start_clients()
        if profile.stored:
            population.start_scheduler()
        if self.profile.flow:
            population.start_editor()
        plague = [asyncio.ensure_future(self.plague.run())]
        if profile.pauses_types:
            plague.append(asyncio.ensure_future(self.plague.pause_types()))
        self.prolong(profile.seconds)
        while (left := self.faults_end - self.loop.now) > 0:  # noqa: ASYNC110 - faults prolong it
            await asyncio.sleep(left)
        for misfortune in plague:
            misfortune.cancel()
        self._make_peace()
        await asyncio.wait(population.clients, timeout=60)
        for work in population.clients:
            if not work.done():
                self.ledger.find(f"a client is still working after 60 s without faults: {work}")
        verdict = Verdict(self)
        await verdict.recovered()
        await verdict.drained()
        self.drained_at = self.loop.now
        await population.stop()
        verdict.final()

    def prolong(self, seconds: float) -> None:
        """Postpone the time at which the faults end."""
        self.faults_end += seconds

    def _make_peace(self) -> None:
        """End all faults."""
        self.network.note("peace")
        self.faulty = False
        self.peace_at = self.loop.now
        self.network.heal()
        for process in self.population.all:
            process.link.heal()
        for queue in QUEUES:
            self.plague.resume(queue)
            self.plague.resume_types(queue)
        servers = [one for one in self.population.servers if one.alive]
        if not any(one.types == NEW and one.told_to_stop is None for one in servers):
            self.population.start_server(NEW)
        for process in servers:  # ends the deploy
            if process.types == OLD:
                self.population.terminate(process)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = traceback.extract_tb(error.__traceback__)[-1:] if error else ""
        self.ledger.find(f"{context['message']}: {type(error).__name__}: {error} {trace}")

    def run(self) -> Outcome:
        """Run the history and return its outcome."""
        with self._in_place():
            course = self.loop.create_task(self._course(), context=clock.world())
            try:
                self.loop.run_until_complete(course)
            except Stuck:
                self.ledger.find("no callback is left, but the history has not ended")
            for error in self.turns.errors:
                self.ledger.find(f"a thread ended with {type(error).__name__}: {error}")
            return self._outcome()

    def _outcome(self) -> Outcome:
        ledger, network = self.ledger, self.network.counts
        return Outcome(
            seed=self.seed,
            wrong=tuple(ledger.wrong),
            digest=self.network.digest,
            calls=network.calls,
            tasks=len(ledger.entries),
            lapsed=ledger.counts.get("lapsed", 0),
            recreated=ledger.recreated,
            lost=len(ledger.lost),
            seconds=self.loop.now,
            recovery_s=max(ledger.recoveries, default=0.0),
            resume_s=max(self.network.resumes, default=0.0),
            drained_s=max(0.0, self.drained_at - self.peace_at),
            faults=self.plague.counts + network.fates,
            refusals=network.refusals,
            events=tuple(self.network.events),
        )

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        brokers.network, brokers.turns = self.network, self.turns
        quiet = os.environ.get("QSYNC_SIM_LOG") is None
        before = logging.root.manager.disable
        if quiet:
            logging.disable(logging.CRITICAL)
        collects = gc.isenabled()
        gc.disable()  # finalizers must run at the same times in every run
        try:
            with clock.replaced(self.loop, self.turns, f"chance {self.seed}"):
                try:
                    yield
                finally:
                    self._bury()
        finally:
            logging.disable(before)
            if collects:
                gc.enable()

    def _bury(self) -> None:
        """Close unfinished threads and coroutines; what they do while they are closed has no
        effect."""
        for process in self.population.all:
            process.alive = False
        self.turns.end()
        # Futures that a coroutine creates while it is closed use this loop, instead of a new loop
        # that would never be closed.
        asyncio.set_event_loop(self.loop)
        buried: set[asyncio.Task[Any]] = set()
        while tasks := asyncio.all_tasks(self.loop) - buried:
            buried |= tasks
            for task in tasks:  # a task that is closed may create another task
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        self.loop.bury()
        asyncio.set_event_loop(None)
        self.loop.close()


def live(
    seed: int, store: redis.Redis, *, arrange: Callable[[History], Any] | None = None
) -> Outcome:
    """Empty the store and return the outcome of a seed; `arrange` may change the history first."""
    store.flushall()
    history = History(seed, store)
    if arrange is not None:
        arrange(history)
    return history.run()
