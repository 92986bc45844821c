"""The counters of a queue in the store, including the tally in meta."""

from __future__ import annotations

from collections.abc import Mapping

from qsync.broker.queue_replies import counters_of


def with_counted(stats: Mapping[bytes, bytes], meta: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of stats with the tasks that enqueues have counted in meta so far."""
    tally = [meta.get(b"tally_day", b""), meta.get(b"tally", b"")]
    counted = counters_of([], tally)
    summed = {
        name.encode(): b"%d" % (int(stats.get(name.encode(), 0)) + amount)
        for name, amount in counted.items()
    }
    return {**stats, **summed}
