"""The operations on the bounds of a queue and the weights of its fairness keys."""

from __future__ import annotations

import contextlib
from typing import Any

from qsync.bounds import Bounds, QueueBounds, read_bounds
from qsync.broker.call import Call, now_argument, queue_call, queue_query
from qsync.keys import QueueKeys


def put_program_bounds(keys: QueueKeys, bounds: Bounds) -> Call[bool]:
    """Store the bounds that a program sets for a queue; if it sets none, remove them."""
    is_none = bounds.max_tasks is None and bounds.max_bytes is None
    return _set(keys, "bounds", "" if is_none else bounds.stored, "")


def set_bounds(
    keys: QueueKeys, bounds: Bounds | None, *, by: str = "", now_us: int | None = None
) -> Call[bool]:
    """Set an operator's bounds, which override the program's; None removes them.

    Return whether the stored bounds changed.
    """
    return _set(keys, "!bounds", "" if bounds is None else bounds.stored, by, now_us)


def _set(
    keys: QueueKeys, field: str, bounds: str, by: str, now_us: int | None = None
) -> Call[bool]:
    args = (now_argument(now_us), "", field, bounds, by)
    return queue_call("set_bounds", keys, args, bool)


def queue_bounds(keys: QueueKeys) -> Call[QueueBounds]:
    """Read the bounds of a queue, and how close it is to them."""

    def decode(fields: dict[str, Any]) -> QueueBounds:
        return read_bounds(
            fields["program"], fields["operator"], fields["waiting"], fields["recorded"]
        )

    return queue_query("bounds", keys, (0,), decode)


def counted_bytes(keys: QueueKeys) -> Call[tuple[int | None, int]]:
    """Return the recorded size of all messages (None if it is not recorded), and their actual
    size."""

    def decode(fields: dict[str, Any]) -> tuple[int | None, int]:
        return None if fields["recorded"] < 0 else fields["recorded"], fields["counted"]

    return queue_query("bounds", keys, (1,), decode)


def recount_bytes(keys: QueueKeys) -> Call[bool]:
    """Compute the size of all messages again; return whether the recorded size was wrong."""
    return queue_call("recount_bytes", keys, (), bool)


def set_weight(keys: QueueKeys, key: str, weight: float | None) -> Call[bool]:
    """Set the share of a fairness key; None removes it. Return whether the stored share changed."""
    args = ("", "", key, "" if weight is None else f"{weight:g}")
    return queue_call("set_weight", keys, args, bool)


def set_latency_target(keys: QueueKeys, target_us: int | None) -> Call[bool]:
    """Set the maximum time that pending tasks should wait; None removes it. Return whether the
    stored time changed."""
    args = ("", "", "" if target_us is None else target_us)
    return queue_call("set_latency_target", keys, args, bool)


def acknowledge_dead(keys: QueueKeys, until_us: int | None) -> Call[int]:
    """Record that operators have acknowledged all tasks that died up to a given time; return how
    many of them were not acknowledged before."""
    return queue_call("acknowledge_dead", keys, ("", "", "" if until_us is None else until_us), int)


def weights(
    keys: QueueKeys, *, cursor: str = "0", count: int = 1000
) -> Call[tuple[str, dict[str, float]]]:
    """Read a page of fairness keys with their shares; return the next cursor, "0" at the end."""

    def decode(reply: Any) -> tuple[str, dict[str, float]]:
        after, flat = reply
        weights = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            with contextlib.suppress(ValueError):
                key = name.decode(errors="replace").removeprefix("weight:")
                weights[key] = float(value)
        return after.decode(), weights

    return queue_call("weights", keys, (cursor, count), decode)


def sample_keys(keys: QueueKeys, *, count: int) -> Call[tuple[int, list[str]]]:
    """Read the number of pending tasks, and the fairness keys of `count` of these tasks.

    The key is "" for a task without a fairness key.
    """

    def decode(reply: Any) -> tuple[int, list[str]]:
        pending, members = reply
        return int(pending), [_key_in(member) for member in members]

    return queue_call("sample_keys", keys, (count,), decode)


def _key_in(member: bytes) -> str:
    key = member[2:] if member.startswith(b"\xff") else member
    return key.decode(errors="backslashreplace")
