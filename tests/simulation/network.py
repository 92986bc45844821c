"""The simulated network between processes and the store.

A request in flight arrives even if its sender has given up or died. The seed chooses the fault of
each request: the request or its reply is lost, or the request arrives late or twice, is refused, or
is cut off in the middle.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import redis.exceptions as failures

from tests.simulation.ledger import Ledger
from tests.simulation.limits import as_texts
from tests.simulation.loop import SimLoop
from tests.simulation.process import Proc
from tests.simulation.store import (
    Blocked,
    Command,
    Replies,
    SimStore,
    broken,
    error_of,
    refused,
)  # fmt: skip

Deliver = Callable[[Replies], None]

CODES: Final = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down",
    "CLUSTERDOWN The cluster is down",
    "BUSY Redis is busy running a script.",
    "MISCONF Redis is configured to save RDB snapshots",
    "NOREPLICAS Not enough good replicas to write.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNKILLABLE Sorry the script already executed write commands",
    "ERR max number of clients reached",
    "ERR Error running script: Script killed by user with SCRIPT KILL.",
    "NOSCRIPT No matching script.",
    "OOM command not allowed when used memory > 'maxmemory'.",
)
"""Errors that a store may return instead of executing a call."""

SILENCE_S: Final = 5.0
"""Longest wait for a lost reply, in seconds."""

RESUME_S: Final = 2.0
"""Longest time that a server may take to fetch after the store has become available again, in
seconds."""

NEAR: Final = (0.0001, 0.0005, 0.002)
FAR: Final = (0.01, 0.05, 0.1)
"""Possible one-way latencies, near the store and far from it, in seconds."""

UNWATCHED: Final = frozenset(("server_heartbeat", "set_server_info", "register"))
"""Scripts with which servers register. No task depends on these scripts and no server reads their
replies, so they run together with the next call."""

UNHEARD: Final = UNWATCHED | {"progress"}
"""Scripts whose arguments differ between runs or have no fixed order; the history leaves them
out."""


@dataclass(eq=False, slots=True)
class Listener:
    """A subscription to the channel for ended tasks."""

    process: Proc
    channel: str
    hear: Callable[[str | None], None]
    """Called with an id, or with None when the connection is lost."""


@dataclass(slots=True)
class NetworkCounts:
    """Number of calls affected, by fault."""

    calls: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of error replies, by code and script."""


class Network:
    """All connections of a history, and the store that they connect to."""

    def __init__(
        self, loop: SimLoop, store: redis.Redis, ledger: Ledger, seed: str, *, lease_s: float
    ) -> None:
        self.loop = loop
        self.ledger = ledger
        self.away_until = 0.0
        """Time until which the store is unreachable."""
        self.down_until = 0.0
        """Time until which the store is not running, so that connections are refused
        immediately."""
        self.loading_until = 0.0
        self.fetched_at = 0.0
        """Time at which a server last fetched."""
        self.resumes: list[float] = []
        """Time until a server fetched, each time that the store became available again, in
        seconds."""
        self.latencies = NEAR
        self.codes: Sequence[str] = CODES
        self.counts = NetworkCounts()
        self.events: list[tuple[Any, ...]] = []
        self._random = random.Random(seed)
        self._world = Context()
        self._lease_s = lease_s
        self._listeners: list[Listener] = []
        self.store = SimStore(loop, store, ledger, self._seen, self._woken)

    @property
    def digest(self) -> str:
        """Digest of all events, to compare two histories."""
        return hashlib.blake2b(repr(self.events).encode(), digest_size=16).hexdigest()

    def note(self, *event: Any) -> None:
        """Record an event of the history."""
        self.events.append((round(self.loop.now, 6), *event))

    # Trips

    def send(self, process: Proc, commands: Sequence[Command], deliver: Deliver) -> None:
        """Send commands. `deliver` is called with one reply or error per command, or is never
        called."""
        self.counts.calls += len(commands)
        fate = self._fate(process, len(commands))
        if fate != "well":
            self.counts.fates[fate] += 1
            process.trouble()
        there, back = self._latency(), self._latency()

        def arrive(answered: bool, count: int | None = None) -> None:
            replies = self._arrive(process, commands, count)
            if answered:
                self._after(back, deliver, replies)

        match fate:
            case "well":
                self._after(there, arrive, True)
            case "before":
                self._maybe_silent(process, there + back, deliver, len(commands))
            case "after":
                self._after(there, arrive, False)
                self._maybe_silent(process, there + back, deliver, len(commands))
            case "late":
                there += self._random.uniform(0, 2.5 * self._lease_s)
                back += self._random.uniform(0, 1.6 * self._lease_s)
                process.trouble(min(there + back, SILENCE_S))
                self._after(there, arrive, True)
            case "twice":
                self._after(there, arrive, True)
                again = self._random.choice((0.001, 0.5, 2 * self._lease_s))
                self._after(there + self._random.uniform(0, again), arrive, False)
            case "refused":
                self._after(there, self._refuse, process, commands, back, deliver)
            case "cut":
                self._after(there, arrive, True, self._random.randrange(len(commands)))

    def _arrive(self, process: Proc, commands: Sequence[Command], count: int | None) -> Replies:
        """Run the first `count` commands, or all if it is None; return the replies."""
        if self.unreachable(process):
            process.trouble()
            return [refused()] * len(commands)
        if self.loop.now < self.loading_until:
            process.trouble()
            return [error_of(CODES[0])] * len(commands)
        if all(self.store.scripts[command[1]].name in UNWATCHED for command in commands):
            self.store.execute_later(commands)
            return [1] * len(commands)
        replies = self.store.execute(process, commands[:count])
        if count is None:
            return replies
        return replies + [failures.ConnectionError("cut off")] * (len(commands) - len(replies))

    def _fate(self, process: Proc, count: int) -> str:
        link = process.link
        if self.loop.now < self.down_until:
            return "well"  # the connection is refused
        if self.unreachable(process):
            process.trouble()
            return self._random.choice(("well", "before"))
        draw = self._random.random()
        for fate, chance in link.fates:
            draw -= chance
            if draw < 0:
                process.mishaps.append(self.loop.now)
                return fate if fate != "cut" or count > 1 else "before"
        return "well"

    def unreachable(self, process: Proc) -> bool:
        """Return whether this process cannot reach the store now."""
        return process.link.away or self.loop.now < max(self.away_until, self.down_until)

    def _latency(self) -> float:
        return self._random.choice(self.latencies)

    def _maybe_silent(self, process: Proc, seconds: float, deliver: Deliver, count: int) -> None:
        """Break the connection, or send no reply until the sender gives up."""
        if self._random.random() < 0.7:
            self._after(seconds, deliver, [broken()] * count)
        else:
            process.mishaps.append(self.loop.now + SILENCE_S)
            process.trouble(SILENCE_S)

    def _after(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_later(seconds, function, *args, context=self._world)

    def _refuse(
        self, process: Proc, commands: Sequence[Command], back: float, deliver: Deliver
    ) -> None:
        """Answer one command, or all of them, with an error reply."""
        code = self._random.choice(self.codes)
        all_of_them = self._random.random() < 0.7
        which = self._random.randrange(len(commands))
        replies: Replies = []
        for at, command in enumerate(commands):
            known = self.store.scripts[command[1]]
            spared = code.startswith("OOM") and known.frugal
            if (all_of_them or at == which) and not spared:
                self.counts.refusals[code, known.name] += 1
                error = error_of(code)
                if isinstance(error, failures.ConnectionError):  # redis-py stops reading
                    replies += [error] * (len(commands) - at)
                    break
                replies.append(error)
            else:
                replies += self._arrive(process, [command], None)
        self._after(back, deliver, replies)

    def _seen(self, process: Proc | None, command: Command, reply: Any) -> None:
        known = self.store.scripts[command[1]]
        if known.name in UNHEARD:
            return
        first = 3 + command[2]
        args = command[first + known.timed :]
        name = process.name if process else "world"
        if isinstance(reply, Exception):
            self.note(name, known.name, command[3], args, repr(reply))
            return
        self.note(name, known.name, command[3], args, reply)
        if known.name == "fetch":
            if self.fetched_at < self.loading_until:
                self.resumes.append(self.loop.now - self.loading_until)
            self.fetched_at = self.loop.now
        queue = command[3].partition("}")[0].partition(":")[2]
        for id in self.ledger.observe(known.name, queue, self.store.now_us, args, reply):
            self._publish(command[3].partition("}")[0] + "}:done", id)
        if known.name in ("fetch", "hand_back") and self.ledger.limits.times:
            states = self.store.plain("HGETALL", command[3].partition("}")[0] + "}:limits")
            self.ledger.limits.check_rates(queue, as_texts(states))
        # The fetch may have recovered tasks, or moved tasks that crashed too often to `dead`.
        if known.name == "fetch" and (reply[3] or reply[4]):
            owners = self.store.plain("HGETALL", command[3].partition("}")[0] + "}:owner")
            self.ledger.see_owners(queue, dict(zip(owners[::2], owners[1::2], strict=True)))

    # Waiting callers

    def block(
        self, process: Proc, keys: Sequence[str], seconds: float, deliver: Callable[[Any], None]
    ) -> Blocked:
        """Run BLPOP. `deliver` is called with (key, element), with None at the timeout, or with an
        error, or is never called."""
        blocked = Blocked(process, keys, deliver)
        fate = self._fate(process, 1)
        if fate in ("before", "cut", "refused"):
            self._after(self._latency(), deliver, broken())
            return blocked
        if fate == "after":  # the store does not notice that the caller has left
            blocked.deliver = lambda reply: None
            self._after(self._random.uniform(0, seconds), deliver, broken())
        self._after(self._latency(), self._blocks, blocked, seconds)
        return blocked

    def _blocks(self, blocked: Blocked, seconds: float) -> None:
        if self.unreachable(blocked.process) or self.loop.now < self.loading_until:
            self._after(self._latency(), blocked.deliver, refused())
        elif (found := self.store.block(blocked)) is not None:
            self.note(blocked.process.name, "took", found[0])
            self._after(self._latency(), blocked.deliver, found)
        else:
            self._after(seconds, self._expire, blocked)

    def _woken(self, blocked: Blocked, key: str, element: bytes) -> None:
        self.note(blocked.process.name, "woken", key)
        self._after(self._latency(), blocked.deliver, (key, element))

    def _expire(self, blocked: Blocked) -> None:
        if blocked.open:
            self.store.leave(blocked)
            self._after(self._latency(), blocked.deliver, None)

    def hang_up(self, blocked: Blocked) -> None:
        """Close the connection; the store learns of it a little later."""
        self._after(self._latency(), self.store.leave, blocked)

    def died(self, process: Proc, *, at_once: bool) -> None:
        """Close the connections of a dead process, or leave them open as if its machine were
        lost."""
        self._listeners = [one for one in self._listeners if one.process is not process]
        if at_once:
            for blocked in self.store.waiting():
                if blocked.process is process:
                    self.store.leave(blocked)

    def break_connections(self) -> None:
        """Break all connections, so that callers that wait on them notice."""
        for blocked in self.store.waiting():
            self.store.leave(blocked)
            self._after(self._latency(), blocked.deliver, broken())
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._after(self._latency(), listener.hear, None)

    def restart(self, down_s: float, loading_s: float) -> None:
        """Kill the store and restart it with its data but without its scripts."""
        self.break_connections()
        self.store.forget_scripts()
        self.down_until = max(self.down_until, self.loop.now + down_s)
        self.loading_until = max(self.loading_until, self.down_until + loading_s)

    def heal(self) -> None:
        """Make the store reachable again."""
        self.away_until = self.down_until = self.loading_until = 0.0

    def listen(self, listener: Listener) -> None:
        """Subscribe."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Unsubscribe."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _publish(self, channel: str, id: str) -> None:
        for listener in self._listeners:
            if listener.channel == channel and self._random.random() < 0.8:
                self._after(self._latency(), listener.hear, id)
