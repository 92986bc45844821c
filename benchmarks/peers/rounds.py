"""Runs one round of one peer on an empty store. The steps are the same for all peers."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import produce, report_of, serving
from benchmarks.peers.shared import first_run_mark
from benchmarks.peers.table import Peer
from tests.support.stores import Store

LATENCIES = 120
WAITING = 10_000
"""Number of waiting tasks for which memory is measured; the same for all peers."""
PERCENTILES = (50, 95, 99)
AGAIN = 0.01
"""Maximum share of a drain's tasks that may run more than once, as at-least-once delivery
allows."""


def run(peer: Peer, store: Store, *, first: bool, scale: float = 1.0) -> dict[str, Any]:
    """Run one round of a peer; return rates per second, latencies in ms, and bytes per task.

    Bytes are measured only in the first round, since they do not differ between rounds.
    """
    with tempfile.TemporaryDirectory(prefix="qsync-peers-") as folder:
        report = Path(folder) / "report.json"
        variables = {"BENCH_URL": store.url, "BENCH_REPORT": str(report)}
        store.flush()
        measured = produce(
            peer, "enqueue", variables,
            one=_scaled(peer.one, scale), concurrent=_scaled(peer.concurrent, scale),
        )  # fmt: skip
        if first:
            store.flush()
            # `memory` enqueues a twentieth of the tasks at a time, which a hundred callers must
            # share evenly.
            measured |= produce(peer, "memory", variables, count=20 * _scaled(WAITING // 20, scale))
        drains: dict[str, float] = {}
        again = 0
        for threads in peer.threads or (None,):
            store.flush()
            drained = _drain(peer, variables, _scaled(peer.drain, scale), threads)
            again += drained.pop("again")
            measured |= drained
            drains[f"{threads or 'own'}"] = measured["drain"]
            report.unlink()
            first_run_mark(report).unlink()
        measured |= {"drain": max(drains.values()), "drain_by_threads": drains, "again": again}
        store.flush()
        measured |= _latency(peer, variables, _scaled(LATENCIES, scale))
    return measured


def _drain(
    peer: Peer, variables: dict[str, str], count: int, threads: int | None
) -> dict[str, Any]:
    variables = {**variables, "BENCH_EXPECTED": str(count)}
    measured = produce(peer, "fill", variables, count=count)
    with serving(peer, variables, threads) as server:
        report = report_of(server, variables, again=AGAIN)
    return {**measured, "drain": count / (report["ns"] / 1e9), "again": report["again"]}


def _latency(peer: Peer, variables: dict[str, str], count: int) -> dict[str, Any]:
    variables = {**variables, "BENCH_EXPECTED": str(count + 1)}
    with serving(peer, variables, next(iter(peer.threads), None)) as server:
        produce(peer, "latency", variables, count=count)
        report = report_of(server, variables)
    late = sorted(report["late_ns"])
    return {
        f"p{percent}_ms": late[min(len(late) - 1, len(late) * percent // 100)] / 1e6
        for percent in PERCENTILES
    }


def _scaled(count: int, scale: float) -> int:
    """Return the number of tasks, rounded to hundreds and at least 200, so that many callers can
    share them evenly."""
    return max(2, round(count * scale / 100)) * 100 if count else 0
