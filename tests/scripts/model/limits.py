"""Models limits: the use of each limit, the tasks that wait for it, and when it opens."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MOVES_MOST: Final = 500
ROUND_MOST: Final = 50
TYPE_MOVES_MOST: Final = 150
WRONG_CLOCK_US: Final = 10_000_000
"""How far ahead of now the next start of a limit may be before the clock counts as set back."""


@dataclass
class Use:
    """State of a limit during a call."""

    use: int = 0
    """Number of active tasks that hold the limit."""
    ready: int = 0
    """Number of pending tasks that hold the limit."""
    tat: int = 0
    closed: int = 0

    @property
    def text(self) -> str:
        return f"{self.use} {self.ready} {self.tat} {self.closed}"


@dataclass(frozen=True)
class Rate:
    """The rule of a limit, in the units of the model."""

    slots: float = math.inf
    interval: float = 0
    tolerance: float = 0

    @property
    def lateness(self) -> float:
        """How late a task may start without delaying the next starts, in microseconds."""
        return min(self.interval / 2, 50_000)


UNLIMITED: Final = Rate()
PAUSED: Final = Rate(slots=0)


def rate_of(text: str) -> Rate:
    slots, rate, per, burst = map(int, text.split()[:4])
    interval = per / rate if rate else 0
    return Rate(slots or math.inf, interval, max(0, burst - 1) * interval)


def entry(limit: str, tag: float, id: str, limits: Sequence[str]) -> bytes:
    """Return the entry of a waiter. Entries are sorted by limit, by tag, by whether the task has
    several limits, and by id."""
    [bits] = struct.unpack(">Q", struct.pack(">d", tag))
    bits = bits ^ (1 << 63) if bits < 1 << 63 else bits ^ (1 << 64) - 1
    return (
        limit.encode() + b"\0" + struct.pack(">Q", bits) + b"\0" * (len(limits) > 1) + id.encode()
    )


@dataclass
class Limits:
    """State of the limits of a queue."""

    rules: dict[str, str] = field(default_factory=dict)
    """Rules, by limit or name, as the store holds them."""
    stored: dict[str, Use] = field(default_factory=dict)
    pauses: dict[str, str] = field(default_factory=dict)
    """Stored pauses of types, by the limit `@<type>`."""
    openings: dict[str, int] = field(default_factory=dict)
    waiting: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """Limit and id of each waiter, by entry."""
    type_moves: int = TYPE_MOVES_MOST
    """How many more waiters for paused types this call may move."""
    _live: dict[str, Use] = field(default_factory=dict)
    _late: dict[str, float] = field(default_factory=dict)
    """How late this call opens each limit, in microseconds."""
    _touched: dict[str, None] = field(default_factory=dict)
    _capped: dict[str, bool] = field(default_factory=dict)

    def rate(self, limit: str) -> Rate:
        """Return the rule in force: an operator's rule for the limit or its name, else that of the
        program."""
        if limit.startswith("@"):
            return PAUSED if limit in self.pauses else UNLIMITED
        name = limit.partition(":")[0]
        for place in (f"!{limit}", f"!{name}", name):
            if place in self.rules:
                return rate_of(self.rules[place])
        return UNLIMITED

    def touch(self, limit: str) -> Use:
        self._touched[limit] = None
        if limit not in self._live:
            known = self.stored.get(limit, Use())
            self._live[limit] = Use(known.use, known.ready, known.tat, known.closed)
        return self._live[limit]

    def capped(self, now: int, limit: str) -> Use:
        """Return the use of a limit. If its TAT dates from a lower rate than the current one, cap
        the TAT."""
        use, rate = self.touch(limit), self.rate(limit)
        if rate.interval and not self._capped.get(limit):
            self._capped[limit] = True
            use.tat = min(use.tat, math.ceil(now + rate.interval + rate.tolerance))
        return use

    def open_late(self, now: int, limit: str) -> None:
        """Record how long ago the opening time of a limit passed."""
        self.touch(limit)
        self._late[limit] = min(now - self.openings[limit], self.rate(limit).lateness)

    def opens_at(self, now: int, limit: str) -> float:
        """Return the time at which a task may start if there is a slot and all ready tasks start
        first."""
        use, rate = self.capped(now, limit), self.rate(limit)
        if not rate.interval:
            return use.closed
        due = max(use.tat, now) + use.ready * rate.interval - rate.tolerance
        return max(use.closed, due)

    def is_full(self, limit: str) -> bool:
        use = self.touch(limit)
        return use.use + use.ready >= self.rate(limit).slots

    def is_open(self, now: int, limit: str) -> bool:
        return not self.is_full(limit) and self.opens_at(now, limit) <= now

    def waiters_of(self, limit: str) -> list[bytes]:
        return sorted(one for one, (at, _) in self.waiting.items() if at == limit)

    def first_waiter(self, limit: str) -> bytes | None:
        return next(iter(self.waiters_of(limit)), None)

    def refusing(self, now: int, limits: Sequence[str]) -> str | None:
        """Return the limit for which a task must wait instead of becoming pending, or None."""
        for limit in limits:
            self.touch(limit)
            if not self.is_open(now, limit) or self.first_waiter(limit) is not None:
                return limit
        return None

    def unstartable(self, now: int, limits: Sequence[str]) -> str | None:
        """Return the limit that keeps a pending task from being leased, or None."""
        for limit in limits:
            use = self._live.get(limit, self.stored.get(limit, Use()))
            rate = self.rate(limit)
            early = rate.interval > 0 and use.tat - rate.tolerance > now
            if use.use >= rate.slots or use.closed > now or early:
                return limit
        return None

    def start(self, now: int, limits: Iterable[str]) -> None:
        for limit in limits:
            use, rate = self.capped(now, limit), self.rate(limit)
            use.use, use.ready = use.use + 1, use.ready - 1
            if rate.interval:
                use.tat = math.ceil(max(use.tat, now - self._late.get(limit, 0)) + rate.interval)

    def refund(self, now: int, unstarted: Iterable[tuple[int, Iterable[str]]]) -> None:
        """Give back the starts of tasks that never began, minus the starts that the rate has
        regained since the oldest of their leases. `unstarted` holds the lease time and the limits
        of each task."""
        leases: dict[str, list[int]] = {}
        for leased_us, limits in unstarted:
            for limit in limits:
                leases.setdefault(limit, []).append(leased_us)
        for limit, times in leases.items():
            use = self.capped(now, limit)
            regained = max(0, now - min(times))
            amount = max(0, len(times) * self.rate(limit).interval - regained)
            use.tat = max(0, math.floor(use.tat - amount))

    def first_of_each(self, now: int, moves: int) -> list[tuple[str, bytes]]:
        """Return the first waiter of each open limit, or several waiters if the limit stands for a
        type."""
        firsts: list[tuple[str, bytes]] = []
        for limit in list(self._touched):
            room = min(moves, ROUND_MOST) - len(firsts)
            if room > 0 and self.is_open(now, limit):
                most = min(room, self.type_moves) if limit.startswith("@") else 1
                found = self.waiters_of(limit)[:most]
                self.type_moves -= len(found) if limit.startswith("@") else 0
                firsts += [(limit, first) for first in found]
        return firsts

    def save(self, now: int) -> bool:
        """At the end of a call, store the uses, and the opening time of each limit that has
        waiters. Return whether a limit opens before all others."""
        before, added = dict(self.openings), {}
        for limit in list(self._touched):
            use = self.capped(now, limit)
            waits = self.first_waiter(limit) is not None
            in_use = use.use + use.ready > 0 or max(use.tat, use.closed) > now
            if in_use or (waits and not limit.startswith("@")):
                self.stored[limit] = use
            else:
                self.stored.pop(limit, None)
            if waits and not self.is_full(limit):
                added[limit] = math.ceil(self.opens_at(now, limit))
            else:
                self.openings.pop(limit, None)
        sooner = min(added.values(), default=math.inf) < min(before.values(), default=math.inf)
        self.openings |= added
        self._live, self._touched, self._late, self.type_moves = {}, {}, {}, TYPE_MOVES_MOST
        self._capped = {}
        return sooner

    @property
    def is_touched(self) -> bool:
        return bool(self._touched)

    def correct(self, now: int) -> bool:
        """Cap the times that are later than their rule allows, e.g. because the clock was set back.

        Return whether any time was capped.
        """
        ahead = [limit for limit, use in self.stored.items() if use.tat - now > WRONG_CLOCK_US]
        wrong = False
        for limit in ahead:
            rate = self.rate(limit)
            latest = math.ceil(now + rate.interval + rate.tolerance)
            if rate.interval and latest < self.stored[limit].tat:
                self.capped(now, limit)
                wrong = True
        return wrong

    def sweep(self, now: int) -> int:
        """Delete unused limits; return their number."""
        gone = [
            limit
            for limit, use in self.stored.items()
            if use.use + use.ready == 0
            and max(use.tat, use.closed) <= now
            and self.first_waiter(limit) is None
        ]
        for limit in gone:
            del self.stored[limit]
        return len(gone)

    def change_rule(self, now: int, place: str, rule: str) -> bool:
        if self.rules.get(place, "") == rule:
            return False
        if rule:
            self.rules[place] = rule
        else:
            del self.rules[place]
        name = place.removeprefix("!")
        for limit, _ in self.waiting.values():
            if limit == name or limit.startswith(f"{name}:"):
                self.openings[limit] = now
        return True

    def open(self, now: int, limit: str) -> bool:
        use = self.stored.get(limit, Use())
        if use.closed <= now:
            return False
        use.closed = 0
        if self.first_waiter(limit) is not None:
            self.openings[limit] = now
        elif use.use + use.ready == 0 and use.tat <= now:
            del self.stored[limit]
        return True

    def pause_type(self, now: int, type: str, note: bytes) -> bool:
        limit = f"@{type}"
        paused = limit in self.pauses
        since = self.pauses.pop(limit).partition(" ")[0] if paused else now
        self.pauses[limit] = f"{since} {note.decode()}"
        return not paused

    def resume_type(self, now: int, type: str) -> bool:
        limit = f"@{type}"
        if self.pauses.pop(limit, None) is None:
            return False
        if self.first_waiter(limit) is not None:
            self.openings[limit] = now
        return True

    def contents(self) -> dict[str, dict[Any, Any]]:
        """Return the limits as the store holds them."""
        return {
            "limit_rules": self.rules
            | self.pauses
            | ({"@": "\0".join(limit[1:] for limit in self.pauses)} if self.pauses else {}),
            "limits": {limit: use.text for limit, use in self.stored.items()},
            "openings": dict(self.openings),
            "waiters": dict.fromkeys(self.waiting, 0),
        }
