"""The limits in histories: their rules, the limits that tasks have, and checks that no limit is
exceeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qsync.limit import LimitRule
from qsync.message import decode_message
from tests.simulation.entries import Entry

LIMITED: Final = (["slot:a"], ["slot:b"], ["slot:a", "rate"], ["rate"], ["slot:b", "rate", "none"])
"""Limits that tasks have; `none` has no rule."""

RULES: Final = {
    "slot": LimitRule(concurrency=2),
    "rate": LimitRule(rate=20, per_us=1_000_000, burst=2),
}
"""Rules that the program sets and servers publish."""

ROUNDED_US: Final = 1_000
"""Upper bound on the rounding errors in the times of a limit during a history, in microseconds."""


def interval_us(limit: str) -> float:
    """Return the time between two starts, in microseconds, or 0 if the limit has no rate."""
    rule = RULES.get(limit.partition(":")[0])
    return rule.per_us / rule.rate if rule is not None and rule.rate and rule.per_us else 0.0


@dataclass
class LimitBook:
    """Tracks upper bounds on the stored times of rates, the paused types, and the order of waiting
    tasks."""

    find: Callable[[str], None]
    times: dict[tuple[str, str], float] = field(default_factory=dict)
    """Upper bound on the stored time of each rate, by queue and limit, in microseconds."""
    unknown: set[str] = field(default_factory=set)
    """Queues whose times must be read from the store, since it has lost data."""
    paused: set[tuple[str, str]] = field(default_factory=set)
    """Queue and name of each paused type."""
    orderly: bool = True
    """True until a type is paused or data is lost. Until then, tasks of the same priority must be
    leased in order."""

    def lose(self, queues: Iterable[str]) -> None:
        """Record that the store has lost data of these queues."""
        self.unknown |= set(queues)
        self.paused.clear()
        self.orderly = False

    def see_lease(self, entry: Entry, message: bytes, entries: Iterable[Entry], now: int) -> None:
        """Record that a fetch leased a task. Repeated fetches do not count."""
        if self.orderly and entry.in_order and not entry.deliveries:
            self._check_order(entry, entries)
        if self.paused and (entry.queue, decode_message(message).type) in self.paused:
            self.find(f"{entry.id} was fetched although its type is paused")
        for limit in entry.limits:
            before = self.times.get((entry.queue, limit), 0.0)
            self.times[entry.queue, limit] = max(before, now) + interval_us(limit)

    def _check_order(self, entry: Entry, entries: Iterable[Entry]) -> None:
        """Check that no task that has waited longer is still waiting when this task gets its first
        lease."""
        for other in entries:
            waits = other.in_order and not other.deliveries and other.phase == "waiting"
            same = (other.queue, other.priority) == (entry.queue, entry.priority)
            if waits and same and other.place < entry.place:
                self.find(f"{entry.id} was fetched before {other.id}, which has waited longer")
                return

    def check_slots(self, entry: Entry, entries: Iterable[Entry], now: int) -> None:
        """Check that no more tasks have valid leases than each limit of this task allows."""
        for limit in entry.limits:
            rule = RULES.get(limit.partition(":")[0])
            held = [
                other.id
                for other in entries
                if other.queue == entry.queue and limit in other.limits and other.lease is not None
                and other.lease.expires_us > now
            ]  # fmt: skip
            if rule is not None and rule.concurrency is not None and len(held) > rule.concurrency:
                self.find(f"{len(held)} tasks hold {limit}: {held}")

    def refund(self, queue: str, now: int, unstarted: Iterable[tuple[int, Iterable[str]]]) -> None:
        """Record that tasks were handed back before they started; `unstarted` holds the lease time
        and the limits of each.

        Starts that a rate has regained since the oldest of these leases may already have been used.
        """
        leases: dict[str, list[int]] = {}
        for leased_us, limits in unstarted:
            for limit in limits:
                leases.setdefault(limit, []).append(leased_us)
        for limit, times in leases.items():
            amount = len(times) * interval_us(limit) - max(0, now - min(times))
            before = self.times.get((queue, limit), 0.0)
            self.times[queue, limit] = max(0.0, before - max(0.0, amount))

    def check_rates(self, queue: str, states: Mapping[str, str]) -> None:
        """Check that no rate in the store counts a start that did not happen."""
        for limit, text in states.items():
            stored = float(text.split()[2])
            if queue in self.unknown:
                self.times[queue, limit] = stored
            elif stored > self.times.get((queue, limit), 0.0) + ROUNDED_US:
                late_ms = (stored - self.times.get((queue, limit), 0.0)) / 1000
                self.find(
                    f"the rate of {limit} in {queue} counts {late_ms} ms for starts "
                    "that never happened"
                )
        self.unknown.discard(queue)

    def see_pause(self, queue: str, type: str, note: bytes) -> None:
        """Record that a type was paused or resumed."""
        self.orderly = False
        (self.paused.add if note else self.paused.discard)((queue, type))


def as_texts(pairs: Iterable[Any]) -> dict[str, str]:
    """Return the fields of a hash from the reply to HGETALL, as strings."""
    flat = [each.decode(errors="replace") for each in pairs]  # entries may be invalid UTF-8
    return dict(zip(flat[::2], flat[1::2], strict=True))
