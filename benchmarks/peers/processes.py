"""Runs the servers and producers of the peers as child processes, and ends them by process id."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import program
from benchmarks.peers.shared import ROOT
from benchmarks.peers.table import PYTHON, Peer

PATIENCE = 60.0
"""Time limit for each part of a round, in seconds."""


class PeerFailed(Exception):
    """Raised if a peer did not do its work; the message gives the reason."""


def produce(peer: Peer, action: str, variables: Mapping[str, str], **sizes: int) -> dict[str, Any]:
    """Run a producer of the peer; return its measurements."""
    report = Path(variables["BENCH_REPORT"]).with_suffix(".producer")
    report.unlink(missing_ok=True)
    words = ["-m", "benchmarks.peers.producer", peer.name, action, json.dumps(sizes), str(report)]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [program(peer, PYTHON), *words],
            cwd=ROOT, env=_environment(variables), capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{action}: did not finish within {PATIENCE:.0f} s") from None
    if done.returncode:
        raise PeerFailed(f"{action}: {_last(done.stderr)}")
    return dict(json.loads(report.read_text()))


@contextlib.contextmanager
def serving(
    peer: Peer, variables: Mapping[str, str], threads: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server process of the peer; end it and its children afterwards."""
    values = {"url": variables["BENCH_URL"], "threads": threads}
    first, *words = (word.format(**values) for word in peer.server)
    log = Path(variables["BENCH_REPORT"]).with_suffix(".log")
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603 - the command of the table
            [program(peer, first), *words],
            cwd=ROOT, env=_environment(variables),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # start a process group for the process and its children
        )  # fmt: skip
    try:
        yield server
    finally:
        _end(server)


def report_of(
    server: subprocess.Popen[bytes], variables: Mapping[str, str], *, again: float = 0.0
) -> dict[str, Any]:
    """Wait until every task has run; return the report, which includes runs repeated soon
    afterwards.

    `again` is the share of the tasks that may have run more than once.
    """
    path = Path(variables["BENCH_REPORT"])
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if server.poll() is not None:
            said = path.with_suffix(".log").read_text(errors="replace")
            raise PeerFailed(f"the server ended with status {server.returncode}: {_last(said)}")
        if time.monotonic() > end:
            raise PeerFailed(f"the server did not run every task within {PATIENCE:.0f} s")
        time.sleep(0.01)
    time.sleep(0.3)
    report = dict(json.loads(path.read_text()))
    expected = int(variables["BENCH_EXPECTED"])
    report["again"] = report["runs"] - expected
    if not 0 <= report["again"] <= expected * again:
        raise PeerFailed(f"the handler ran {report['runs']} times for {expected} tasks")
    return report


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **variables, "PYTHONPATH": str(ROOT)}


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop; after a second at most, kill its whole process group."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(timeout=10)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace(f"{ROOT}/", "")[:300] if lines else "it said nothing"
