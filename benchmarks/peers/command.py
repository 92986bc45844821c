"""The command `python -m benchmarks peers`: the same work on qsync and on its peers."""

import argparse
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.peers import environments, interpreter, report, rounds
from benchmarks.peers.processes import PeerFailed
from benchmarks.peers.shared import DOCUMENT, RESULTS, ROOT
from benchmarks.peers.summary import summarise
from benchmarks.peers.table import BY_NAME, PEERS, QSYNC, Peer
from tests.support.stores import Store

SHOWN = ("redis", "coredis", "hiredis", "uvloop")
"""Packages whose versions are shown beside the version of the peer."""

console = Console(stderr=True, highlight=False)


def main(words: Sequence[str]) -> int:
    """Measure the peers, print the table, and write the results; return the exit code."""
    options = _parse(words)
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the servers on SIGTERM too
    python = interpreter.choose(options.python)
    skipped: dict[str, str] = {}
    peers, hardware = _choose(options.peers), machine.hardware()
    versions = _install(peers, str(python["program"]), skipped)
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with Store("valkey", aof=False) as store:
        version = store.client().info("server")["valkey_version"]
        for number in range(1, options.rounds + 1):
            for peer in peers:
                if peer.name not in skipped:
                    _round(peer, store, number, options, measured, skipped)
    summary = summarise({name: measured[name] for name in versions if name not in skipped})
    results = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(options),
        "rounds": options.rounds,
        "scale": options.scale,
        "machine": hardware,
        "python": {key: value for key, value in python.items() if key != "program"},
        "store": f"Valkey {version}",
        "versions": versions,
        "summary": summary,
        "skipped": skipped,
        "measured": dict(measured),
    }
    report.print_table(summary, skipped)
    if QSYNC in summary and _should_write(options):
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report.write_section(DOCUMENT, results)
    return 0 if QSYNC in summary else 1


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Run the same work on qsync and on other queues, like `make bench-peers`. "
        "Each queue is installed into its own environment in .bench. A full run takes about ten "
        "minutes.",
    )
    parser.add_argument(
        "peers", nargs="*", help=f"peers to measure: any of {', '.join(BY_NAME)} (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds; each figure is their median (default: 3)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the tasks, e.g. 0.1")
    parser.add_argument(
        "--python", help="interpreter for all queues (default: the first of 3.12, 3.13 found)"
    )
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction,
        help=f"write the results to {RESULTS.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)} "
        "(default: only if all peers do all the work)",
    )  # fmt: skip
    options = parser.parse_args(words)
    if options.rounds < 1 or not 0 < options.scale <= 1:
        parser.error("--rounds must be at least 1; --scale must be over 0 and at most 1")
    if unknown := [name for name in options.peers if name not in BY_NAME]:
        parser.error(f"unknown peer: {', '.join(unknown)}; use {', '.join(BY_NAME)}")
    return options


def _should_write(options: argparse.Namespace) -> bool:
    """Return whether to write the results. By default, they are written only if all peers did all
    the work."""
    if options.write is None:
        return not options.peers and options.scale == 1
    return bool(options.write)


def _choose(names: Sequence[str]) -> list[Peer]:
    """Return the named peers and the qsync rows to compare them with."""
    if not names:
        return list(PEERS)
    chosen = {QSYNC, *names, *(BY_NAME[name].baseline for name in names)}
    return [peer for peer in PEERS if peer.name in chosen]


def _install(
    peers: Sequence[Peer], python: str, skipped: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Install the peers and return their versions by name; add those that cannot be installed to
    `skipped`."""
    versions: dict[str, dict[str, str]] = {}
    for peer in peers:
        console.print(f"installing {peer.title}")
        try:
            installed = environments.install(peer, python)
        except environments.CannotInstall as error:
            skipped[peer.name] = f"cannot be installed: {error}"
            console.print(f"  {skipped[peer.name]}", markup=False)
            continue
        names = (*(text.partition("==")[0].partition("[")[0] for text in peer.requirements), *SHOWN)
        own = "qsync-py" if peer.folder == QSYNC else names[0]
        versions[peer.name] = {
            name: installed[name] for name in dict.fromkeys((own, *names)) if name in installed
        }
    return versions


def _round(
    peer: Peer, store: Store, number: int, options: argparse.Namespace,
    measured: dict[str, list[dict[str, Any]]], skipped: dict[str, str],
) -> None:  # fmt: skip
    """Measure one more round; if it fails, skip the peer from now on."""
    try:
        result = rounds.run(peer, store, first=number == 1, scale=options.scale)
    except PeerFailed as error:
        skipped[peer.name] = f"round {number}: {error}"
        console.print(f"{number} {peer.title}: {error}", markup=False)
        return
    measured[peer.name].append(result)
    console.print(f"{number} {peer.title}: {result['drain']:,.0f} tasks/s", markup=False)


def _command(options: argparse.Namespace) -> str:
    words = ["make bench-peers", f"ROUNDS={options.rounds}"]
    if options.peers:
        words.append(f'PEERS="{" ".join(options.peers)}"')
    if options.scale != 1:
        words.append(f"SCALE={options.scale}")
    return " ".join(words)
