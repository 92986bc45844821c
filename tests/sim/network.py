"""The way to the store and back. Calls are made on a real Valkey, each at one instant.

A request that is on its way arrives whether or not its sender still waits, or lives. What can
befall it is drawn by the seed: lost before or after, late, twice, refused, cut off in the middle.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

import redis
import redis.exceptions as failures
from redis._parsers.base import BaseParser

from qsync.broker import script
from qsync.broker.listen import pack
from tests.sim.ledger import Ledger
from tests.sim.loop import SimLoop
from tests.sim.process import WALL, Proc

Replies = list[Any]
Deliver = Callable[[Replies], None]
Command = tuple[Any, ...]

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
"""What a store may answer in the place of making a call (F24)."""

NAMES: Final = tuple(
    sorted(
        path.name.removesuffix(".lua")
        for path in (files("qsync.broker") / "lua").iterdir()
        if path.name.endswith(".lua")
    )
)

SILENCE_S: Final = 5.0
"""How long somebody waits at most for an answer that does not come."""

NEAR: Final = (0.0001, 0.0005, 0.002)
FAR: Final = (0.01, 0.05, 0.1)
"""Seconds that one way takes, near the store and far from it."""

UNHEARD: Final = ("describe", "progress")
"""Scripts whose arguments differ between processes, or have no order: no part of a history."""


@cache
def _timed(name: str) -> bool:
    """Whether the first argument of a script is the time, as its header says."""
    return re.search(r"^-- ARGV\[1\] now ", script.read(f"{name}.lua"), re.MULTILINE) is not None


def error_of(code: str) -> Exception:
    """The exception that redis-py makes of an error reply."""
    error: Exception = BaseParser.parse_error(code)
    return error


@dataclass(frozen=True, slots=True)
class Known:
    """A script as the network knows it."""

    name: str
    timed: bool
    """Its first argument is the time."""
    frugal: bool
    """It is run though memory is short."""


@dataclass(eq=False, slots=True)
class Blocked:
    """A BLPOP that waits in the store."""

    process: Proc
    keys: Sequence[str]
    deliver: Callable[[Any], None]
    open: bool = True


@dataclass(eq=False, slots=True)
class Listener:
    """A subscription to the channel of ended tasks."""

    process: Proc
    channel: str
    hear: Callable[[str], None]


@dataclass(slots=True)
class Tally:
    """What befell how many calls."""

    calls: int = 0
    fates: dict[str, int] = field(default_factory=dict)


class Network:
    """All connections of a history, and the store at their end."""

    def __init__(
        self, loop: SimLoop, store: redis.Redis, ledger: Ledger, seed: str, *, lease_s: float
    ) -> None:
        self.loop = loop
        self.ledger = ledger
        self.away_until = 0.0
        """The store answers nobody until then."""
        self.latencies = NEAR
        self.tally = Tally()
        self.events: list[tuple[Any, ...]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._random = random.Random(seed)
        self._world = Context()
        self._lease_s = lease_s
        self._store = store
        pool: Any = store.connection_pool
        self._connection = pool.get_connection()
        self._blocked: dict[str, list[Blocked]] = {}
        self._listeners: list[Listener] = []
        self._scripts: dict[str, Known] = {}
        texts: dict[str, str] = {}
        for name in NAMES:
            timed = _timed(name)
            for allow_oom in (None, True, False):
                made = script.load(name, allow_oom=allow_oom)
                frugal = "allow-oom" in made.text or "no-writes" in made.text
                known = Known(name, timed, frugal)
                texts[made.sha] = made.text
                self._scripts[made.sha] = self._scripts[made.text] = known
        here = self.plain("SCRIPT", "EXISTS", *texts)
        missing = [text for text, found in zip(texts.values(), here, strict=True) if not found]
        self.read([("SCRIPT", "LOAD", text) for text in missing])
        self.info: dict[str, Any] = dict(store.info())

    def close(self) -> None:
        pool: Any = self._store.connection_pool
        pool.release(self._connection)

    @property
    def now_us(self) -> int:
        """The store's time."""
        return round((WALL + self.loop.now) * 1_000_000)

    @property
    def digest(self) -> str:
        """Of all that happened at the store, so that two histories can be compared."""
        return self._digest.hexdigest()

    def note(self, *event: Any) -> None:
        """Keep an event of the history."""
        entry = (round(self.loop.now, 6), *event)
        self.events.append(entry)
        self._digest.update(repr(entry).encode())

    # Trips

    def send(self, process: Proc, commands: Sequence[Command], deliver: Deliver) -> None:
        """Send commands; `deliver` gets one reply or error each, or is never called."""
        self.tally.calls += len(commands)
        fate = self._fate(process, len(commands))
        if fate != "well":
            self.tally.fates[fate] = self.tally.fates.get(fate, 0) + 1
            process.trouble()
        there, back = self._latency(), self._latency()

        def arrive(answered: bool, count: int | None = None) -> None:
            if self._unreachable(process):
                if answered:
                    broken = failures.ConnectionError("connection refused")
                    self._after(back, deliver, [broken] * len(commands))
                return
            replies = self.execute(process, commands[:count])
            replies += [failures.ConnectionError("cut off")] * (len(commands) - len(replies))
            if answered:
                self._after(back, deliver, replies)

        lost = [failures.ConnectionError("reset by peer")] * len(commands)
        match fate:
            case "well":
                self._after(there, arrive, True)
            case "before":
                self._maybe_silent(process, there + back, deliver, lost)
            case "after":
                self._after(there, arrive, False)
                self._maybe_silent(process, there + back, deliver, lost)
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

    def _fate(self, process: Proc, count: int) -> str:
        link = process.link
        if self._unreachable(process):
            process.trouble()
            return self._random.choice(("well", "before"))
        draw = self._random.random()
        for fate in ("before", "after", "late", "twice", "refused", "cut"):
            draw -= getattr(link, fate)
            if draw < 0:
                return fate if fate != "cut" or count > 1 else "before"
        return "well"

    def _unreachable(self, process: Proc) -> bool:
        return process.link.away or self.loop.now < self.away_until

    def _latency(self) -> float:
        return self._random.choice(self.latencies)

    def _maybe_silent(
        self, process: Proc, seconds: float, deliver: Deliver, replies: Replies
    ) -> None:
        """The connection breaks, or nothing is heard any more until the sender gives up."""
        if self._random.random() < 0.7:
            self._after(seconds, deliver, replies)
        else:
            process.trouble(SILENCE_S)

    def _after(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_later(seconds, function, *args, context=self._world)

    def _refuse(
        self, process: Proc, commands: Sequence[Command], back: float, deliver: Deliver
    ) -> None:
        """One command, or all of them, meet an error of the store."""
        code = self._random.choice(CODES)
        all_of_them = self._random.random() < 0.7
        which = self._random.randrange(len(commands))
        replies: Replies = []
        for at, command in enumerate(commands):
            spared = code.startswith("OOM") and self._scripts[command[1]].frugal
            if (all_of_them or at == which) and not spared:
                error = error_of(code)
                if isinstance(error, failures.ConnectionError):  # redis-py gives up on the rest
                    replies += [error] * (len(commands) - at)
                    break
                replies.append(error)
            else:
                replies += self.execute(process, [command])
        self._after(back, deliver, replies)

    # The store

    def execute(self, process: Proc | None, commands: Iterable[Command]) -> Replies:
        """Make calls now. Whoever blocks on a list that gets an element, gets it at once."""
        sent: list[Command] = []
        pops: list[str | None] = []
        for command in commands:
            known = self._scripts[command[1]]
            first = 3 + command[2]
            if known.timed:
                assert command[first] == "", f"{known.name}: the time is given"
                command = (*command[:first], self.now_us, *command[first + 1 :])
            sent.append(command)
            pops.append(None)
            for key in command[3:first]:
                if len(self._blocked.get(key, ())) > pops.count(key):
                    sent.append(("LPOP", key))
                    pops.append(key)
        replies = self._round_trip(sent)
        answers: Replies = []
        for command, key, reply in zip(sent, pops, replies, strict=True):
            if key is None:
                self._seen(process, command, reply)
                answers.append(reply)
            elif reply is not None:
                self._serve(key, reply)
        return answers

    def _round_trip(self, commands: Sequence[Command]) -> Replies:
        if not commands:
            return []
        connection = self._connection
        connection.send_packed_command([b"".join(pack(commands))], check_health=False)
        replies: Replies = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except failures.ResponseError as error:
                replies.append(error)
        return replies

    def plain(self, *command: Any) -> Any:
        """One command of the world's own."""
        return self.read([command])[0]

    def read(self, commands: Sequence[Command]) -> Replies:
        """Commands of the world's own, that change nothing."""
        replies = self._round_trip(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _seen(self, process: Proc | None, command: Command, reply: Any) -> None:
        known = self._scripts[command[1]]
        first = 3 + command[2]
        args = command[first + known.timed :]
        name = process.name if process else "world"
        if known.name in UNHEARD:
            self.note(name, known.name)
        else:
            self.note(name, known.name, command[3], args, reply)
        if isinstance(reply, Exception):
            return
        queue = command[3].partition("}")[0].partition(":")[2]
        for id in self.ledger.observe(known.name, queue, self.now_us, args, reply):
            self._publish(command[3].partition("}")[0] + "}:done", id)

    # What waits

    def block(
        self, process: Proc, keys: Sequence[str], seconds: float, deliver: Callable[[Any], None]
    ) -> Blocked:
        """BLPOP: `deliver` gets (key, element), None in the end, or an error, or is not called."""
        blocked = Blocked(process, keys, deliver)
        fate = self._fate(process, 1)
        broken = failures.ConnectionError("reset by peer")
        if fate in ("before", "cut", "refused") or self._unreachable(process):
            self._after(self._latency(), deliver, broken)
            return blocked
        if fate == "after":  # it is not known to the store that nobody listens any more
            blocked.deliver = lambda reply: None
            self._after(self._random.uniform(0, seconds), deliver, broken)
        self._after(self._latency(), self._arrived, blocked, seconds)
        return blocked

    def _arrived(self, blocked: Blocked, seconds: float) -> None:
        for key in blocked.keys:
            element = self.plain("LPOP", key)
            if element is not None:
                blocked.open = False
                self.note(blocked.process.name, "took", key)
                self._after(self._latency(), blocked.deliver, (key, element))
                return
        for key in blocked.keys:
            self._blocked.setdefault(key, []).append(blocked)
        self._after(seconds, self._expire, blocked)

    def _serve(self, key: str, element: bytes) -> None:
        if not self._blocked[key]:  # it has just been served from another of its lists
            self.plain("LPUSH", key, element)
            return
        blocked = self._blocked[key][0]
        self._leave(blocked)
        self.note(blocked.process.name, "woken", key)
        self._after(self._latency(), blocked.deliver, (key, element))

    def _expire(self, blocked: Blocked) -> None:
        if blocked.open:
            self._leave(blocked)
            self._after(self._latency(), blocked.deliver, None)

    def _leave(self, blocked: Blocked) -> None:
        blocked.open = False
        for key in blocked.keys:
            waiting = self._blocked.get(key, [])
            if blocked in waiting:
                waiting.remove(blocked)

    def hang_up(self, blocked: Blocked) -> None:
        """The connection is closed; the store learns of it a little later."""
        self._after(self._latency(), self._leave, blocked)

    def died(self, process: Proc, *, at_once: bool) -> None:
        """The connections of a dead process are closed, or else nobody closes them."""
        self._listeners = [one for one in self._listeners if one.process is not process]
        if at_once:
            for waiting in list(self._blocked.values()):
                for blocked in [one for one in waiting if one.process is process]:
                    self._leave(blocked)

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
