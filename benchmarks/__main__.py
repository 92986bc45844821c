"""Run the same work on qsync and on its peers: `make bench-peers`, or python -m benchmarks -h."""

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
from tests.stores import Store

from benchmarks import environments, interpreter, machine, report, rounds
from benchmarks.processes import PeerFailed
from benchmarks.shared import DOCUMENT, RESULTS, ROOT
from benchmarks.summary import summarise
from benchmarks.table import BY_NAME, PEERS, QSYNC, Peer

SHOWN = ("redis", "coredis", "hiredis", "uvloop")
"""Packages whose version is told beside the peer's own."""

console = Console(stderr=True, highlight=False)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    python = interpreter.choose(options.python)
    peers, skipped = _chosen(options.peers), {}
    state = machine.describe()
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
        "machine": state,
        "python": {key: value for key, value in python.items() if key != "program"},
        "store": f"Valkey {version}",
        "versions": versions,
        "summary": summary,
        "skipped": skipped,
        "measured": dict(measured),
    }
    report.print_table(summary, skipped)
    if QSYNC in summary and _to_be_written(options):
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report.write_section(DOCUMENT, results)
    return 0 if QSYNC in summary else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("peers", nargs="*", help="names; all when there are none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work, to try it")
    parser.add_argument("--python", help="interpreter for all; one that serves all is looked for")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction,
        help=f"into {RESULTS.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)}; "
        "if not told, when it is the whole of the work by all",
    )  # fmt: skip
    options = parser.parse_args()
    if options.rounds < 1 or not 0 < options.scale <= 1:
        parser.error("--rounds is at least 1, --scale over 0 and at most 1")
    if unknown := [name for name in options.peers if name not in BY_NAME]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return options


def _to_be_written(options: argparse.Namespace) -> bool:
    """Part of the work, or some of the peers, does not take the place of the whole."""
    if options.write is None:
        return not options.peers and options.scale == 1
    return bool(options.write)


def _chosen(names: Sequence[str]) -> list[Peer]:
    """The peers that were named, and qsync's rows that they are compared with."""
    if not names:
        return list(PEERS)
    wanted = {QSYNC, *names, *(BY_NAME[name].baseline for name in names)}
    return [peer for peer in PEERS if peer.name in wanted]


def _install(
    peers: Sequence[Peer], python: str, skipped: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Versions of those that were installed, by name; the rest is in `skipped` with the reason."""
    versions: dict[str, dict[str, str]] = {}
    for peer in peers:
        console.print(f"installing {peer.title}")
        try:
            installed = environments.install(peer, python)
        except environments.CannotInstall as error:
            skipped[peer.name] = f"cannot be installed: {error}"
            console.print(f"  {skipped[peer.name]}", markup=False)
            continue
        names = (*(one.partition("==")[0].partition("[")[0] for one in peer.requirements), *SHOWN)
        own = "qsync-py" if peer.folder == QSYNC else names[0]
        versions[peer.name] = {
            name: installed[name] for name in dict.fromkeys((own, *names)) if name in installed
        }
    return versions


def _round(
    peer: Peer, store: Store, number: int, options: argparse.Namespace,
    measured: dict[str, list[dict[str, Any]]], skipped: dict[str, str],
) -> None:  # fmt: skip
    """One round more is measured, or the peer is skipped from now on."""
    try:
        one = rounds.run(peer, store, first=number == 1, scale=options.scale)
    except PeerFailed as error:
        skipped[peer.name] = f"round {number}: {error}"
        console.print(f"{number} {peer.title}: {error}", markup=False)
        return
    measured[peer.name].append(one)
    console.print(f"{number} {peer.title}: {one['drain']:,.0f} tasks/s", markup=False)


def _command(options: argparse.Namespace) -> str:
    words = ["make bench-peers", f"ROUNDS={options.rounds}"]
    if options.peers:
        words.append(f'PEERS="{" ".join(options.peers)}"')
    if options.scale != 1:
        words.append(f"SCALE={options.scale}")
    return " ".join(words)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
