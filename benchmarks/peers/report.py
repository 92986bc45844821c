"""Writes the human-readable results: a table on the terminal and a section of
docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.summary import COLUMNS, by_drain, cell
from benchmarks.peers.table import BY_NAME

BEGIN = "<!-- peers: begin (written by make bench-peers) -->"
END = "<!-- peers: end -->"

EARLIER = """\
These figures are from an earlier run on another machine with two cores: with no-op tasks and one
process, asynq in Go ran 14,600 tasks/s, and the Go qsync ran 14,900. The Go qsync keeps no leases:
when a process dies, its tasks are lost."""

HOW = """\
Every queue does the same work on the same store: a Valkey without AOF on the same machine, which is
emptied before each part. All queues take a turn in each round, and the figures are medians of the
rounds. Each queue has its own environment with the same interpreter, one server process, hiredis
and uvloop where it can use them, and the settings that its documentation recommends for fast
at-least-once delivery, if the queue offers it. The ratio to qsync is in brackets; coroutines are
compared with coroutines, and threads with threads. For rates, higher is better; for latency and
memory, lower is better.

* **drain**: the rate at which a server runs no-op tasks that were enqueued before it started, with
  payloads of 32 bytes and handlers of the kind shown (coroutines: 100 at once). The server measures
  the time from the start of the first handler to the end of the last one. A round fails if more
  than 1% of its tasks run more than once.
* **one by one**: one caller awaits each enqueue (for threads, with the blocking client).
  **concurrent**: 100 coroutines of one process enqueue concurrently. **bulk**: the queue's own bulk
  call, with 10,000 tasks per call; a dash means that the queue has no such call.
* **p50, p95, p99**: the time from just before an enqueue to the start of its handler, on an idle
  server.
* **B a task**: growth of the store's `used_memory`, without its clients' buffers, per waiting task.
  The figure is the mean over tasks 5,000 to 10,000, because tables grow in steps, and is measured
  once.
* **by id**: whether the queue's API can find a waiting task by its id."""


def print_table(summary: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str]) -> None:
    """Print the table on the terminal."""
    table = Table(title="peers: median (ratio to qsync)", title_justify="left")
    for title in ("", "handlers", *(column.title for column in COLUMNS), "by id"):
        table.add_column(title, justify="left" if title in ("", "handlers", "by id") else "right")
    for peer, measured in by_drain(summary):
        table.add_row(*_row(peer.title, peer.handlers, measured))
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"{BY_NAME[name].title}: skipped: {reason}", markup=False)


def write_section(document: Path, results: Mapping[str, Any]) -> None:
    """Replace the section between the markers in the document, or append it if there are none."""
    section = f"{BEGIN}\n{markdown(results)}\n{END}"
    text = document.read_text() if document.exists() else "# Benchmarks\n"
    before, found, rest = text.partition(BEGIN)
    if found:
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{document}: {BEGIN} has no {END}")
        document.write_text(f"{before}{section}{after}")
    else:
        document.write_text(f"{text.rstrip()}\n\n{section}\n")


def markdown(results: Mapping[str, Any]) -> str:
    """Return the section: the results, the method, the machine and the settings."""
    parts = [
        "## Beside other queues",
        f"```console\n$ {results['command']}\n```",
        _conditions(results),
        _figures(results["summary"]),
        HOW,
        EARLIER,
        "### Settings",
        _settings(results),
    ]
    again = _again(results["measured"])
    if again:
        parts.insert(4, f"Although no server died, some tasks ran more than once: {again}.")
    skipped = results["skipped"]
    if skipped:
        lines = [f"* {BY_NAME[name].title}: {reason}" for name, reason in skipped.items()]
        parts.insert(4, "Skipped:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _again(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return how many tasks of each peer ran more than once in drains; omit peers without any."""
    counts = {name: sum(one.get("again", 0) for one in rounds) for name, rounds in measured.items()}
    return ", ".join(
        f"{count} {BY_NAME[name].title} tasks" for name, count in counts.items() if count
    )


def _conditions(results: Mapping[str, Any]) -> str:
    machine, python = results["machine"], results["python"]
    pgo = "with" if python["pgo"] else "without"
    return (
        f"{results['date']}, rounds: {results['rounds']}, store: {results['store']}. "
        f"{machine['cpu']}, {machine['cores']} cores shared with the store, "
        f"{machine['memory_gib']} GiB, {machine['system']}; load before the run "
        f"{machine['load_before']}. {python['implementation']} {python['version']}, built {pgo} "
        "profile-guided optimisation, for all queues."
    )


def _figures(summary: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["", "handlers", *(column.title for column in COLUMNS), "by id"]
    lines = [head, ["---", "---", *("---:" for _ in COLUMNS), "---"]]
    lines += [_row(peer.title, peer.handlers, one) for peer, one in by_drain(summary)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(title: str, handlers: str, measured: Mapping[str, Any]) -> list[str]:
    figures = (cell(column, measured) for column in COLUMNS)
    return [title, handlers, *figures, "yes" if measured["find"] else "no"]


def _settings(results: Mapping[str, Any]) -> str:
    lines = ["| | version | settings | when a server dies |", "| --- | --- | --- | --- |"]
    for name, versions in results["versions"].items():
        peer = BY_NAME[name]
        version = ", ".join(f"{package} {number}" for package, number in versions.items())
        settings = f"[{peer.settings}]({peer.docs})"
        lines.append(f"| {peer.title} | {version} | {settings} | {peer.delivery} |")
    return "\n".join(lines)
