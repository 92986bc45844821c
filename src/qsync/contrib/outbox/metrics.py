"""Prometheus metrics of an outbox. Needs the extra `prometheus`.

from prometheus_client import REGISTRY
REGISTRY.register(OutboxCollector(relay))
"""

from __future__ import annotations

from collections.abc import Iterable

from qsync.contrib.outbox.relay import AsyncRelay, Relay
from qsync.instrumentation import missing

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _error:
    raise missing(_error, "prometheus") from None

__all__ = ["OutboxCollector"]


class OutboxCollector(Collector):
    """Metrics of the rows that wait in a relay's outbox, as the relay last counted them.

    Every 5 s, the relay counts up to 10,000 rows. Alert if the oldest row is older than a minute,
    because then the store is unreachable or no relay is running.
    """

    def __init__(self, relay: Relay | AsyncRelay) -> None:
        self._relay = relay

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; those of the backlog are missing until the relay has counted it."""
        sent = CounterMetricFamily("qsync_outbox_sent", "Rows that this relay has sent.")
        sent.add_metric([], self._relay.sent)
        yield sent
        unreadable = GaugeMetricFamily(
            "qsync_outbox_unreadable_rows", "Rows that this relay cannot read."
        )
        unreadable.add_metric([], len(self._relay.unreadable))
        yield unreadable
        if (backlog := self._relay.backlog) is not None:
            yield from backlog_metrics(backlog.rows, backlog.oldest_s)


def backlog_metrics(rows: int, oldest_s: float) -> list[Metric]:
    """Return the metrics of the rows that wait."""
    return [
        GaugeMetricFamily("qsync_outbox_rows", "Rows that wait, counted up to 10,000.", rows),
        GaugeMetricFamily(
            "qsync_outbox_oldest_seconds", "Age of the oldest row; 0 if no rows wait.", oldest_s
        ),
    ]
