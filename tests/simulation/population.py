"""Starts and stops the processes of a history: servers, clients and supervisors."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import signal
from typing import Any, Final, Protocol

from qsync.broker import redis_clients
from qsync.client import AsyncClient, Client
from qsync.schedule import Every, Missed, Periodic
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from qsync.task import Task
from qsync.worker.lease_abandoner import LeaseAbandoner
from tests.simulation import brokers, clock
from tests.simulation.clients import AsyncUser, BlockingUser, Maker
from tests.simulation.editor import Editor
from tests.simulation.ledger import Ledger
from tests.simulation.limits import RULES
from tests.simulation.loop import SimLoop
from tests.simulation.network import Network
from tests.simulation.process import FATES, Proc
from tests.simulation.profile import Profile
from tests.simulation.stored import Scheduler
from tests.simulation.ticks import MOVED
from tests.simulation.work import MAX_CRASHES, QUEUES, Books, Handlers

PREFIX: Final = "sim"
LEASE: Final = 3.0
SWEEP: Final = 1.0

SCHEDULES: Final[dict[str, tuple[float, Missed]]] = {
    "tick": (2.0, "skip"), "once": (600.0, "once"), "all": (600.0, "all"),
}  # fmt: skip
"""For each schedule, the seconds between its ticks, and its option for missed ticks. Ticks of the
last two schedules are missed only when the store's clock jumps."""

OLD: Final = ("work", "work-thread")
NEW: Final = (*OLD, "new")
"""The task types that servers handle before and after a deploy."""


class World(Protocol):
    """What a simulated process can access of its history."""

    seed: int
    loop: SimLoop
    network: Network
    ledger: Ledger
    books: Books
    profile: Profile
    rng: random.Random
    faulty: bool

    def prolong(self, seconds: float) -> None:
        """Postpone the end of the faults."""


class Population:
    """All processes, including dead ones."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.servers: list[Proc] = []
        self.hosts: dict[Proc, str] = {}
        self.others: list[Proc] = []
        self.clients: list[asyncio.Task[Any]] = []
        self.stopping = False
        self._address = redis_clients.parse("unix:///simulated")
        self._names = 0

    @property
    def all(self) -> list[Proc]:
        return [*self.others, *self.servers]

    def victim(self) -> Proc | None:
        """Return a live server; None if there is none."""
        live = [one for one in self.servers if one.alive]
        return self.world.rng.choice(live) if live else None

    def _process(self, name: str) -> Proc:
        self._names += 1
        process = Proc(self.world.loop, f"{name}{self._names}", self.world.rng)
        if self.world.faulty:
            process.link.fates = tuple((fate, self.world.profile.link[fate]) for fate in FATES)
        return process

    # Servers

    def start_server(self, types: tuple[str, ...]) -> Proc:
        """Start a process that serves all queues until it is stopped or dies."""
        process = self._process("server")
        process.types = types
        self.servers.append(process)
        process.run(self._serve(process, types))
        return process

    async def _serve(self, process: Proc, types: tuple[str, ...]) -> None:
        world = self.world
        handlers = Handlers(process, world.books, functools.partial(self.crash, process))
        profile = world.profile
        changed = types == NEW and world.loop.now > 2.0
        server = Server(
            self._address,
            prefix=PREFIX,
            mux=handlers.mux(types),
            periodic=_periodic(changed=changed) if profile.periodic else (),
            queues={QUEUES[0]: 3, QUEUES[1]: 1},
            concurrency=profile.concurrency,
            threads=profile.threads,
            strict=profile.strict,
            prefetch=profile.prefetch,
            lease=LEASE,
            sweep=SWEEP,
            max_crashes=MAX_CRASHES,
            on_error=handlers.on_error,
            shutdown_timeout=world.rng.choice((0.0, 0.5, 3.0)),
            server_id=self._host(process),
        )
        if world.profile.limits:
            server.limits = RULES
        world.ledger.servers[server.holder] = process
        if changed and world.ledger.ticks.changed_us is None:
            world.ledger.ticks.changed_us = world.network.store.now_us
        try:
            await server.run()
        except Exception as error:
            if server.broken or not process.troubled(0.0, world.loop.now):
                world.ledger.find(f"{process.name} ended with {type(error).__name__}: {error}")
        else:
            self.check_left(process, server.holder)
        process.crash()  # the process exits
        world.network.died(process, at_once=True)
        if not self.stopping:
            self._restart_later(types)

    def _host(self, process: Proc) -> str | None:
        """Return a host name for the server. In every second history without a supervisor, the name
        is the first that no live server has, so that names are reused."""
        if self.world.profile.supervised or self.world.seed % 2:
            return None
        taken = {self.hosts.get(one) for one in self.servers if one.alive and one is not process}
        self.hosts[process] = next(
            name for at in itertools.count() if (name := f"host-{at}") not in taken
        )
        return self.hosts[process]

    def check_left(self, process: Proc, holder: str) -> None:
        """Check that a server that has stopped leaves no leases behind, unless the server had a
        fault."""
        world = self.world
        if process.troubled((process.told_to_stop or 0.0) - SWEEP, world.loop.now):
            return
        for entry in world.ledger.entries.values():
            lease = entry.lease
            if lease is None or lease.copied or lease.expires_us <= world.network.store.now_us:
                continue
            if lease.token.startswith(f"{holder}/"):
                world.ledger.find(f"{process.name} stopped while it held a lease of {entry.id}")

    def crash(self, process: Proc) -> None:
        """Kill a process. If the process was a server, start another server and tell the
        supervisor, if any."""
        world = self.world
        if not process.alive:
            return
        process.crash()
        world.network.note(process.name, "crashed")
        world.network.died(process, at_once=world.rng.random() < 0.7)
        if process in self.servers and not self.stopping:
            self._restart_later(world.rng.choice((OLD, NEW)))
            if world.profile.supervised:
                self._abandon(process)

    def terminate(self, process: Proc) -> None:
        """Send SIGTERM."""
        if process.alive:
            self.world.network.note(process.name, "told to stop")
            process.told_to_stop = process.told_to_stop or self.world.loop.now
            if not self.world.loop.signal(process, signal.SIGTERM):
                self.crash(process)

    def _restart_later(self, types: tuple[str, ...]) -> None:
        self.world.loop.call_later(
            self.world.rng.uniform(0.1, 2.0), self._restart, types, context=clock.world()
        )

    def _restart(self, types: tuple[str, ...]) -> None:
        if not self.stopping:
            self.start_server(types if self.world.faulty else NEW)

    def _abandon(self, process: Proc) -> None:
        ids = [id for id, one in self.world.ledger.servers.items() if one is process]
        supervisor = self._process("supervisor")
        self.others.append(supervisor)

        async def tell() -> None:
            abandoner = LeaseAbandoner(brokers.SimBroker(self._address), PREFIX)
            for id in ids:
                abandoner.add(id, QUEUES)

        supervisor.run(tell())

    # Clients

    def start_clients(self) -> None:
        """Start the enqueueing clients."""
        world = self.world
        for blocking in (False, True) if world.profile.blocking else (False,):
            process = self._process("client")
            self.others.append(process)
            maker = Maker(
                process.name,
                random.Random(f"tasks {world.seed} {process.name}"),
                world.books,
                poison=world.profile.poison,
                unique=world.profile.unique,
                priorities=random.Random(f"priorities {world.seed}")
                if world.profile.flow
                else None,
                types=world.profile.types,
                limits=world.profile.limits,
            )
            rng = random.Random(f"user {world.seed} {process.name}")
            make = self._user_in_thread if blocking else self._user
            self.clients.append(process.run(make(rng, maker)))

    async def _user(self, rng: random.Random, maker: Maker) -> None:
        user = AsyncUser(self.world.books, rng, maker)
        client = AsyncClient(brokers.SimAsyncBroker(self._address), prefix=PREFIX)
        await user.run(client, self.world.profile.tasks, self.world.profile.seconds)

    async def _user_in_thread(self, rng: random.Random, maker: Maker) -> None:
        user = BlockingUser(self.world.books, rng, maker)
        client = Client(brokers.SimBroker(self._address), prefix=PREFIX)
        count = max(1, self.world.profile.tasks // 3)
        await asyncio.to_thread(user.run, client, count, self.world.profile.seconds)

    def start_scheduler(self) -> None:
        """Start a client that stores and changes schedules."""
        world = self.world
        process = self._process("scheduler")
        self.others.append(process)
        scheduler = Scheduler(
            random.Random(f"scheduler {world.seed}"), QUEUES[1], lambda: world.network.store.now_us
        )

        async def schedule() -> None:
            client = AsyncClient(brokers.SimAsyncBroker(self._address), prefix=PREFIX)
            await scheduler.run(client, world.profile.seconds)

        self.clients.append(process.run(schedule()))

    def start_editor(self) -> None:
        """Start a client that edits documents."""
        world = self.world
        process = self._process("editor")
        self.others.append(process)
        editor = Editor(random.Random(f"editor {world.seed}"), QUEUES[0], world.books.documents)

        async def edit() -> None:
            client = AsyncClient(brokers.SimAsyncBroker(self._address), prefix=PREFIX)
            await editor.run(client, world.profile.seconds)

        self.clients.append(process.run(edit()))

    # The end

    async def stop(self) -> None:
        """Stop all servers, and wait until they have ended."""
        self.stopping = True
        for process in self.servers:
            if process.alive:
                self.terminate(process)
        for _ in range(400):
            if not any(process.alive for process in self.servers):
                return
            await asyncio.sleep(0.1)
        self.world.ledger.find("a server does not stop")


def _periodic(*, changed: bool) -> list[PeriodicTask]:
    plan = {"kind": "ok", "n": 0, "seconds": 0.0}
    made = functools.partial(Task, "work", plan, queue=QUEUES[1])
    schedules = {**SCHEDULES, MOVED: (1.0 if changed else 600.0, "all")}
    return [
        PeriodicTask(Periodic(name, Every(seconds), missed), made)
        for name, (seconds, missed) in schedules.items()
    ]
