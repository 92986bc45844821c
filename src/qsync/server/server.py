"""The server: builds its parts, starts them, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self

from qsync.bounds import Bounds
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.errors import QsyncError, SchemaMismatch
from qsync.hooks import Hooks
from qsync.keys import QueueKeys, check_name
from qsync.limit import LimitRule
from qsync.mux import Middleware, Mux, check_mux
from qsync.server import server_parts
from qsync.server.batch_gathering import Gathering
from qsync.server.capacity import Capacity
from qsync.server.child_context import ChildSetup
from qsync.server.config import Config, config_of, holder_of, new_server_id, seconds
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.crash_log import CrashLog
from qsync.server.deadlock_detection import Waits
from qsync.server.fetcher import Fetcher
from qsync.server.handler_context import ServerContext
from qsync.server.handler_mismatch import HandlerFinder
from qsync.server.health import HealthProbe, ServerHealth
from qsync.server.heartbeat import HeartbeatThreads
from qsync.server.hook_calls import HookCalls
from qsync.server.invoke import Invoker
from qsync.server.layout_check import readable_config
from qsync.server.leases import LeaseKeeper
from qsync.server.loop_watchdog import LoopWatchdog
from qsync.server.outage_log import Outage
from qsync.server.periodic import PeriodicLoop, PeriodicTask
from qsync.server.pipelined_calls import CallPipeline
from qsync.server.queue_rules import QueueRules
from qsync.server.queue_state import QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.server.runner import Runner
from qsync.server.server_inbox import ServerInbox
from qsync.server.server_parts import Loops, Part, ReplacedParts, StopAction
from qsync.server.settler import Settler
from qsync.server.shutdown import Shutdown
from qsync.server.signals import signals
from qsync.server.stopping import HungHandlers
from qsync.server.store_check import check_permissions, check_store, read_store_info
from qsync.server.stored_ticks import StoredTicks
from qsync.server.type_counter import TypeCounter
from qsync.server.type_reports import TypeReports

log: Final = logging.getLogger("qsync.server")


class _StopRequested(QsyncError):
    """A signal arrived while a starting server waited for the store."""


class Server:
    """Takes tasks from queues and runs them concurrently.

    `async with server:` runs the server alongside other work. `await server.run()` runs it until
    SIGTERM or SIGINT. The options are the fields of `qsync.server.config.Config`.
    """

    limits: Mapping[str, LimitRule] = MappingProxyType({})
    """Rules of the app's limits by name, which the server publishes when it starts."""

    def __init__(
        self,
        address: Address,
        *,
        prefix: str = "qsync",
        mux: Mux,
        periodic: Sequence[PeriodicTask] = (),
        **config: Any,
    ) -> None:
        self.config: Config = config_of(config)
        self.id: str = self.config.server_id or new_server_id()
        self.holder: str = holder_of(self.config.server_id, self.id)
        """Prefix of the server's lease tokens."""
        self.prefix: str = check_name("prefix", prefix)
        self.address = address
        self.mux: Mux = check_mux(mux)
        self.periodic = periodic
        """Periodic tasks of the app, whose ticks the server enqueues."""
        self.lost_leases: int = 0
        """Number of leases that this server has lost."""
        self.broken: bool = False
        self._mismatch: SchemaMismatch | None = None
        self.overloaded_by_hung: bool = False
        """True if the number of hung handlers has exceeded `max_hung`; the server then stops."""
        self.stop_requested: bool = False
        """True once an operator has stopped the server; a supervisor then does not replace it."""
        self.wait_for_store = False
        """If true, `start` retries an unreachable store without limit, until a signal arrives."""
        self.run_metrics: RunMetrics | None = None
        """Collector of run metrics, or None; set it before the start."""
        self.client_type: Callable[..., Client] = Client
        self.async_client_type: Callable[..., AsyncClient] = AsyncClient
        """Class of `current().client` on the event loop; handlers in threads get `client_type`."""
        self.child_setup: ChildSetup | None = None
        self.replaced: ReplacedParts = ReplacedParts()
        self.hooks: Hooks = Hooks()
        """Hooks for the server's tasks; add to them before the start."""
        self.bounds: dict[str, Bounds] = {}  # bounds of queues, which `start` stores
        self._on_stop_order: Callable[[], object] | None = None
        self._health: HealthProbe | None = None
        self._client: Client | None = None
        self._outage = Outage()
        self._types = TypeCounter(self.mux.types, self.config.version)
        self._stopping = asyncio.Event()
        self._force = asyncio.Event()
        self._stop_once = asyncio.Lock()
        self._started = False
        self._parts: list[Part] = []
        """The parts that have been started, in this order."""

    def __repr__(self) -> str:
        return f"<Server {self.id} of {', '.join(self.config.weights)} at {self.address}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def add_outer_middleware(self, middleware: Middleware) -> None:
        """Add a middleware outside all others, around every handler. Call this before the start."""
        around = (middleware, *self.config.middleware)
        self.config = dataclasses.replace(self.config, middleware=around)

    def condition(self) -> ServerHealth:
        """Return whether the server takes tasks, and if not, why. Safe to call on any thread."""
        stopping = self._stopping.is_set()
        if self._health is None:
            return ServerHealth(stopping=stopping, unavailable=self._outage.reason)
        return self._health.read(stopping=stopping)

    async def run(
        self,
        *,
        on_ready: Callable[[], object] | None = None,
        on_stop_order: Callable[[], object] | None = None,
    ) -> None:
        """Run until SIGTERM, SIGINT, `stop()` or an operator's order to stop.

        `on_ready` is called once the server is fetching tasks, and `on_stop_order` when an operator
        stops the server.

        The first signal starts a graceful shutdown: running tasks have `shutdown_timeout` to end.
        At the second signal, tasks that are still running are handed back immediately. A third
        signal ends the process immediately. Each signal reaches all servers of the event loop, and
        also the handler that was installed before them, e.g. uvicorn's. Outside the main thread,
        the server runs without signal handling.

        Raises QsyncError when a part of the server crashes or too many handlers are hung, and
        SchemaMismatch when the store holds data of another qsync version.
        """
        self._on_stop_order = on_stop_order
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
            raise QsyncError("a part of the server failed; see the server's log")
        if self.overloaded_by_hung:
            msg = f"more than {self._max_hung} handlers kept running after they were stopped"
            raise QsyncError(msg)

    @property
    def _max_hung(self) -> int:
        most = self.config.max_hung
        return self.config.concurrency if most is None else most

    def _on_too_many_hung(self, count: int) -> None:
        """Stop taking tasks, since hung handlers end only with the process."""
        if self._stopping.is_set():
            return
        log.error(
            "hung handlers: %d, more than max_hung=%d; the server takes no new tasks and stops",
            count, self._max_hung,
        )  # fmt: skip
        self.overloaded_by_hung = True
        self._stopping.set()
        self._runner.stopping.stop_accepting()

    def _on_order_to_stop(self) -> None:
        self.stop_requested = True
        self._stopping.set()
        if self._on_stop_order is not None:
            self._on_stop_order()

    def _on_signal(self, count: int) -> None:
        if count == 1:
            log.info(
                "stopping: running tasks have %g s to finish", seconds(self.config.shutdown_timeout)
            )
            self._stopping.set()
        elif count == 2:
            log.info("stopping at once")
            self._stopping.set()
            self._force.set()
        else:
            os._exit(1)

    async def start(self) -> None:
        """Start the server; return once it is fetching tasks.

        Raises ConfigError if the store is too old, may evict keys, refuses the credentials, or is
        of another kind than its URL names. Raises StoreUnavailable if the store cannot be reached.
        """
        if self._started:
            raise QsyncError("a Server can be started only once; create another one")
        self._started = True
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config = self.config.fitted(self.mux)
        self._broker: AsyncBroker = self.replaced.broker(self.address)
        await self._start_part(StopAction(self._broker.aclose, closes=True))
        info = await read_store_info(
            self._broker, self._outage, self._stopping, wait=self.wait_for_store
        )
        if info is None:
            raise _StopRequested
        check_store(info, self.address, allow_eviction=config.allow_eviction)
        config = self.config = await readable_config(self._broker, self.prefix, config)
        self._queues = [QueueState(QueueKeys(self.prefix, name)) for name in config.weights]
        await check_permissions(self._broker, [queue.keys for queue in self._queues])
        self._queue_rules = QueueRules(
            self._broker, self.prefix, self._queues, self.limits, self.bounds, self._outage
        )
        await self._start_part(self._queue_rules)
        client = self.async_client_type(self._broker, prefix=self.prefix)
        client.borrowed = True
        await self._start_part(StopAction(partial(server_parts.take_back, client), closes=True))
        await self._start_part(StopAction(self._close_blocking_client, closes=True))
        waits = Waits(
            config.weights, config.concurrency, config.thread_count,
            on_stuck=lambda: self._control.announce_now(),
        )  # fmt: skip
        context = ServerContext(client, self._blocking_client, waits)
        if config.lifespan is not None:
            exits = contextlib.AsyncExitStack()
            context.state = await exits.enter_async_context(config.lifespan())
            await self._start_part(StopAction(exits.aclose, closes=True))
        for part in self._make_parts(context):
            await self._start_part(part)
        log.info("server %s is ready: queues %s at %s", self.id, config.weights, self.address)

    async def _start_part(self, part: Part) -> None:
        self._parts.append(part)
        await part.start()

    def _make_parts(self, context: ServerContext) -> list[Part]:
        """Create the parts of the server in the order of their start; they stop in reverse order.

        Operators see the server, and can cancel its tasks, until all tasks have ended. Leases are
        renewed until the store has settled the tasks, so heartbeats come before settlers. Fetching
        starts last and stops first.
        """
        config, outage, queues = self.config, self._outage, self._queues
        hung = HungHandlers(self._max_hung, self._on_too_many_hung)
        invoker = Invoker(config, self.mux, hung, self.replaced.threads, self.child_setup)
        finder = HandlerFinder(self._broker, self.prefix, self.id)
        hooks = HookCalls(self.hooks, invoker) if self.hooks else None
        settlers = self._make_runner(invoker, finder, hung, context, hooks)
        runner, capacity = self._runner, self._capacity
        leases = self._make_lease_keeper()
        fetcher = self._fetcher = Fetcher(
            self.holder, config, self._broker, queues, runner, capacity, leases, outage,
            CrashLog(self._broker, hooks),
        )  # fmt: skip
        control = self._control = ServerInbox(
            self.id, self.prefix, config, self._broker, queues, runner, capacity, leases,
            self.mux.types, self._on_order_to_stop, outage, context.waits, invoker.process_stack,
        )  # fmt: skip
        watchdog = LoopWatchdog(capacity.ready)
        self._health = HealthProbe(config, queues, capacity, control, watchdog, outage)
        shutdown = Shutdown(config, capacity, runner.stopping, fetcher, settlers, self._force)
        return [
            StopAction(invoker.aclose, closes=True),
            StopAction(finder.aclose, closes=True),
            StopAction(runner.aclose, closes=True),
            StopAction(fetcher.aclose, closes=True),
            StopAction(control.withdraw),
            TypeReports(self.holder, self._broker, queues, self._types, outage, self.run_metrics),
            Loops(self._on_broken, control.announce, control.read_inbox, control.watch_tasks),
            self._make_ticks(hooks),
            HeartbeatThreads(self._broker, queues, config.lease_s, leases, watchdog, outage),
            Loops(self._on_broken, *[settler.run for settler in settlers]),
            StopAction(shutdown.settle),
            StopAction(shutdown.end_running),
            Loops(self._on_broken, fetcher.run),
        ]

    def _make_runner(
        self, invoker: Invoker, finder: HandlerFinder, hung: HungHandlers, context: ServerContext,
        hooks: HookCalls | None,
    ) -> Sequence[Settler]:  # fmt: skip
        """Create the runner and its capacity; return the settlers to which the runner reports."""
        suspects = CrashIsolation()
        gathering = Gathering(
            lambda: self._runner.start_batches(), longest_wait_s=self.replaced.batch_wait_s
        )
        capacity = self._capacity = Capacity(
            self.config, suspects, gathering, threads_only=self.config.threads_only(self.mux),
            place_of=invoker.place_of, room_in=invoker.room_in,
        )  # fmt: skip
        pipeline = CallPipeline(self._broker, len(self._queues))
        settlers = {
            queue.name: Settler(
                pipeline, queue, self._outage,
                on_lost=self._count_lost,
                on_settled=lambda: self._runner.see_settled(),
                on_accepted=capacity.room_made.set,
                metrics=self.run_metrics,
                hooks=hooks, type_counter=self._types,
            )
            for queue in self._queues
        }  # fmt: skip
        self._runner = Runner(
            self.config, invoker, self._broker, settlers, capacity, suspects, hung, context,
            self._count_lost, self._outage, finder, self.run_metrics, hooks,
        )  # fmt: skip
        return list(settlers.values())

    def _make_ticks(self, hooks: HookCalls | None) -> Loops:
        if not self.replaced.ticks:
            return Loops(self._on_broken)
        broker, prefix, outage = self._broker, self.prefix, self._outage
        on_created = hooks.enqueued if hooks and self.hooks.of("enqueued") else None
        periodic = PeriodicLoop(broker, prefix, self.periodic, outage, on_created)
        stored = StoredTicks(broker, prefix, outage, on_created)
        return Loops(self._on_broken, periodic.run, stored.run)

    def _make_lease_keeper(self) -> LeaseKeeper:
        return LeaseKeeper(
            self._broker, self.holder, self.config.lease_s, self._runner.stopping,
            self._on_generation, self._outage,
        )  # fmt: skip

    def _on_generation(self, queue: QueueState, *, lost: bool) -> None:
        """Publish the rules again, since the store may have lost them.

        `lost` is false at the first fetch; even then, the store may have lost them since the start.
        """
        self._queue_rules.publish_again(queue.name)
        if lost:
            self._control.announce_again()

    def _blocking_client(self) -> Client:
        if self._client is None:
            self._client = self.client_type(Broker(self.address), prefix=self.prefix)
            self._client.borrowed = True
        return self._client

    async def _close_blocking_client(self) -> None:
        if self._client is not None:
            self._client.borrowed = False
            self._client.close()
            self._client = None

    def _count_lost(self, count: int) -> None:
        self.lost_leases += count

    def _on_broken(self, error: Exception) -> None:
        """Stop the whole server because one of its parts crashed."""
        if isinstance(error, SchemaMismatch):
            log.error("%s; the server stops", error)
            self._mismatch = error
        else:
            log.error("a part of the server failed; the server stops", exc_info=error)
        self.broken = True
        self._stopping.set()

    async def stop(self) -> None:
        """Stop the server; tasks that are still running after `shutdown_timeout` are handed back.

        The steps, in order: fetch no more tasks; hand back tasks that have not started; wait for
        running tasks; cancel the remaining tasks and hand them back; settle all tasks in the store.
        A node of the store that does not reply adds at most a few seconds to `shutdown_timeout`.
        Leases are renewed until the last step is done. Every call of `stop`, and also `run`,
        returns only after the last step.
        """
        self._stopping.set()
        await server_parts.outside_handlers(self._stop_in_turn())

    async def abort(self) -> None:
        """End the server as a crash would, for tests: settle nothing and hand nothing back.

        The server's leases stay in the store. Handlers on the event loop are cancelled.
        """
        self._stopping.set()
        async with self._stop_once:
            await self._parts.pop().stop()  # the part that fetches tasks
            self._capacity.take_ready()
            self._capacity.gathering.take()
            self._runner.stopping.stop_all("lost")
            await self._fetcher.finish(0.0)
            self._parts = [
                part for part in self._parts if not isinstance(part, StopAction) or part.closes
            ]
            await self._stop()

    @property
    def idle(self) -> bool:
        """True if the server holds no task."""
        return not any(queue.held for queue in self._queues)

    async def _stop_in_turn(self) -> None:
        async with self._stop_once:
            await self._stop()

    async def _stop(self) -> None:
        if not self._parts:
            return
        failed: BaseException | None = None
        while self._parts:
            try:
                await self._parts.pop().stop()
            except (Exception, asyncio.CancelledError) as error:
                failed = failed or error
        log.info("server %s has stopped", self.id)
        if failed is not None:
            raise failed
