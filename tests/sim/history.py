"""One history: processes, clients, faults, then peace, and what is left when all is done."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis

from qsync.broker import connect, ops
from qsync.broker.call import Call
from qsync.client import AsyncClient, Client
from qsync.keys import QueueKeys
from qsync.schedule import Every, Periodic
from qsync.server.abandon import Abandoner
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from qsync.task import Task
from tests.sim import brokers, clock
from tests.sim.ledger import Ledger
from tests.sim.loop import SimLoop, Stuck
from tests.sim.network import Network
from tests.sim.process import Link, Proc
from tests.sim.profile import Profile
from tests.sim.threads import Turns
from tests.sim.verdict import Verdict
from tests.sim.work import MAX_CRASHES, QUEUES, AsyncUser, BlockingUser, Books, Handlers, Maker

PREFIX: Final = "sim"
LEASE: Final = 3.0
SWEEP: Final = 1.0
TICK_S: Final = 2.0
OLD, NEW = ("work",), ("work", "new")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed."""

    seed: int
    wrong: tuple[str, ...]
    digest: str
    calls: int
    tasks: int
    lapsed: int
    recreated: int
    seconds: float
    """Virtual ones."""
    events: tuple[tuple[Any, ...], ...]


class History:
    """A seed, from its first call to its verdict."""

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
        self.books = Books(self.ledger)
        self.address = connect.parse("unix:///simulated")
        self.faulty = True
        self.stopping = False
        self.servers: list[Proc] = []
        self.others: list[Proc] = []
        self._names = 0
        self._abandoner: Abandoner | None = None
        self._work: list[asyncio.Task[Any]] = []
        self.loop.set_exception_handler(self._broken)

    # Processes

    def _process(self, name: str) -> Proc:
        self._names += 1
        process = Proc(self.loop, f"{name}{self._names}", self.rng)
        if self.faulty:
            for fate, chance in self.profile.link.items():
                setattr(process.link, fate, chance)
        return process

    def start_server(self, types: tuple[str, ...]) -> Proc:
        """Start a process that serves all queues, until it is told to stop or dies."""
        process = self._process("server")
        process.types = types
        self.servers.append(process)
        process.run(self._serve(process, types))
        return process

    async def _serve(self, process: Proc, types: tuple[str, ...]) -> None:
        handlers = Handlers(process, self.books, functools.partial(self.crash, process))
        profile = self.profile
        server = Server(
            self.address,
            prefix=PREFIX,
            mux=handlers.mux(types),
            periodic=self._periodic() if profile.periodic else (),
            queues={QUEUES[0]: 3, QUEUES[1]: 1},
            concurrency=profile.concurrency,
            strict=profile.strict,
            prefetch=profile.prefetch,
            lease=LEASE,
            sweep=SWEEP,
            max_crashes=MAX_CRASHES,
            on_error=handlers.on_error,
            shutdown_timeout=self.rng.choice((0.0, 0.5, 3.0)),
        )
        self.ledger.servers[server.id] = process
        try:
            await server.run()
        except Exception as error:
            if server.broken or not process.troubled(0.0, self.loop.now):
                self.ledger.find(f"{process.name} ended by {type(error).__name__}: {error}")
        else:
            self._check_left(process, server.id)
        process.crash()  # the process exits
        self.network.died(process, at_once=True)
        if not self.stopping:
            self._restart_later(types)

    def _check_left(self, process: Proc, server_id: str) -> None:
        """A server that was told to stop, and that nothing befell, leaves no leases behind."""
        since = (process.told_to_stop or 0.0) - SWEEP
        if process.troubled(since, self.loop.now):
            return
        for entry in self.ledger.entries.values():
            lease = entry.lease
            if lease is None or lease.expires_us <= self.network.now_us:
                continue
            if lease.token.startswith(f"{server_id}/"):
                self.ledger.find(f"{process.name} stopped and left a lease of {entry.id}")

    def _periodic(self) -> list[PeriodicTask]:
        plan = {"kind": "ok", "n": 0, "seconds": 0.0}
        made = functools.partial(Task, "work", plan, queue=QUEUES[1])
        return [PeriodicTask(Periodic("tick", Every(TICK_S)), made)]

    def crash(self, process: Proc) -> None:
        """A process dies; where there is a supervisor it learns of it, and another is started."""
        if not process.alive:
            return
        process.crash()
        self.network.note(process.name, "crashed")
        self.network.died(process, at_once=self.rng.random() < 0.7)
        if process in self.servers and not self.stopping:
            self._restart_later(self.rng.choice((OLD, NEW)))
            if self.profile.supervised:
                self._abandon(process)

    def _terminate(self, process: Proc) -> None:
        """Send SIGTERM."""
        if process.alive:
            self.network.note(process.name, "told to stop")
            process.told_to_stop = process.told_to_stop or self.loop.now
            if not self.loop.signal(process, signal.SIGTERM):
                self.crash(process)

    def _restart_later(self, types: tuple[str, ...]) -> None:
        self.loop.call_later(
            self.rng.uniform(0.1, 2.0), self._restart, types, context=clock.world()
        )

    def _restart(self, types: tuple[str, ...]) -> None:
        if not self.stopping:
            self.start_server(types if self.faulty else NEW)

    def _abandon(self, process: Proc) -> None:
        ids = [id for id, one in self.ledger.servers.items() if one is process]
        supervisor = self._process("supervisor")
        self.others.append(supervisor)

        async def tell() -> None:
            abandoner = Abandoner(brokers.SimBroker(self.address), PREFIX)
            for id in ids:
                abandoner.add(id, QUEUES)

        supervisor.run(tell())

    def _start_clients(self) -> None:
        profile = self.profile
        for blocking in (False, True) if profile.blocking else (False,):
            process = self._process("client")
            self.others.append(process)
            maker = Maker(
                process.name,
                random.Random(f"tasks {self.seed} {process.name}"),
                poison=profile.poison,
                types=("work", "work", "new"),
            )
            rng = random.Random(f"user {self.seed} {process.name}")
            make = self._user_in_thread if blocking else self._user
            self._work.append(process.run(make(process, rng, maker)))

    async def _user(self, process: Proc, rng: random.Random, maker: Maker) -> None:
        user = AsyncUser(process, self.books, rng, maker)
        client = AsyncClient(brokers.SimAsyncBroker(self.address), prefix=PREFIX)
        await user.run(client, self.profile.tasks, self.profile.seconds)

    async def _user_in_thread(self, process: Proc, rng: random.Random, maker: Maker) -> None:
        user = BlockingUser(process, self.books, rng, maker)
        client = Client(brokers.SimBroker(self.address), prefix=PREFIX)
        count = max(1, self.profile.tasks // 3)
        await asyncio.to_thread(user.run, client, count, self.profile.seconds)

    # Faults

    async def _plague(self) -> None:
        """One fault after the other, until it is enough."""
        kinds = [kind for kind, chance in self.profile.faults.items() if chance]
        while self.faulty and kinds:
            await asyncio.sleep(self.rng.expovariate(1 / self.profile.pause_s))
            if self.faulty:
                getattr(self, f"_fault_{self.rng.choice(kinds)}")()

    def _victim(self) -> Proc | None:
        live = [one for one in self.servers if one.alive]
        return self.rng.choice(live) if live else None

    def _fault_crash(self) -> None:
        if (victim := self._victim()) is not None:
            self.crash(victim)

    def _fault_freeze(self) -> None:
        victim = self.rng.choice([*self.others, *self.servers])
        if victim.alive:
            seconds = self.rng.choice((0.2, 0.9, 1.5, 2.5)) * LEASE
            self.network.note(victim.name, "froze", seconds)
            victim.freeze(seconds)

    def _fault_stall(self) -> None:
        if (victim := self._victim()) is not None:
            seconds = self.rng.choice((0.2, 0.9, 1.5, 3.0)) * LEASE
            self.network.note(victim.name, "stalled", seconds)
            victim.stall(seconds)

    def _fault_stop(self) -> None:
        if (victim := self._victim()) is not None:
            self._terminate(victim)

    def _fault_stop_twice(self) -> None:
        if (victim := self._victim()) is not None:
            self._terminate(victim)
            self.loop.call_later(
                self.rng.uniform(0.15, 1.5), self._terminate, victim, context=clock.world()
            )

    def _fault_partition(self) -> None:
        victim = self.rng.choice([*self.others, *self.servers])
        seconds = self.rng.uniform(0.2, 2.0 * LEASE)
        self.network.note(victim.name, "cut off", seconds)
        victim.link.away = True
        victim.trouble(seconds + LEASE / 3)
        self.loop.call_later(seconds, self._reconnect, victim.link, context=clock.world())

    def _reconnect(self, link: Link) -> None:
        link.away = False

    def _fault_away(self) -> None:
        seconds = self.rng.uniform(0.1, 2.0 * LEASE)
        self.network.note("store", "away", seconds)
        self.network.away_until = max(self.network.away_until, self.loop.now + seconds)
        for process in self.servers:
            process.trouble(seconds + LEASE / 3)

    def _fault_flush_scripts(self) -> None:
        self.network.plain("SCRIPT", "FLUSH", "SYNC")

    def _fault_pause(self) -> None:
        queue = self.rng.choice(QUEUES)
        self.world(ops.pause(QueueKeys(PREFIX, queue), b"the world"))
        self.loop.call_later(self.rng.uniform(0.1, 3.0), self._resume, queue, context=clock.world())

    def _resume(self, queue: str) -> None:
        self.world(ops.resume(QueueKeys(PREFIX, queue)))

    def _fault_quiet(self) -> None:
        """Nothing happens for a while."""

    def world(self, call: Call[Any]) -> Any:
        """Make a call that nothing befalls."""
        command = ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        [reply] = self.network.execute(None, [command])
        if isinstance(reply, Exception):
            [reply] = self.network.execute(None, [("EVAL", call.script.text, *command[2:])])
        return call.decode(reply)

    # The course of it

    async def _course(self) -> None:
        profile = self.profile
        for at in range(profile.servers):
            self.start_server(NEW if at == 0 else self.rng.choice((OLD, NEW)))
        self._start_clients()
        plague = asyncio.ensure_future(self._plague())
        await asyncio.sleep(profile.seconds)
        plague.cancel()
        self._make_peace()
        await asyncio.wait(self._work, timeout=60)
        for work in self._work:
            if not work.done():
                self.ledger.find(f"a client is still at work after 60 s of peace: {work}")
        verdict = Verdict(self)
        await verdict.recovered()
        await verdict.drained()
        await self._stop_all()
        verdict.final()

    def _make_peace(self) -> None:
        """From now on nothing goes wrong any more."""
        self.network.note("peace")
        self.faulty = False
        self.peace_at = self.loop.now
        self.network.away_until = 0.0
        for process in [*self.servers, *self.others]:
            process.link.heal()
        for queue in QUEUES:
            self._resume(queue)
        self.start_server(NEW)
        for process in self.servers:  # the deploy is completed
            if process.alive and process.types == OLD:
                self._terminate(process)

    async def _stop_all(self) -> None:
        self.stopping = True
        for process in self.servers:
            if process.alive:
                self._terminate(process)
        for _ in range(400):
            if not any(process.alive for process in self.servers):
                return
            await asyncio.sleep(0.1)
        self.ledger.find("a server does not stop")

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = traceback.extract_tb(error.__traceback__)[-1:] if error else ""
        self.ledger.find(f"{context['message']}: {type(error).__name__}: {error} {trace}")

    def run(self) -> Outcome:
        """Live through it."""
        with self._in_place():
            course = self.loop.create_task(self._course(), context=clock.world())
            try:
                self.loop.run_until_complete(course)
            except Stuck:
                self.ledger.find("nothing will ever happen again, and it is not over")
            for error in self.turns.errors:
                self.ledger.find(f"a thread ended by {type(error).__name__}: {error}")
            return Outcome(
                self.seed,
                tuple(self.ledger.wrong),
                self.network.digest,
                self.network.tally.calls,
                len(self.ledger.entries),
                self.ledger.counts.get("lapsed", 0),
                self.ledger.recreated,
                self.loop.now,
                tuple(self.network.events),
            )

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        brokers.network, brokers.turns = self.network, self.turns
        quiet = os.environ.get("QSYNC_SIM_LOG") is None
        before = logging.root.manager.disable
        if quiet:
            logging.disable(logging.CRITICAL)
        collects = gc.isenabled()
        gc.disable()  # what is dropped must not run at a moment that differs from run to run
        try:
            with clock.replaced(self.loop, self.turns, f"chance {self.seed}"):
                try:
                    yield
                finally:
                    self._bury()
        finally:
            logging.disable(before)
            self.network.close()
            if collects:
                gc.enable()

    def _bury(self) -> None:
        """Close what never came to its end, without a chance to do anything."""
        for process in [*self.servers, *self.others]:
            process.alive = False
        self.turns.end()
        buried: set[asyncio.Task[Any]] = set()
        while tasks := asyncio.all_tasks(self.loop) - buried:
            buried |= tasks
            for task in tasks:  # one that is closed may make another
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
        self.loop._ready.clear()
        self.loop._scheduled.clear()
        self.loop.close()


def live(
    seed: int, store: redis.Redis, *, mistake: Callable[[History], Any] | None = None
) -> Outcome:
    """The outcome of a seed, on a store that is emptied for it."""
    store.flushall()
    history = History(seed, store)
    if mistake is not None:
        mistake(history)
    return history.run()
