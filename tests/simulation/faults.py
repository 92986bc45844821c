"""Causes the faults of the processes and the store in a history, one after another."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from qsync.broker import operator_ops, type_ops
from qsync.broker.base import DEFAULT_PATIENCE_S
from qsync.broker.call import Call
from qsync.keys import QueueKeys
from tests.simulation import clock
from tests.simulation.network import RESUME_S
from tests.simulation.population import LEASE, NEW, PREFIX, Population, World
from tests.simulation.process import Link
from tests.simulation.profile import OUTAGES
from tests.simulation.store import Snapshot
from tests.simulation.work import QUEUES

OUTAGE_S: Final = (1.5 * DEFAULT_PATIENCE_S, 2.0 * DEFAULT_PATIENCE_S)
"""Shortest and longest outage, in seconds. Each outage outlasts the patience of any caller that
waits when it begins."""

STEPS_S: Final = (-10.0, -2.0, 1.0, 5.0)
HOUR_S: Final = 3600.0
"""Sizes of clock jumps, in seconds. The store's clock jumps by one of STEPS_S or forward by an
hour; other clocks jump by an hour in either direction."""


class Plague:
    """Causes the faults that the profile allows."""

    def __init__(self, world: World, population: Population) -> None:
        self.world = world
        self.population = population
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Cause one fault after another until the history allows no more faults."""
        world = self.world
        kinds = [kind for kind, chance in world.profile.faults.items() if chance]
        while world.faulty and kinds:
            await asyncio.sleep(world.rng.expovariate(1 / world.profile.pause_s))
            if world.faulty:
                kind = world.rng.choice(kinds)
                if kind in OUTAGES:
                    kinds.remove(kind)
                self.counts[kind] += 1
                getattr(self, f"_{kind}")()

    def _later(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        self.world.loop.call_later(seconds, function, *args, context=clock.world())

    def _note(self, *event: Any) -> None:
        self.world.network.note(*event)

    # Processes

    def _crash(self) -> None:
        self.crash()

    def crash(self) -> None:
        """Kill a server."""
        if (victim := self.population.victim()) is not None:
            self.population.crash(victim)

    def _freeze(self) -> None:
        victim = self.world.rng.choice(self.population.all)
        if victim.alive:
            seconds = self.world.rng.choice((0.2, 0.9, 1.5, 2.5)) * LEASE
            self._note(victim.name, "froze", seconds)
            victim.freeze(seconds)

    def _stall(self) -> None:
        if (victim := self.population.victim()) is not None:
            seconds = self.world.rng.choice((0.2, 0.9, 1.5, 3.0)) * LEASE
            self._note(victim.name, "stalled", seconds)
            victim.stall(seconds)

    def _stop(self) -> None:
        if (victim := self.population.victim()) is not None:
            self.population.terminate(victim)

    def _stop_twice(self) -> None:
        if (victim := self.population.victim()) is not None:
            self.population.terminate(victim)
            self._later(self.world.rng.uniform(0.15, 1.5), self.population.terminate, victim)

    def _clock_jump(self) -> None:
        victim = self.world.rng.choice(self.population.all)
        victim.wall_offset += self.world.rng.choice((-HOUR_S, HOUR_S))
        self._note(victim.name, "has another time", victim.wall_offset)

    # The connection to the store

    def _partition(self) -> None:
        victim = self.world.rng.choice(self.population.all)
        seconds = self.world.rng.uniform(0.2, 2.0 * LEASE)
        self._note(victim.name, "cut off", seconds)
        victim.link.away = True
        victim.trouble(seconds + LEASE / 3)
        victim.mishaps.append(self.world.loop.now + seconds)
        self._later(seconds, self._reconnect, victim.link)

    def _reconnect(self, link: Link) -> None:
        link.away = False

    def _away(self) -> None:
        self._be_away(self.world.rng.uniform(0.1, 2.0 * LEASE))

    def _outage(self) -> None:
        """Make the store unreachable for longer than any client's patience."""
        seconds = self.world.rng.uniform(*OUTAGE_S)
        self.world.prolong(seconds)
        self._be_away(seconds)

    def _be_away(self, seconds: float) -> None:
        network = self.world.network
        self._note("store", "away", seconds)
        network.away_until = max(network.away_until, self.world.loop.now + seconds)
        self._trouble_all(seconds + LEASE / 3)

    def _trouble_all(self, seconds: float) -> None:
        """Record that any lease may expire within this time."""
        for process in self.population.servers:
            process.trouble(seconds)

    # The store

    def _flush_scripts(self) -> None:
        self.world.network.store.forget_scripts()

    def _restart(self) -> None:
        """Kill the store, and restart it with its complete append-only file."""
        rng = self.world.rng
        down_s, loading_s = rng.uniform(0.05, 1.2 * LEASE), rng.choice((0.0, rng.uniform(0, 1)))
        self._note("store", "killed", down_s, loading_s)
        self.world.network.restart(down_s, loading_s)
        self._trouble_all(down_s + loading_s + LEASE / 3)
        killed_at = self.world.loop.now
        self._later(down_s + loading_s + RESUME_S, self._check_resumed, killed_at)

    def _check_resumed(self, killed_at: float) -> None:
        """Check that servers fetch again, unless other faults prevented them."""
        world, now = self.world, self.world.loop.now
        network = world.network
        if network.fetched_at >= max(network.down_until, network.loading_until) > 0:
            return
        if not world.faulty or max(network.away_until, network.loading_until) > now - RESUME_S:
            return
        for server in self.population.servers:
            spared = not any(at >= killed_at - LEASE for at in server.mishaps)
            spared &= not any(end >= killed_at for _, end in (*server.stalls, *server.freezes))
            spared &= server.started_at < killed_at - 1
            if server.alive and server.told_to_stop is None and spared:
                world.ledger.find(
                    f"{server.name} has not fetched within {RESUME_S} s after a restart"
                )
                return

    def _roll_back(self) -> None:
        """Restore data that the store had a moment earlier, as if the end of its file were lost or
        a lagging replica took over."""
        snapshot = self.world.network.store.snapshot()
        self._later(self.world.rng.uniform(0.02, 1.5), self._restore, snapshot)

    def _restore(self, snapshot: Snapshot) -> None:
        if self.world.faulty:
            self._note("store", "rolled back")
            self.world.network.store.roll_back(snapshot)
            self._trouble_all(LEASE + 0.5)
            self._restart()

    def _flush(self) -> None:
        """Lose all data, with or without a restart."""
        self._note("store", "flushed")
        self.world.network.store.flush()
        self._trouble_all(LEASE + 0.5)
        if self.world.rng.random() < 0.5:
            self._restart()

    def _store_jump(self) -> None:
        rng = self.world.rng
        self.store_jump(HOUR_S if rng.random() < 0.1 else rng.choice(STEPS_S))

    def store_jump(self, seconds: float) -> None:
        """Let the store's clock jump."""
        store, ledger = self.world.network.store, self.world.ledger
        self._note("store", "has another time", seconds)
        store.jump(seconds)
        ledger.back_us = store.jumped_us()[1]
        ledger.forgetful = ledger.forgetful or seconds == HOUR_S
        self._trouble_all(LEASE + 0.5)

    def _pause(self) -> None:
        queue = self.world.rng.choice(QUEUES)
        self._call(operator_ops.pause(QueueKeys(PREFIX, queue), b"the world"))
        self._later(self.world.rng.uniform(0.1, 3.0), self.resume, queue)

    async def pause_types(self) -> None:
        """Pause one type after another, each for a while."""
        rng = random.Random(f"operator {self.world.seed}")
        while self.world.faulty:
            await asyncio.sleep(rng.expovariate(1 / 0.3))
            queue, type = rng.choice(QUEUES), rng.choice(NEW)
            self.counts["pause_type"] += 1
            self._call(type_ops.pause_type(QueueKeys(PREFIX, queue), type, b"the world"))
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            self.resume_types(queue)

    def resume_types(self, queue: str) -> None:
        """Resume all types of a queue, whether paused or not."""
        for type in NEW:
            self._call(type_ops.resume_type(QueueKeys(PREFIX, queue), type))

    def resume(self, queue: str) -> None:
        """Resume a queue, whether paused or not."""
        self._call(operator_ops.resume(QueueKeys(PREFIX, queue)))

    def _quiet(self) -> None:
        """Cause no fault."""

    def _call(self, call: Call[Any]) -> None:
        """Make a call that no fault can affect."""
        execute = self.world.network.store.execute
        command = ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        [reply] = execute(None, [command])
        if isinstance(reply, Exception):
            execute(None, [("EVAL", call.script.text, *command[2:])])
