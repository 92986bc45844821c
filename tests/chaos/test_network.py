"""Clients and servers survive one network fault at a time, and error replies from the store."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import pytest

from qsync.broker import redis_clients, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.script import load
from qsync.client import AsyncClient
from qsync.errors import ConfigError, QsyncError, QueueFull
from qsync.keys import GlobalKeys
from qsync.mux import Mux
from qsync.task import Task, TaskInfo
from tests.chaos.doing import counter, damages, enqueue, pass_time, wait_empty
from tests.chaos.flow import Flow
from tests.chaos.proxy import Proxy
from tests.guarantees.conftest import Launch, Measured
from tests.scripts.test_scripts import calls
from tests.support.processes import History, percentile, task
from tests.support.server import Bench, bench, until
from tests.support.stores import Store, wait_until

ERRORS = (
    "LOADING Valkey is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down",
    "CLUSTERDOWN The cluster is down",
    "BUSY Valkey is busy running a script",
    "MISCONF Errors writing to the AOF file",
    "NOREPLICAS Not enough good replicas to write",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "READONLY You can't write against a read only replica.",
    "UNKILLABLE Sorry the script already executed write commands",
    "NOSCRIPT No matching script.",
    "ERR Error running script: Script killed by user with SCRIPT KILL.",
    "ERR max number of clients reached",
)
"""Transient errors, after which the same call succeeds later."""

REFUSALS: dict[str, type[QsyncError]] = {
    "OOM command not allowed when used memory > 'maxmemory'.": QueueFull,
    "NOPERM User x has no permissions to run the 'evalsha' command": ConfigError,
    "NOAUTH Authentication required.": ConfigError,
    "WRONGPASS invalid username-password pair or user is disabled.": ConfigError,
    "ERR wrong number of arguments for 'evalsha' command": QsyncError,
}
"""Errors that reach the caller, with the exception for each."""


def digests() -> list[tuple[str, bytes]]:
    """Return each script's name and digests. A script has two digests if it has variants with and
    without `allow-oom`."""
    return [
        (file.name.removesuffix(".lua"), load(file.name[:-4], allow_oom=allow_oom).sha.encode())
        for file in (files("qsync.broker") / "lua").iterdir()
        if file.name.endswith(".lua")
        for allow_oom in (None, False, True)
    ]


async def exercise(b: Bench, mark: str) -> None:
    """Use every operation of the queue at least once."""
    kept = {"retention": 60.0}
    good = [Task("good", n, **kept) for n in range(10)] + [Task("good", n) for n in range(10)]
    handles = await b.client.enqueue_many(good)
    flaky = await b.client.enqueue(Task("flaky", retry=1, retry_delay=0.01, **kept))
    bad = await b.client.enqueue(Task("bad", retry=0, id=f"bad-{mark}"))
    unique = await b.client.enqueue(Task("good", 7, unique=True, unique_key="one", **kept))
    for n, handle in enumerate(handles[:10]):
        assert await handle.result(timeout=20) == n
    assert await flaky.result(timeout=20) == 2
    assert await unique.result(timeout=20) == 7
    await b.reaches(bad.id, "dead")
    hanging = await b.client.enqueue(Task("hang", **kept))
    await b.reaches(hanging.id, "active")
    assert await hanging.cancel()
    for handle in handles[10:]:
        await b.gone(handle.id)


def handlers(runs: Counter[str]) -> Mux:
    mux = Mux()

    @mux.handle("good")
    async def good(task: TaskInfo) -> int:
        runs[task.id] += 1
        assert (task.attempt, task.crashes) == (1, 0)
        return task.value(int)

    @mux.handle("flaky")
    async def flaky(task: TaskInfo) -> int:
        if task.attempt == 1:
            raise ValueError("not yet")
        return task.attempt

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("no good")

    @mux.handle("hang")
    async def hang(task: TaskInfo) -> None:
        await asyncio.Event().wait()

    return mux


async def live_through(error: str, store: Store, prefix: str, given: Counter[str]) -> None:
    """Use a queue whose store answers the first call of each script and some later calls with the
    error."""
    runs: Counter[str] = Counter()
    with Proxy(store.port) as proxy:
        async with (
            bench(proxy.url, prefix) as b,
            b.server(handlers(runs), lease=9.0, sweep=0.1, shutdown_timeout=0.2) as server,
        ):
            answers = [
                (script, proxy.answer(error, count=1, only=sha)) for script, sha in digests()
            ]
            proxy.answer(error, share=0.05, only=b"EVALSHA")
            await exercise(b, error.split()[0])
            for script, answer in answers:
                given[script] += answer.given
            proxy.heal()
            assert not server.broken
            assert server.lost_leases == 0
    assert set(runs.values()) == {1}


@pytest.mark.faults(24)
@pytest.mark.guarantee(5, 7)
def test_every_script_survives_every_store_error(
    durable: Store, prefix: str, measured: Measured
) -> None:
    given: Counter[str] = Counter()
    prefixes = {error: f"{prefix}-{n}" for n, error in enumerate(ERRORS)}

    async def main() -> None:
        works = [live_through(error, durable, own, given) for error, own in prefixes.items()]
        await asyncio.gather(*works)

    asyncio.run(main())
    measured("errors that the proxy answered, by script", dict(+given))
    for script in ("enqueue", "fetch", "complete", "retry", "kill", "cancel", "get_tasks"):
        assert given[script] >= len(ERRORS), script
    for own in prefixes.values():
        found = {name: counter(durable, own, name) for name in ("crashed", "dead", "failed")}
        assert found == {"crashed": 0, "dead": 1, "failed": 2}
        assert damages(durable, own) == []


class Erring:
    """A proxy that answers the first call of each script with an error."""

    def __init__(self, store: Store, error: str) -> None:
        self.error = error
        self._proxy = Proxy(store.port)

    def __enter__(self) -> Erring:
        self._proxy.__enter__()
        self.address = redis_clients.parse(self._proxy.url)
        self._answers = [
            self._proxy.answer(self.error, count=1, only=call.script.sha.encode())
            for call in self.calls()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.__exit__()

    def calls(self) -> list[Call[Any]]:
        """Return one call of each script."""
        return [call for call, _ in calls().values()]

    def not_given(self) -> list[str]:
        """Return the names of the scripts for which the proxy did not answer exactly one call with
        the error."""
        found = zip(self.calls(), self._answers, strict=True)
        return [call.script.name for call, answer in found if answer.given != 1]


@pytest.mark.faults(24, 31, 32)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_every_script_is_repeated_after_a_transient_error(durable: Store, colour: str) -> None:
    async def await_all(erring: Erring) -> None:
        broker = AsyncBroker(erring.address)
        await asyncio.gather(*[broker.run(call) for call in erring.calls()])
        await broker.aclose()

    def block_on_all(erring: Erring) -> None:
        # Each call has its own broker, because a broker that has seen bounds sends the flow
        # variants.
        for call in erring.calls():
            with contextlib.closing(Broker(erring.address)) as broker:
                broker.run(call)

    def live(error: str) -> list[str]:
        with Erring(durable, error) as erring:
            block_on_all(erring) if colour == "blocking" else asyncio.run(await_all(erring))
            return erring.not_given()

    with ThreadPoolExecutor(len(ERRORS)) as threads:
        assert dict(zip(ERRORS, threads.map(live, ERRORS), strict=True)) == {
            error: [] for error in ERRORS
        }


@pytest.mark.faults(24, 26)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.split()[0])
def test_permanent_error_is_raised_at_once(durable: Store, error: str) -> None:
    async def main(erring: Erring) -> list[Any]:
        broker = AsyncBroker(erring.address)
        answers = await asyncio.gather(
            *[broker.run(call) for call in erring.calls()], return_exceptions=True
        )
        await broker.aclose()
        return answers

    with Erring(durable, error) as erring:
        answers = asyncio.run(main(erring))
        assert {type(answer) for answer in answers} == {REFUSALS[error]}
        assert erring.not_given() == []
        with contextlib.closing(Broker(redis_clients.parse(durable.url))) as broker:
            for call in erring.calls():
                broker.run(call)


@pytest.mark.faults(37)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_cancelled_caller_leaves_no_reply_to_others(
    durable: Store, proxy: Proxy, prefix: str, measured: Measured, count: int
) -> None:
    """Calls over a slow network are cancelled at random moments. All other calls get their own
    replies."""
    chance = random.Random(count)
    proxy.down.jitter = 0.004
    outcomes: Counter[str] = Counter()

    async def main() -> None:
        broker = AsyncBroker(redis_clients.parse(proxy.url), connections=8)
        async with AsyncClient(broker, prefix=prefix) as client:

            async def ask(number: int) -> None:
                if number % 3:
                    assert await broker.ask("ECHO", f"call {number}") == b"call %d" % number
                else:
                    handle = await client.enqueue(Task("t", number, id=f"t{number}"))
                    assert handle.id == f"t{number}"
                    assert (await handle.info()).id == f"t{number}"

            async def caller(numbers: range) -> None:
                for number in numbers:
                    work = asyncio.create_task(ask(number))
                    if chance.random() < 0.7:
                        await asyncio.wait({work}, timeout=chance.uniform(0, 0.006))
                        work.cancel()
                    await asyncio.wait({work}, timeout=20)
                    assert work.done()
                    if work.cancelled():
                        outcomes["cancelled"] += 1
                    else:
                        work.result()
                        outcomes["answered"] += 1

            await asyncio.gather(*[caller(range(n, count, 30)) for n in range(30)])

    asyncio.run(main())
    measured("calls given up", outcomes["cancelled"])
    measured("calls answered", outcomes["answered"])
    assert outcomes.total() == count
    assert min(outcomes["cancelled"], outcomes["answered"]) > count // 8


@pytest.mark.faults(34, 35, 36)
@pytest.mark.guarantee(1, 5)
@pytest.mark.parametrize("seconds", [2.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_lost_replies_repeat_nothing(
    durable: Store,
    proxy: Proxy,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    seconds: float,
) -> None:
    """The store executes each command, but its reply is often lost, whichever call or process sent
    the command."""
    lease = 20.0
    server = launch(proxy.url, lease=lease, concurrency=20)
    before = proxy.accepted
    with (
        Flow(proxy.url, prefix, callers=10) as flow,
        Flow(proxy.url, prefix, blocking=True) as blocking,
    ):
        proxy.down.cut = 0.25
        pass_time(seconds)
        proxy.heal()
    ids = flow.ids | blocking.ids
    wait_until(lambda: ids <= history.ids("end"), timeout=20)
    wait_empty(durable, prefix)
    measured("replies lost: number", proxy.accepted - before)
    measured("replies lost: tasks", len(ids))
    assert proxy.accepted - before > 10 * seconds
    assert flow.errors + blocking.errors == []
    assert Counter(event.id for event in history.of("start")) == Counter(ids)
    assert counter(durable, prefix, "enqueued") == len(ids) == counter(durable, prefix, "completed")
    assert "was lost" not in server.log()
    assert damages(durable, prefix) == []
    # If the reply to a fetch is lost, the repeated fetch returns its tasks before their leases
    # expire.
    accepted = {id: at for one in (flow, blocking) for at, id in one.accepted}
    waits = [event.at - accepted[event.id] for event in history.of("start")]
    measured("replies lost: longest wait of a task for its start, in seconds", max(waits))
    assert max(waits) <= lease / 3


@pytest.mark.faults(38)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize(
    "holes", [1, pytest.param(8, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
def test_after_a_black_hole_tasks_are_fetched_again(
    durable: Store,
    proxy: Proxy,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    holes: int,
) -> None:
    """Connections that were in the black hole stay silent forever and report no error."""
    chance = random.Random(holes)
    server = launch(proxy.url, lease=3.0)
    delays = []
    for at in range(holes):
        enqueue(durable.url, prefix, [task(sleep=0.2)])
        history.wait("start", 2 * at + 1)
        proxy.up.hole = proxy.down.hole = True
        pass_time(chance.uniform(0.5, 4.0 if holes > 1 else 2.0))
        proxy.heal()
        over_at = time.monotonic()
        [id] = enqueue(durable.url, prefix, [task()])
        [started] = history.wait("start", 1, id=id, timeout=30)
        delays.append(started.at - over_at)
        wait_empty(durable, prefix)
    measured("black hole: longest time until a new task started, in seconds", max(delays))
    assert max(delays) <= 10
    assert server.running


@pytest.mark.faults(38)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("block", [0.5, pytest.param(5.0, marks=pytest.mark.slow)])
def test_silent_connection_is_dropped_soon(
    durable: Store,
    proxy: Proxy,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    block: float,
) -> None:
    """An idle server, which only waits on its connections, detects that they are dead and closes
    them."""
    server = launch(proxy.url, lease=60.0, sweep=block)
    wait_until(lambda: proxy.open >= 3)
    pass_time(2 * block)
    before = server.sockets()
    began = time.monotonic()
    proxy.up.hole = proxy.down.hole = True
    wait_until(lambda: server.sockets() != before, timeout=block + 10, every=0.05)
    found_out = time.monotonic() - began
    measured(
        f"black hole: seconds until a server whose reads block for {block} s noticed it", found_out
    )
    assert found_out <= block + 5
    pass_time(2 * block)
    proxy.heal()
    over_at = time.monotonic()
    [id] = enqueue(durable.url, prefix, [task()])
    [started] = history.wait("start", 1, id=id, timeout=20)
    measured("short black hole: seconds until a new task started", started.at - over_at)
    assert started.at - over_at <= 10


@pytest.mark.faults(39)
@pytest.mark.guarantee(7)
def test_link_that_is_reset_repeatedly_causes_no_busy_loop(
    durable: Store, proxy: Proxy, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    server = launch(proxy.url, lease=10.0, sweep=5.0)
    rates, shares = {}, {}
    for how in ("every 100 ms", "at once"):
        attempts, cpu_s, began = proxy.accepted, server.cpu_s(), time.monotonic()
        proxy.up.cut = float(how == "at once")
        while time.monotonic() < began + 2.0:
            proxy.reset()
            pass_time(0.1)
        lasted = time.monotonic() - began
        rates[how] = (proxy.accepted - attempts) / lasted
        shares[how] = (server.cpu_s() - cpu_s) / lasted
    proxy.heal()
    back_at = time.monotonic()
    [id] = enqueue(durable.url, prefix, [task()])
    [started] = history.wait("start", 1, id=id)
    for how in rates:
        measured(f"connections reset {how}: connections opened per second", rates[how])
        measured(f"connections reset {how}: share of a core that the server used", shares[how])
    measured("connections reset: seconds until a new task started", started.at - back_at)
    assert max(rates.values()) <= 40  # the server opens four connections per reset
    assert max(shares.values()) < 0.2
    assert started.at - back_at <= 10


@pytest.mark.faults(39)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connection_resets_are_recognised_on_every_loop(
    proxy: Proxy, prefix: str, measured: Measured, loop: str
) -> None:
    """A connection may be reset between its check and the write, which each event loop reports
    differently.
    """
    factory = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    call = registry_ops.register(GlobalKeys(prefix), ["default"])
    outcomes: Counter[str] = Counter()

    async def caller(broker: AsyncBroker, over: asyncio.Event) -> None:
        while not over.is_set():
            [reply] = await broker.run_many([call])
            outcomes["answered" if isinstance(reply, int) else type(reply).__name__] += 1
            await asyncio.sleep(0.002)

    async def main() -> None:
        over, broker = asyncio.Event(), AsyncBroker(redis_clients.parse(proxy.url))
        callers = [asyncio.create_task(caller(broker, over)) for _ in range(20)]
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            await asyncio.to_thread(proxy.reset)
            await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*callers)
        await broker.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    measured(f"connections reset on {loop}: outcomes", dict(outcomes))
    assert outcomes.keys() == {"answered", "StoreUnavailable"}


@pytest.mark.faults(41)
@pytest.mark.guarantee(5)
def test_slow_network_only_slows_tasks_down(
    durable: Store, proxy: Proxy, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """With round trips of 100 to 500 ms, tasks take longer but none is lost or repeated."""
    for way in (proxy.up, proxy.down):
        way.delay, way.jitter = 0.05, 0.2
    launch(proxy.url, lease=9.0, concurrency=50)
    began = time.monotonic()
    with Flow(proxy.url, prefix, callers=20) as flow:
        pass_time(2.0)
    wait_until(lambda: flow.ids <= history.ids("end"))
    measured("slow network: tasks enqueued per second", len(flow.ids) / (time.monotonic() - began))
    wait_empty(durable, prefix)
    assert flow.errors == []
    assert set(Counter(event.id for event in history.of("start")).values()) == {1}
    assert {event.crashes for event in history.of("start")} == {0}
    assert damages(durable, prefix) == []


@pytest.mark.faults(42)
@pytest.mark.guarantee(7)
def test_lost_hints_lose_no_task(
    durable: Store, proxy: Proxy, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """Servers notice requests and callers notice results even if the messages about them are
    lost."""
    lease = 1.5
    launch(proxy.url, lease=lease)
    news = proxy.answer("NOPERM no permissions to access a channel", only=b"SSUBSCRIBE")
    orders = proxy.answer("NOPERM no permissions to access a key", only=f"{prefix}:inbox:".encode())
    pass_time(0.1)
    proxy.reset()  # end calls that are already blocked on the inbox

    async def main() -> tuple[float, float]:
        async with bench(proxy.url, prefix) as b:
            quick = await b.client.enqueue(task(sleep=0.3, retention=60))
            assert await quick.result(timeout=20)
            [ended] = history.wait("end", 1, id=quick.id)
            told = time.monotonic() - ended.at
            long = await b.client.enqueue(task(sleep=600.0, retention=60))
            await b.reaches(long.id, "active")
            await asyncio.to_thread(history.wait, "start", 1, id=long.id)
            asked_at = time.monotonic()
            assert await long.cancel()
            [cancelled] = await asyncio.to_thread(history.wait, "cancelled", 1, id=long.id)
            return told, cancelled.at - asked_at

    told, cancelled = asyncio.run(main())
    measured("messages lost: seconds until a result arrived", told)
    measured("messages lost: seconds until a cancellation took effect", cancelled)
    assert min(news.given, orders.given) > 0
    assert told <= 5.5
    assert cancelled <= lease / 3 + 0.5


@pytest.mark.faults(42)
@pytest.mark.guarantee(7)
async def test_tasks_complete_while_subscriptions_are_closed(durable: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("slow")
    async def slow(task: TaskInfo) -> int:
        await asyncio.sleep(0.2)
        return task.value(int)

    async with bench(durable.url, prefix) as b, b.server(mux):
        over = asyncio.Event()

        async def storm() -> None:
            with durable.client() as client:
                while not over.is_set():
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    await asyncio.sleep(0.05)

        storming = asyncio.create_task(storm())
        for n in range(5):
            handle = await b.client.enqueue(Task("slow", n, retention=60))
            assert await handle.result(timeout=10) == n
        over.set()
        await storming


CLIENTS, SERVERS = 200, 20


@pytest.mark.faults(43)
@pytest.mark.guarantee(7)
async def test_many_clients_reconnect_at_once_and_stay_quiet(
    durable: Store, prefix: str, measured: Measured
) -> None:
    mux, started = Mux(), {}

    @mux.handle("note")
    async def note(task: TaskInfo) -> None:
        started[task.id] = time.monotonic()

    def commands() -> int:
        stats = durable.command("INFO", "commandstats")
        return sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]
            for name in ("evalsha", "eval", "blpop")
        )

    brokers = [AsyncBroker(redis_clients.parse(durable.url), patience=30) for _ in range(CLIENTS)]
    clients = [AsyncClient(broker, prefix=prefix) for broker in brokers]
    async with bench(durable.url, prefix) as b:
        servers = [b.server(mux, lease=30.0, sweep=5.0) for _ in range(SERVERS)]
        await asyncio.gather(*[server.start() for server in servers])
        await asyncio.gather(*[client.enqueue(Task("note")) for client in clients])
        await until(lambda: len(started) == CLIENTS)
        await asyncio.to_thread(durable.kill)
        enqueues = [asyncio.create_task(client.enqueue(Task("note"))) for client in clients]
        await asyncio.sleep(1.0)
        assert not any(one.done() for one in enqueues)
        await asyncio.to_thread(durable.start)
        back_at = time.monotonic()
        handles = await asyncio.gather(*enqueues)
        await until(lambda: len(started) == 2 * CLIENTS)
        delays = [started[handle.id] - back_at for handle in handles]
        measured("200 clients reconnect: 99th percentile of the delay of a task, in seconds",
                 percentile(delays, 0.99))  # fmt: skip
        assert percentile(delays, 0.99) <= 5
        before, since = commands(), time.monotonic()
        assert before > 0
        await asyncio.sleep(2.0)
        rate = (commands() - before) / (time.monotonic() - since) / SERVERS
        measured("idle server: commands per second", rate)
        assert rate <= 2
        assert not any(server.broken for server in servers)
        for closing in [*servers, *clients]:
            await (closing.aclose() if isinstance(closing, AsyncClient) else closing.stop())
