"""Reads the counters of a queue, including the tally in its `meta` hash."""

from __future__ import annotations

from collections.abc import Mapping

from qsync.broker.queue_replies import counters_of


def with_counted(stats: Mapping[bytes, bytes], meta: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of `stats`, plus the tasks that enqueues have so far counted only in
    `meta`."""
    tally = [meta.get(b"tally_day", b""), meta.get(b"tally", b"")]
    counted = counters_of([], tally)
    summed = {
        name.encode(): b"%d" % (int(stats.get(name.encode(), 0)) + amount)
        for name, amount in counted.items()
    }
    return {**stats, **summed}
