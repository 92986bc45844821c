"""Values that the harness, the producers and the servers exchange through environment variables and
files."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".bench"
RESULTS = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"

CONCURRENCY = 100
CALLERS = 100
"""Number of coroutines that enqueue concurrently."""
PAYLOAD = "x" * 32
STAMPS = ("t", b"t")
"""Prefix of payloads that carry their enqueue time, as str and as bytes."""

URL = os.environ.get("BENCH_URL", "")
"""URL of the store; empty in the harness, which starts the store."""
EXPECTED = int(os.environ.get("BENCH_EXPECTED", "0"))
"""Number of runs after which a server writes its report."""
REPORT = Path(os.environ.get("BENCH_REPORT", "report.json"))


def stamp(now_ns: int) -> str:
    """Return a payload of 32 characters that carries its enqueue time."""
    return f"{STAMPS[0]}{now_ns:031d}"


def first_run_mark(report: Path) -> Path:
    """Return the path of the file that a server creates when it has run its first task."""
    return report.with_suffix(".up")
