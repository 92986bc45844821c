"""What the harness, the producers and the servers tell each other: by environment and by file."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".bench"
RESULTS = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"

CONCURRENCY = 100
CALLERS = 100
"""Coroutines that enqueue at the same time."""
PAYLOAD = "x" * 32
STAMPS = ("t", b"t")
"""Prefix of a payload that carries the time of its enqueue."""

URL = os.environ.get("BENCH_URL", "")
"""The store; empty in the harness, which starts it."""
EXPECTED = int(os.environ.get("BENCH_EXPECTED", "0"))
"""After how many runs a server writes its report."""
REPORT = Path(os.environ.get("BENCH_REPORT", "report.json"))


def stamp(now_ns: int) -> str:
    """A payload of 32 characters that says when it was enqueued."""
    return f"{STAMPS[0]}{now_ns:031d}"


def first_run_mark(report: Path) -> Path:
    """The file that a server makes when it has run its first task."""
    return report.with_suffix(".up")
