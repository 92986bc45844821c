"""Invariants that hold after every call, checked on dumps of the store without the model."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from qsync.broker.views import Counts
from qsync.keys import QUEUE_KEYS, GlobalKeys, QueueKeys
from qsync.state import STORED, TRANSITIONS, UNFINISHED, TaskState
from tests.support.counters import with_counted
from tests.support.queue_driver import STATES, Dump

VERBS: Final[dict[str, tuple[str, ...]]] = {
    # Transitions of a task in one call, in order.
    "enqueue": ("drop", "enqueue", "replace", "open"),
    "tick": ("drop", "enqueue", "replace", "open"),
    "tick_schedules": ("drop", "enqueue", "replace", "open"),
    "fetch": ("promote", "lapse", "open", "fetch", "park", "sweep", "trim", "open"),
    "complete": ("complete", "open"),
    "retry": ("retry", "open"),
    "kill": ("kill", "open"),
    "hand_back": ("hand_back", "open"),
    "stopped": ("cancel", "open"),
    "cancel": ("cancel", "open"),
    "run": ("run", "open"),
    "reschedule": (),
    "edit": ("run", "open"),
    "delete": ("delete", "open"),
    "put_limit_rules": (),
    "set_limit": (),
    "open_limit": (),
    "put_program_bounds": (),
    "set_bounds": (),
    "pause_type": (),
    "resume_type": (),
    "purge": ("purge", "delete", "open"),
}


REPLACE: Final = ("run", "edit", "enqueue", "tick", "tick_schedules")
"""Operations after which a task may start earlier than it was scheduled."""


def check(name: str, now: int, before: Dump, after: Dump) -> None:
    """Assert the invariants after a call to any operation."""
    assert set(after) <= set(QUEUE_KEYS), f"unknown keys: {set(after) - set(QUEUE_KEYS)}"
    homes = [id for state in STATES for id in after.get(state, {})]
    assert len(homes) == len(set(homes)), "a task is in one state"
    assert set(homes) == set(after.get("tasks", {})), "each task has exactly one message"
    assert set(after.get("owner", {})) == set(after.get("active", {})), "active tasks are owned"
    assert len(after.get("wake", [])) <= 1, "one wake at most"
    assert after["meta"][b"schema"] in (b"1", b"2"), "the layout is recorded"
    if after.get("holds") or after.get("limited") or b"@" in after.get("limit_rules", {}):
        assert after["meta"][b"schema"] == b"2", "limits require layout 2"
    check_limits(after)
    assert set(after.get("successors", {})) <= set(after.get("active", {})), (
        "a task with a successor is active"
    )
    check_locks(after)
    for id in {*homes, *before.get("tasks", {})}:
        was, score = place(before, id)
        became, _ = place(after, id)
        assert became in reachable(was, VERBS.get(name, ())), f"{was} to {became} by {name}"
        if was in ("scheduled", "retry") and became in ("pending", "active"):
            assert score <= now or name in REPLACE, "started before its time"


def check_other_keys(client: Any, queue: QueueKeys, keys: GlobalKeys) -> None:
    """Assert that each key outside the queue is structural or has a TTL, then delete these keys."""
    structural = {queue.key(name) for name in QUEUE_KEYS}
    for raw in client.scan_iter():
        key = raw.decode()
        if key not in structural:
            lasts = client.pttl(key) == -1
            assert not lasts or key in (keys.queues, keys.servers), f"{key} has no TTL"
            client.unlink(key)


def check_counts(dump: Dump, counts: Counts) -> None:
    """Assert that the counts match the contents and that the daily counters add up to the
    totals."""
    states = dict(counts.states)
    # Completed and cancelled tasks are in one set.
    states[TaskState.COMPLETED] += states.pop(TaskState.CANCELLED)
    for name, count in {**states, **counts.others}.items():
        assert count == len(dump.get(name, {})), f"{name}: {count} are counted"
    total = Counter[str]()
    for name, count in counts.stats.items():
        counter, _, day = name.partition(":")
        total[counter] += -count if day else count
    assert not any(total.values()), f"the days do not add up to the totals: {counts.stats}"


def place(dump: Dump, id: bytes) -> tuple[TaskState | None, float]:
    for state in STORED:
        if id in dump.get(state, {}):
            return state, dump[state][id]
    return None, 0


def reachable(state: TaskState | None, verbs: Sequence[str]) -> set[TaskState | None]:
    """Return the states that a task can reach if each verb is applied at most once, in the order of
    the verbs."""
    found = {state}
    for verb in verbs:
        found |= {to for at in found for to in TRANSITIONS.get((at, verb), ())}
    return found


def check_locks(dump: Dump) -> None:
    unique = dump.get("unique", {})
    for field, value in unique.items():
        if field.startswith(b"@"):
            id = field[1:]
            assert place(dump, id)[0] in UNFINISHED, "a lock outlives its task"
            assert unique[b"=" + value].partition(b":")[2] == id, "a lock expired before its task"


def check_limits(dump: Dump) -> None:
    """Assert that limits count exactly the tasks that hold them, and that no waiter is missing."""
    counts: dict[bytes, list[int]] = {}
    for id, text in dump.get("holds", {}).items():
        for limit in text.split(b"\0"):
            of = counts.setdefault(limit, [0, 0])
            of[0] += id in dump.get("active", {})
            of[1] += id in dump.get("pending", {})
    stored = {limit: numbers(text) for limit, text in dump.get("limits", {}).items()}
    for limit in counts.keys() | stored.keys():
        use, ready = map(int, stored.get(limit, (b"0", b"0"))[:2])
        assert [use, ready] == counts.get(limit, [0, 0]), f"{limit!r}: counted {use}, {ready}"
    waiting = Counter(entry.partition(b"\0")[2][8:].lstrip(b"\0") for entry in whole_entries(dump))
    assert waiting == Counter(dump.get("limited", {}).keys()), "each limited task has one entry"


def numbers(state: bytes) -> list[bytes]:
    """Return the four numbers in the state of a limit."""
    return state.partition(b"\0")[0].split()[:4]


def items_of(state: bytes) -> list[bytes]:
    """Return the waiters in the state of a limit, where each is stored after its length."""
    items, rest = [], state.partition(b"\0")[2]
    while rest:
        items.append(rest[1 : rest[0] + 1])
        rest = rest[rest[0] + 1 :]
    return items


def whole_entries(dump: Dump) -> list[bytes]:
    """Return all waiters as entries with an id. An item without an id stands for the only task with
    its tag.

    Assert that the first waiters for a limit are in the state of the limit, and the others in the
    key `waiters`.
    """
    by_tag: dict[float, list[bytes]] = {}
    for id, tag in dump.get("limited", {}).items():
        by_tag.setdefault(tag, []).append(id)
    listed = {of: items_of(state) for of, state in dump.get("limits", {}).items()}
    others: dict[bytes, list[bytes]] = {}
    markers = set()
    for entry in dump.get("waiters", {}):
        limit, _, item = entry.partition(b"\0")
        if not item:
            markers.add(limit)
        elif not item[8:].strip(b"\0"):
            of_tag = by_tag.get(tag_of(item[:8]), [])
            assert len(of_tag) == 1, f"{entry!r} must match one task: {of_tag}"
            others.setdefault(limit, []).append(item + of_tag[0])
        else:
            others.setdefault(limit, []).append(item)
    assert markers == {limit for limit, items in listed.items() if items}, "markers of limits"
    for limit, items in listed.items():
        rest = others.get(limit, [])
        more = dump["limits"][limit].partition(b"\0")[0].endswith(b" +")
        assert more or not rest, f"{limit!r}: {rest} are in other entries"
        assert items == sorted(items) and len(items) <= 16, f"{limit!r}: {items}"
        assert not rest or (items and items[-1] < min(rest)), f"{limit!r}: {items} before {rest}"
    every = [*listed.items(), *others.items()]
    return [limit + b"\0" + item for limit, items in every for item in items]


def tag_of(ordered: bytes) -> float:
    """Return the order tag in the entry of a waiter. The bytes of a tag sort like its number."""
    bits = int.from_bytes(ordered)
    bits ^= 1 << 63 if bits >> 63 else (1 << 64) - 1
    [tag] = struct.unpack(">d", bits.to_bytes(8))
    return float(tag)


def comparable(dump: Dump) -> Dump:
    """Return the data that the model covers."""
    meta = {
        f: v
        for f, v in dump.get("meta", {}).items()
        if f in (b"v", b"paused", b"bounds", b"!bounds", b"bytes")
        or f.startswith(b"virtual:")
        or (f, v) == (b"schema", b"2")
    }
    counted = with_counted(dump.get("stats", {}), dump.get("meta", {}))
    stats = {f: v for f, v in counted.items() if b":" not in f}
    rest = {name: held for name, held in dump.items() if name not in ("meta", "stats", "fetches")}
    if "waiters" in rest:
        rest["waiters"] = dict.fromkeys(whole_entries(dump), 0)
    if "limits" in rest:
        rest["limits"] = {of: b" ".join(numbers(text)) for of, text in rest["limits"].items()}
    return rest | ({"meta": meta} if meta else {}) | ({"stats": stats} if stats else {})


def assert_same(found: Dump, expected: Dump) -> None:
    """Assert that two dumps are equal; the error shows the differences."""
    differing = {
        name: (found.get(name), expected.get(name))
        for name in found.keys() | expected.keys()
        if found.get(name) != expected.get(name)
    }
    assert not differing, f"the store and the model differ: {differing}"
