"""The store of a history: a real Valkey in virtual time, and the callers that wait for its lists.
Each call runs at one instant of virtual time. The store may restart, lose its last writes or be
flushed, and its clock may jump.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import hiredis
import redis
import redis.exceptions as failures
from redis._parsers.base import BaseParser

from qsync.broker import script
from qsync.broker.protocol import pack_commands
from tests.simulation.ledger import Ledger
from tests.simulation.loop import SimLoop
from tests.simulation.process import WALL, Proc

Replies = list[Any]
Command = tuple[Any, ...]
Seen = Callable[[Proc | None, Command, Any], None]
Wake = Callable[["Blocked", str, bytes], None]

NAMES: Final = tuple(
    sorted(
        path.name.removesuffix(".lua")
        for path in (files("qsync.broker") / "lua").iterdir()
        if path.name.endswith(".lua")
    )
)


@dataclass(frozen=True, slots=True)
class Known:
    """A script that the store knows."""

    name: str
    text: str
    timed: bool
    """True if the first argument of the script is the time."""
    frugal: bool
    """True if the script runs even when the store is out of memory."""


@cache
def _timed(name: str) -> bool:
    """Return whether the header of a script says that its first argument is the time."""
    return re.search(r"^-- ARGV\[1\] now ", script.read(f"{name}.lua"), re.MULTILINE) is not None


@cache
def _known(name: str, text: str) -> Known:
    return Known(name, text, _timed(name), "allow-oom" in text or "no-writes" in text)


def _scripts() -> dict[str, Known]:
    """Return all scripts by digest."""
    found = {}
    for name in NAMES:
        for allow_oom in (None, True, False):
            for flow in (False, True):
                made = script.load(name, allow_oom=allow_oom, flow=flow)
                found[made.sha] = _known(name, made.text)
    return found


def error_of(code: str) -> Exception:
    """Return the exception that redis-py raises for an error reply."""
    parse: Callable[[str], Exception] = BaseParser.parse_error
    return parse(code)


class Line:
    """A minimal and fast connection to the real store, for one round trip at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader(replyError=error_of)

    def trip(self, commands: Sequence[Command]) -> Replies:
        """Send commands; return the replies, including errors."""
        self._socket.sendall(b"".join(pack_commands(commands)))
        reader = self._reader
        replies: Replies = []
        while len(replies) < len(commands):
            reply = reader.gets()
            if reply is False:  # the reply is incomplete, since no script replies with false
                data = self._socket.recv(1 << 14)
                assert data, "the real store is gone"
                reader.feed(data)
            else:
                replies.append(reply)
        return replies


_lines: dict[str, Line] = {}


def line_to(store: redis.Redis) -> Line:
    """Return this process's connection to a store on a Unix socket."""
    pool: Any = store.connection_pool
    path: str = pool.connection_kwargs["path"]
    if path not in _lines:
        _lines[path] = Line(path)
    return _lines[path]


@dataclass(eq=False, slots=True)
class Blocked:
    """A BLPOP that waits in the store."""

    process: Proc
    keys: Sequence[str]
    deliver: Callable[[Any], None]
    open: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the data in the store, and of what the ledger knows about it."""

    values: tuple[tuple[bytes, int, bytes], ...]
    """Key, TTL in milliseconds (or 0), and output of DUMP for each key."""
    ledger: Any


class SimStore:
    """Executes calls, and serves callers that wait for an element of a list."""

    def __init__(
        self, loop: SimLoop, store: redis.Redis, ledger: Ledger, seen: Seen, wake: Wake
    ) -> None:
        self.loop = loop
        self.skew_us = 0
        """Sum of the store's clock jumps, in microseconds."""
        self.latest_us = 0
        """Latest time that the store's clock has shown."""
        self.jumps: list[tuple[float, int]] = []
        """Times and sizes of the store's clock jumps."""
        self._line = line_to(store)
        self._ledger = ledger
        self._seen, self._wake = seen, wake
        self._blocked: dict[str, list[Blocked]] = {}
        self._later: list[Command] = []
        self._filled: set[str] = set()
        """Lists that may contain an element."""
        by_sha = _scripts()
        self.scripts = by_sha | {known.text: known for known in by_sha.values()}
        here = self.plain("SCRIPT", "EXISTS", *by_sha)
        missing = [known for known, found in zip(by_sha.values(), here, strict=True) if not found]
        self.read([("SCRIPT", "LOAD", known.text) for known in missing])

    # The store's clock

    @property
    def now_us(self) -> int:
        """The time of the store's clock, in microseconds since the epoch."""
        now_us = round((WALL + self.loop.now) * 1_000_000) + self.skew_us
        self.latest_us = max(self.latest_us, now_us)
        return now_us

    def jump(self, seconds: float) -> None:
        """Let the store's clock jump, as after an NTP step or a failover to a replica with another
        clock."""
        _ = self.now_us  # updates `latest_us`
        self.skew_us += round(seconds * 1_000_000)
        self.jumps.append((self.loop.now, round(seconds * 1_000_000)))

    def jumped_us(self, since: float = 0.0) -> tuple[int, int]:
        """Return how far the store's clock has jumped forward and back since this time."""
        jumps = [by for at, by in self.jumps if at >= since]
        return sum(by for by in jumps if by > 0), -sum(by for by in jumps if by < 0)

    # Calls

    def execute(self, process: Proc | None, commands: Iterable[Command]) -> Replies:
        """Execute calls now. If a call adds an element to a list, a caller that blocks on the list
        gets the element at the same instant."""
        sent: list[Command] = []
        roles: list[str | None] = []
        for command in map(self._timed, commands):
            sent.append(command)
            roles.append(None)
            for key in command[3 : 3 + command[2]]:
                if key.endswith(":wake"):
                    waits = len(self._blocked.get(key, ())) > roles.count(key)
                    sent.append(("LPOP", key) if waits else ("EXISTS", key))
                    roles.append(key)
        replies = self._trip(sent)
        answers: Replies = []
        for command, key, reply in zip(sent, roles, replies, strict=True):
            if key is None:
                self._seen(process, command, reply)
                answers.append(reply)
            elif command[0] == "EXISTS":
                (self._filled.add if reply else self._filled.discard)(key)
            elif reply is not None:
                self._serve(key, reply)
        return answers

    def execute_later(self, commands: Iterable[Command]) -> None:
        """Execute these calls together with the next calls, since no caller waits for their
        replies."""
        self._later += map(self._timed, commands)

    def _timed(self, command: Command) -> Command:
        known, first = self.scripts[command[1]], 3 + command[2]
        if not known.timed:
            return command
        assert command[first] == "", f"{known.name}: the caller must leave the time empty"
        return (*command[:first], self.now_us, *command[first + 1 :])

    def _trip(self, commands: Sequence[Command]) -> Replies:
        late, self._later = self._later, []
        replies = self._line.trip([*late, *commands])
        again = []
        for command, reply in zip(late, replies, strict=False):
            if isinstance(reply, failures.NoScriptError):
                again.append(("EVAL", self.scripts[command[1]].text, *command[2:]))
            elif isinstance(reply, Exception):
                raise reply
        if again:
            self.read(again)
        return replies[len(late) :]

    def plain(self, *command: Any) -> Any:
        """Run a command that is not part of the history; return its reply."""
        return self.read([command])[0]

    def read(self, commands: Sequence[Command]) -> Replies:
        """Run commands that are not part of the history; return their replies."""
        replies = self._line.trip(commands) if commands else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    # Waiting callers

    def block(self, blocked: Blocked) -> tuple[str, bytes] | None:
        """Return an element of one of the lists; if there is none, return None and let the caller
        wait."""
        for key in blocked.keys:
            element = self.plain("LPOP", key) if key in self._filled else None
            self._filled.discard(key)
            if element is not None:
                blocked.open = False
                return key, element
        for key in blocked.keys:
            self._blocked.setdefault(key, []).append(blocked)
        return None

    def leave(self, blocked: Blocked) -> None:
        """Stop waiting."""
        blocked.open = False
        for key in blocked.keys:
            waiting = self._blocked.get(key, [])
            if blocked in waiting:
                waiting.remove(blocked)

    def waiting(self) -> list[Blocked]:
        """Return the waiting callers, each once."""
        return list(dict.fromkeys(one for waiting in self._blocked.values() for one in waiting))

    def _serve(self, key: str, element: bytes) -> None:
        if not self._blocked[key]:  # the caller has just been served from another list
            self.plain("LPUSH", key, element)
            self._filled.add(key)
            return
        blocked = self._blocked[key][0]
        self.leave(blocked)
        self._wake(blocked, key, element)

    # Losses of data

    def forget_scripts(self) -> None:
        """Run SCRIPT FLUSH."""
        self.plain("SCRIPT", "FLUSH", "SYNC")

    def flush(self) -> None:
        """Delete all data."""
        self.read([("UNLINK", key) for key in self.plain("KEYS", "*")])
        self._filled.clear()
        self._ledger.lose(None)

    def snapshot(self) -> Snapshot:
        """Return a copy of the current data."""
        keys = sorted(self.plain("KEYS", "*"))
        found = self.read([(word, key) for key in keys for word in ("PTTL", "DUMP")])
        pairs = zip(keys, found[::2], found[1::2], strict=True)
        values = tuple((key, max(ttl, 0), value) for key, ttl, value in pairs)
        return Snapshot(values, self._ledger.copy())

    def roll_back(self, snapshot: Snapshot) -> None:
        """Restore a snapshot."""
        gone: list[Command] = [("UNLINK", key) for key in self.plain("KEYS", "*")]
        back = [("RESTORE", key, ttl, value) for key, ttl, value in snapshot.values]
        self.read([*gone, *back])
        self._filled = {key.decode() for key, _, _ in snapshot.values if key.endswith(b":wake")}
        self._ledger.lose(snapshot.ledger)


def refused() -> Exception:
    """Return the error of a refused connection."""
    return failures.ConnectionError("connection refused")


def broken() -> Exception:
    """Return the error of a lost connection."""
    return failures.ConnectionError("reset by peer")
