"""Causes faults in workers, store and network, following a plan made from a seed."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import redis

from tests.chaos.evidence import Evidence, Trouble
from tests.chaos.fleet import Worker, send
from tests.chaos.proxy import Direction, Proxy
from tests.support.stores import Store

ERRORS: Final = (
    "LOADING the dataset", "MASTERDOWN link is down", "CLUSTERDOWN no slot", "BUSY with a script",
    "MISCONF cannot write", "NOREPLICAS not enough", "TRYAGAIN later", "READONLY replica",
    "OOM command not allowed when used memory > 'maxmemory'.", "UNKILLABLE script", "NOSCRIPT gone",
)  # fmt: skip

KINDS: Final = (
    "kill_child", "kill_child", "kill_all", "freeze", "freeze", "freeze", "terminate", "kill_store",
    "stand", "flush_scripts", "kill_clients", "kill_pubsub", "squeeze",
    "swallow", "cut", "delay", "hole", "reset", "half_close", "refuse", "errors", "errors",
)  # fmt: skip


class Step(NamedTuple):
    """A planned fault: its time, kind and duration, and a seed for all other choices."""

    at: float
    kind: str
    seconds: float
    seed: int


def plan(seed: int, seconds: float, lease: float) -> list[Step]:
    """Return the faults for a seed: every kind in random order, some of them overlapping."""
    chance = random.Random(f"plan {seed}")
    steps: list[Step] = []
    at = 0.0
    kinds: list[str] = []
    while True:
        at += chance.uniform(0.2, 0.9)
        if at > seconds:
            return steps
        if not kinds:
            kinds = chance.sample(KINDS, len(KINDS))
        kind = kinds.pop()
        lasts = chance.uniform(1.05, 1.7) * lease if kind == "freeze" else chance.uniform(0.2, 1.2)
        steps.append(Step(at, kind, lasts, chance.randrange(1 << 30)))


class Faults:
    """Causes the planned faults in a fleet, in its store, and in the proxies in front of the
    store."""

    def __init__(
        self,
        steps: list[Step],
        store: Store,
        proxies: dict[str, Proxy],
        start: Callable[[], Worker],
        workers: int,
        evidence: Evidence,
    ) -> None:
        self._steps, self._store, self._proxies = steps, store, proxies
        self._start = start
        self.workers = [start() for _ in range(workers)]
        self._evidence = evidence
        self._over = threading.Event()
        self._store_lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(workers)]
        self.done: dict[str, int] = {}

    def run(self) -> None:
        """Cause all faults of the plan, then remove them."""
        began = time.monotonic()
        under_way: list[Future[None]] = []
        with ThreadPoolExecutor(16) as threads:
            for step in self._steps:
                self._over.wait(max(0.0, began + step.at - time.monotonic()))
                under_way.append(threads.submit(self._do, step))
        for one in under_way:
            one.result()
        for proxy in self._proxies.values():
            proxy.heal()

    def _do(self, step: Step) -> None:
        self.done[step.kind] = self.done.get(step.kind, 0) + 1
        getattr(self, f"_{step.kind}")(random.Random(step.seed), step.seconds)

    @contextlib.contextmanager
    def _trouble(
        self, kind: str, *, pid: int | None = None, clients_only: bool = False
    ) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._evidence.troubles.append(
                Trouble(kind, begin, time.monotonic(), pid, clients_only)
            )

    def _wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    # Workers.

    @contextlib.contextmanager
    def _worker(self, chance: random.Random) -> Iterator[int]:
        """Pick a worker; no other fault affects it during the block."""
        at = chance.randrange(len(self.workers))
        with self._locks[at]:
            yield at

    def _kill_child(self, chance: random.Random, seconds: float) -> None:
        with self._worker(chance) as at:
            for pid in self.workers[at].children()[:1]:
                with self._trouble("kill", pid=pid):
                    send(pid, signal.SIGKILL)

    def _kill_all(self, chance: random.Random, seconds: float) -> None:
        with self._worker(chance) as at:
            begin = time.monotonic()
            for pid in self.workers[at].kill():
                self._evidence.troubles.append(Trouble("kill", begin, time.monotonic(), pid))
            self._wait(seconds)
            self.workers[at] = self._start()

    def _freeze(self, chance: random.Random, seconds: float) -> None:
        with self._worker(chance) as at:
            for pid in self.workers[at].children()[:1]:
                with self._trouble("freeze", pid=pid):
                    send(pid, signal.SIGSTOP)
                    self._wait(seconds)
                    send(pid, signal.SIGCONT)

    def _terminate(self, chance: random.Random, seconds: float) -> None:
        with self._worker(chance) as at, self._trouble("terminate"):
            leaving, self.workers[at] = self.workers[at], self._start()
            if chance.random() < 0.5:
                leaving.process.terminate()
                self._wait(min(seconds, 0.6))
            leaving.stop(timeout=30)

    # The store.

    def _kill_store(self, chance: random.Random, seconds: float) -> None:
        with self._store_lock, self._trouble("store killed"):
            self._store.kill()
            self._wait(seconds / 2)
            self._store.start()

    def _stand(self, chance: random.Random, seconds: float) -> None:
        with self._store_lock, self._trouble("store stands"):
            self._store.pause()
            self._wait(seconds)
            self._store.resume()

    def _storm(self, seconds: float, every: float, *command: str) -> None:
        ends = time.monotonic() + seconds
        with self._trouble(" ".join(command)), self._store.client(socket_timeout=1) as client:
            while time.monotonic() < ends:
                with contextlib.suppress(redis.exceptions.RedisError):
                    client.execute_command(*command)
                self._wait(every)

    def _flush_scripts(self, chance: random.Random, seconds: float) -> None:
        self._storm(2 * seconds, 0.02, "SCRIPT", "FLUSH", "SYNC")

    def _kill_clients(self, chance: random.Random, seconds: float) -> None:
        self._storm(seconds, 0.1, "CLIENT", "KILL", "TYPE", "normal")

    def _kill_pubsub(self, chance: random.Random, seconds: float) -> None:
        self._storm(seconds, 0.1, "CLIENT", "KILL", "TYPE", "pubsub")

    def _squeeze(self, chance: random.Random, seconds: float) -> None:
        """Let the store run out of memory; later, raise its limit again."""
        with (
            self._store_lock,
            self._trouble("squeeze"),
            self._store.client(socket_timeout=5) as client,
        ):
            client.config_set("maxmemory", max(1, client.info("memory")["used_memory"]))
            self._wait(seconds)
            client.config_set("maxmemory", 0)

    # The network.

    @contextlib.contextmanager
    def _network(self, kind: str, chance: random.Random) -> Iterator[Proxy]:
        name = chance.choice(sorted(self._proxies))
        with self._trouble(f"{kind} of {name}", clients_only=name == "clients"):
            yield self._proxies[name]

    def _turn(self, kind: str, chance: random.Random, seconds: float, **values: Any) -> None:
        """Set faults of the proxy in one or both directions; reset them after some seconds."""
        with self._network(kind, chance) as proxy:
            ways = chance.choice((("up",), ("down",), ("up", "down")))
            for way in ways:
                for name, value in values.items():
                    setattr(getattr(proxy, way), name, value)
            self._wait(seconds)
            for way in ways:
                for name in values:
                    setattr(getattr(proxy, way), name, getattr(Direction(), name))

    def _swallow(self, chance: random.Random, seconds: float) -> None:
        self._turn("swallow", chance, seconds / 2, swallow=chance.choice((0.02, 0.2)))

    def _cut(self, chance: random.Random, seconds: float) -> None:
        self._turn("cut", chance, seconds, cut=chance.choice((0.05, 0.3)))

    def _delay(self, chance: random.Random, seconds: float) -> None:
        self._turn("delay", chance, 2 * seconds, delay=chance.uniform(0, 0.1), jitter=0.1)

    def _hole(self, chance: random.Random, seconds: float) -> None:
        self._turn("hole", chance, seconds, hole=True)

    def _reset(self, chance: random.Random, seconds: float) -> None:
        ends = time.monotonic() + seconds
        with self._network("reset", chance) as proxy:
            while time.monotonic() < ends:
                proxy.reset()
                self._wait(0.1)

    def _half_close(self, chance: random.Random, seconds: float) -> None:
        with self._network("half close", chance) as proxy:
            proxy.half_close()

    def _refuse(self, chance: random.Random, seconds: float) -> None:
        with self._network("refuse", chance) as proxy:
            proxy.refuse()
            proxy.reset()
            self._wait(seconds)
            proxy.refuse(False)

    def _errors(self, chance: random.Random, seconds: float) -> None:
        with self._network("errors", chance) as proxy:
            share = chance.choice((0.1, 0.5, 1.0))
            answer = proxy.answer(chance.choice(ERRORS), share=share)
            self._wait(seconds)
            proxy.withdraw(answer)
