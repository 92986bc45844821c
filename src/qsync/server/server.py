"""The server: wires its parts, and stops them in an order that is a list."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker.address import Address
from qsync.broker.shell import MIN_VERSION, AsyncBroker, Broker, StoreInfo, evicts_tasks
from qsync.client import AsyncClient, Client
from qsync.errors import ConfigError, QsyncError, SchemaMismatch, StoreUnavailable
from qsync.keys import QueueKeys, check_name
from qsync.mux import Middleware, Mux, check_mux
from qsync.server.config import config_of, holder_of, new_server_id, seconds
from qsync.server.control import Control
from qsync.server.deadlock_detection import Waits
from qsync.server.fetcher import Fetcher
from qsync.server.handler_context import ServerContext
from qsync.server.handler_mismatch import Rivals
from qsync.server.health import HealthProbe, ServerHealth
from qsync.server.heartbeat import Heartbeat
from qsync.server.hung_handlers import HungHandlers
from qsync.server.invoke import Invoker
from qsync.server.outage_log import Outage
from qsync.server.periodic import PeriodicLoop, PeriodicTask
from qsync.server.permission_check import check_permissions
from qsync.server.pipelined_calls import Together
from qsync.server.queue_state import QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.server.runner import Runner
from qsync.server.settler import Settler
from qsync.server.signals import signals

log = logging.getLogger("qsync.server")

Work = Callable[[], Awaitable[None]]


class _StopRequested(QsyncError):
    """A signal came while the start waited for the store."""


class Server:
    """Takes tasks from queues and runs them, many at once.

    `async with server:` runs it beside other work; `await server.run()` runs it until SIGTERM or
    SIGINT. Options are those of `qsync.server.config.Config`.
    """

    def __init__(
        self,
        address: Address,
        *,
        prefix: str = "qsync",
        mux: Mux,
        periodic: Sequence[PeriodicTask] = (),
        **config: Any,
    ) -> None:
        self.config = config_of(config)
        self.id = self.config.server_id or new_server_id()
        self.holder = holder_of(self.config.server_id, self.id)
        """The beginning of its lease tokens."""
        self.prefix = check_name("prefix", prefix)
        self.address = address
        self.mux = check_mux(mux)
        self._periodic = periodic
        self.lost_leases = 0
        """How often a task turned out not to be this server's any more."""
        self.broken = False
        self._mismatch: SchemaMismatch | None = None
        self.too_many_hung = False
        """More handlers hang than `max_hung` allows: it takes no more tasks."""
        self.told_to_stop = False
        """An operator has told it to stop, by the dashboard say; so it is not to be replaced."""
        self.patient = False
        """The start waits for a store that is away, for as long as it takes or until a signal."""
        self.tally: RunMetrics | None = None
        """Counts what is run, if it is given before the start."""
        self.client_type: Callable[..., Client] = Client
        self.async_client_type: Callable[..., AsyncClient] = AsyncClient
        """What handlers get as `current().client`, in a thread and on the loop."""
        self._vitals: HealthProbe | None = None
        self._client: Client | None = None
        self._outage = Outage()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_once = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False
        self._exits = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Server {self.id} of {', '.join(self.config.weights)} at {self.address}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def put_around(self, middleware: Middleware) -> None:
        """This middleware is the outermost, around every handler; before the start."""
        around = (middleware, *self.config.middleware)
        self.config = dataclasses.replace(self.config, middleware=around)

    def condition(self) -> ServerHealth:
        """How it is now: whether it takes tasks, and if not, why. May be called by any thread."""
        stopping = self._stopping.is_set()
        if self._vitals is None:
            return ServerHealth(stopping=stopping)
        return self._vitals.look(stopping=stopping)

    async def run(self, *, on_ready: Callable[[], object] | None = None) -> None:
        """Run until SIGTERM, SIGINT, `stop()` or an order to stop.

        `on_ready` is called once tasks are being fetched.

        The first signal lets running tasks go on for `shutdown_timeout`, the second hands them back
        at once, the third leaves the process as it is. All servers that run in the loop get it, and
        the signal handler that was there before, as that of uvicorn. Only the main thread can take
        signals; in another one the server runs without.
        """
        with signals(self._on_signal):
            try:
                await self.start()
            except _StopRequested:
                return
            try:
                if on_ready is not None:
                    on_ready()
                await self._stopping.wait()
            finally:
                await self.stop()
        if self._mismatch is not None:
            raise self._mismatch
        if self.broken:
            msg = "a part of the server broke; its log says how"
            raise QsyncError(msg)
        if self.too_many_hung:
            msg = f"more than {self._max_hung} handlers did not stop when they were told to"
            raise QsyncError(msg)

    @property
    def _max_hung(self) -> int:
        most = self.config.max_hung
        return self.config.concurrency if most is None else most

    def _on_too_many_hung(self, count: int) -> None:
        """Let go of what others can run: only the end of the process frees what hangs."""
        if self._stopping.is_set():
            return
        log.error(
            "%d handlers hang, and %d may (max_hung): the server takes no more tasks and stops",
            count, self._max_hung,
        )  # fmt: skip
        self.too_many_hung = True
        self._stopping.set()
        self._runner.stop_taking()

    def _on_order_to_stop(self) -> None:
        self.told_to_stop = True
        self._stopping.set()

    def _on_signal(self, count: int) -> None:
        if count == 1:
            log.info("stopping: running tasks have %g s", seconds(self.config.shutdown_timeout))
            self._stopping.set()
        elif count == 2:
            log.info("stopping at once")
            self._stopping.set()
            self._hurry.set()
        else:
            os._exit(1)

    async def start(self) -> None:
        """Start; returns when tasks are being fetched.

        Raises ConfigError when the store is too old, may evict keys, refuses the credentials or is
        of another kind than its URL says, and StoreUnavailable when it cannot be reached at first.
        """
        if self._started:
            msg = "a server starts once; make another"
            raise QsyncError(msg)
        self._started = True
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config = self.config.fitted(self.mux)
        self._broker = AsyncBroker(self.address)
        self._exits.push_async_callback(self._broker.aclose)
        self._check(await self._facts())
        self._lanes = [QueueState(QueueKeys(self.prefix, queue)) for queue in config.weights]
        await check_permissions(self._broker, [lane.keys for lane in self._lanes])
        together = Together(self._broker, len(self._lanes))
        self._settlers = {
            lane.queue: Settler(together, lane, self._count_lost, self._outage)
            for lane in self._lanes
        }
        client = self.async_client_type(self._broker, prefix=self.prefix)
        client.lent = True
        self._exits.push_async_callback(_take_back, client)
        waits = Waits(config.weights, config.concurrency, config.thread_count)
        surroundings = ServerContext(client, self._blocking_client, waits)
        if config.lifespan is not None:
            surroundings.state = await self._exits.enter_async_context(config.lifespan())
        hung = HungHandlers(self._max_hung, self._on_too_many_hung)
        invoker = Invoker(config, self.mux, hung)
        self._exits.push_async_callback(invoker.aclose)
        rivals = Rivals(self._broker, self.prefix, self.id)
        self._exits.push_async_callback(rivals.aclose)
        self._runner = Runner(
            config, invoker, self._broker, self._settlers, surroundings, self._count_lost, hung,
            self._outage, rivals,
        )  # fmt: skip
        self._runner.tally = self.tally
        for settler in self._settlers.values():
            settler.tally = self.tally
        self._exits.push_async_callback(self._runner.aclose)
        self._fetcher = Fetcher(
            self.holder, config, self._broker, self._lanes, self._runner, self._outage
        )
        self._exits.push_async_callback(self._fetcher.aclose)
        self._control = Control(
            self.id, self.prefix, config, self._broker, self._lanes, self._runner,
            self.mux.types, self._on_order_to_stop, self._outage, waits,
        )  # fmt: skip
        self._fetcher.on_store_lost = self._control.announce_again
        self._exits.push_async_callback(self._control.withdraw)
        for settler in self._settlers.values():
            self._spawn(settler.run)
        self._heartbeats = self._make_heartbeats()
        for heartbeat in self._heartbeats:
            heartbeat.start()
        self._spawn(self._control.announce)
        self._spawn(self._control.read_inbox)
        self._spawn(self._control.watch_stale)
        if self._periodic:
            self._spawn(PeriodicLoop(self._broker, self.prefix, self._periodic, self._outage).run)
        self._fetching = self._spawn(self._fetcher.run)
        self._vitals = HealthProbe(
            config, self._lanes, self._runner, self._control, self._heartbeats[0]
        )
        log.info("server %s is ready: queues %s at %s", self.id, config.weights, self.address)

    async def _facts(self) -> StoreInfo:
        """Ask the store about itself, trying again for a while."""
        backoff, tries = Backoff(cap=AWAY_CAP_S) if self.patient else Backoff(), 8
        while True:
            try:
                facts = await self._broker.facts()
            except StoreUnavailable as error:
                tries -= 1
                if not (tries > 0 or self.patient):
                    raise
                self._outage.failed("start", error)
            else:
                self._outage.worked("start")
                return facts
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff.next())
                raise _StopRequested

    def _check(self, facts: StoreInfo) -> None:
        least = MIN_VERSION.get(facts.product)
        if least and facts.version and facts.version < least:
            shown = ".".join(map(str, facts.version))
            msg = f"{facts.product} {shown} is too old: Redis 7.0 or Valkey 7.2 is needed"
            raise ConfigError(msg)
        if facts.in_cluster and self.address.kind != "cluster":
            msg = f"the store at {self.address} is a node of a cluster; use redis+cluster://"
            raise ConfigError(msg)
        policy = facts.policy
        if policy is not None and evicts_tasks(policy) and not self.config.allow_eviction:
            msg = (
                f"the store's maxmemory-policy is {policy}: it may delete tasks; set it to "
                "noeviction, or start with allow_eviction=True (qsync worker --allow-eviction)"
            )
            raise ConfigError(msg)

    def _make_heartbeats(self) -> list[Heartbeat]:
        """One thread for each node: a node that is away must not hold up another's leases."""
        by_node: dict[str, list[QueueState]] = {}
        for lane in self._lanes:
            node = self._broker.node_name(lane.keys.key("active"))
            by_node.setdefault(node, []).append(lane)
        return [
            Heartbeat(
                Broker(self.address, connections=1, read_timeout=self.config.lease_s / 10),
                lanes,
                self._runner,
                lease_s=self.config.lease_s,
                watches_loop=at == 0,
                outage=self._outage,
            )
            for at, lanes in enumerate(by_node.values())
        ]

    def _blocking_client(self) -> Client:
        if self._client is None:
            self._client = self.client_type(Broker(self.address), prefix=self.prefix)
            self._client.lent = True
        return self._client

    def _count_lost(self, count: int) -> None:
        self.lost_leases += count

    def _spawn(self, work: Work) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.append(task)
        return task

    async def _guard(self, work: Work) -> None:
        """A part that ends by a mistake of ours ends the server: half a server helps nobody."""
        try:
            await work()
        except SchemaMismatch as error:
            log.error("%s; the server stops", error)
            self._mismatch, self.broken = error, True
            self._stopping.set()
        except Exception:
            log.exception("a part of the server broke; the server stops")
            self.broken = True
            self._stopping.set()

    async def stop(self) -> None:
        """Stop: running tasks go on for `shutdown_timeout`, and then are handed back.

        The order is this: no new tasks; what was leased ahead goes back; what runs may end; what
        still runs is stopped and goes back; the store knows of it all; leases are kept until then.
        Returns when all that is done, whoever asked for it first; so does `run`.
        """
        self._stopping.set()
        async with self._stop_once:
            await self._stop()

    async def _stop(self) -> None:
        if hasattr(self, "_fetching"):
            await _cancel([self._fetching])
            self._runner.accepting = False
            await self._fetcher.finish(0.3 if self._hurry.is_set() else 5.0)
            self._runner.hand_back_ready()
            self._runner.hand_back_waiting()
            await self._wait_for_running()
            self._runner.hand_back_ready()
            await self._stop_running()
            await self._settle_rest()
            await asyncio.gather(*[heartbeat.stop() for heartbeat in self._heartbeats])
            del self._fetching
        await _cancel(self._tasks)
        self._tasks.clear()
        await self._exits.aclose()
        if self._client is not None:
            self._client.lent = False
            self._client.close()
            self._client = None
        if hasattr(self, "_broker"):
            log.info("server %s has stopped", self.id)
            del self._broker

    async def _wait_for_running(self) -> None:
        timeout = seconds(self.config.shutdown_timeout)
        idle = asyncio.ensure_future(self._runner.idle.wait())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({idle, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        await _cancel([idle, hurry])

    async def _stop_running(self) -> None:
        """Cancel what still runs; what does not end soon is handed back while it runs on."""
        if not self._runner.running:
            return
        self._runner.stop_all("shutdown")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3 if self._hurry.is_set() else 1.0):
                await self._runner.idle.wait()
        self._runner.give_up_all()

    async def _settle_rest(self) -> None:
        limit = 0.3 if self._hurry.is_set() else max(5.0, seconds(self.config.shutdown_timeout))
        try:
            async with asyncio.timeout(limit):
                for settler in self._settlers.values():
                    await settler.drained()
                await self._fetcher.pass_on()
        except TimeoutError:
            log.warning("the store did not take the ends of all tasks in time")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3 if self._hurry.is_set() else 1.0):
                    for settler in self._settlers.values():
                        await settler.hand_back_rest()


async def _take_back(client: AsyncClient) -> None:
    client.lent = False
    await client.aclose()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
