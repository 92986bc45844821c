"""Counts the runs of a handler in the server's process and writes a report at the end."""

import itertools
import json
import time
from pathlib import Path

from benchmarks.peers.shared import EXPECTED, REPORT, STAMPS, first_run_mark

_runs = itertools.count(1)  # `next` is atomic, so threads may share the counter
_began = 0
_late_ns: list[int] = []


def ran(payload: str | bytes) -> None:
    """Count a run of the handler; write the report after the last expected run."""
    global _began  # a handler has no other place for this state
    now = time.monotonic_ns()
    number = next(_runs)
    if number == 1:
        _began = now
        first_run_mark(REPORT).touch()
    if payload[:1] in STAMPS:
        _late_ns.append(now - int(payload[1:]))
    if number >= EXPECTED:  # write the report again after each excess run
        _write(number)


def _write(runs: int) -> None:
    report = {"runs": runs, "ns": time.monotonic_ns() - _began, "late_ns": _late_ns}
    draft = Path(f"{REPORT}.draft-{runs}")
    draft.write_text(json.dumps(report))
    draft.replace(REPORT)
