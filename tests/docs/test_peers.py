"""The comparison with other queues has all parts for each queue. These tests neither install nor
import the other queues."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.report import BEGIN, END, write_section
from benchmarks.peers.shared import CONCURRENCY, PAYLOAD, STAMPS, stamp
from benchmarks.peers.summary import summarise
from benchmarks.peers.table import BY_NAME, PEERS

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "benchmarks" / "peers" / "adapters"

AGREED = {"connect", "enqueue", "enqueue_many", "find"}
ASKED_FOR = {
    "arq", "saq", "taskiq", "streaq", "docket", "dramatiq", "rq", "huey", "celery", "ardiq",
    "blitzq", "bullmq",
}  # fmt: skip


def names_of(file: Path) -> dict[str, ast.AST]:
    """Return the top-level definitions of a file, by name."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({at.id: node.value for at in node.targets if isinstance(at, ast.Name)})
    return found


def test_every_peer_has_a_file_and_every_file_a_peer() -> None:
    files = {path.stem for path in ADAPTERS.glob("*.py")} - {"__init__"}
    assert len(BY_NAME) == len(PEERS)
    assert files == set(BY_NAME)
    assert set(BY_NAME) == ASKED_FOR | {"qsync", "qsync_threads"}


def test_every_file_has_the_functions_that_the_producer_calls() -> None:
    for peer in PEERS:
        names = names_of(ADAPTERS / f"{peer.name}.py")
        assert names.keys() >= AGREED | {"COLOUR", "noop"}, peer.name
        colour = ast.literal_eval(names["COLOUR"])  # type: ignore[arg-type]
        assert colour in ("async", "blocking"), peer.name
        wanted = ast.AsyncFunctionDef if colour == "async" else ast.FunctionDef
        assert isinstance(names["enqueue"], wanted), peer.name
        for name in ("enqueue_many", "find"):
            node = names[name]
            absent = isinstance(node, ast.Constant) and node.value is None
            assert absent or isinstance(node, wanted), f"{peer.name}.{name}"
        assert ("ran" in ast.unparse(names["noop"])) is True, peer.name
        assert bool(peer.concurrent) == (colour == "async"), peer.name


def test_every_requirement_is_pinned_and_every_setting_has_its_link() -> None:
    for peer in PEERS:
        own, *others = peer.requirements
        pinned = re.compile(r"[a-z0-9-]+(\[[a-z,]+\])?==\d[\w.]*")
        for one in others if own.startswith(str(ROOT)) else peer.requirements:
            assert pinned.fullmatch(one), f"{peer.name}: {one}"
        assert own.startswith(str(ROOT)) == peer.name.startswith("qsync"), peer.name
        assert any(one.startswith("hiredis==") for one in others), peer.name
        assert peer.docs.startswith("https://"), peer.name
        assert peer.settings, peer.name
        assert peer.delivery.startswith(("at least once", "at most once")), peer.name
        assert peer.drain > 0, peer.name
        assert peer.one > 0, peer.name


def test_every_server_command_matches_the_peers_file_and_settings() -> None:
    for peer in PEERS:
        command = " ".join(peer.server)
        if peer.name != "rq":  # each task carries the handler's import path
            assert f"benchmarks.peers.adapters.{peer.name}" in command, peer.name
        assert ("{threads}" in command) == bool(peer.threads), peer.name
        if peer.handlers == "coroutine" and peer.name != "qsync":  # 100 is qsync's default
            text = (ADAPTERS / f"{peer.name}.py").read_text()
            assert "CONCURRENCY" in text or str(CONCURRENCY) in peer.server, peer.name
        if peer.handlers == "thread" and peer.name != "qsync_threads":
            assert CONCURRENCY in peer.threads, peer.name


ROUND: dict[str, Any] = {
    "find": True, "drain": 1000.0, "one": 10.0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0,
    "bytes": 200.0,
}  # fmt: skip


def results() -> dict[str, Any]:
    rounds = {
        "qsync": [{**ROUND, "drain": drain} for drain in (900.0, 1000.0, 5000.0)],
        "qsync_threads": [{**ROUND, "drain": 400.0}],
        "arq": [{**ROUND, "drain": 250.0, "find": False}],
        "huey": [{**ROUND, "drain": 100.0, "again": 2}, {**ROUND, "drain": 100.0, "again": 1}],
    }
    return {
        "command": "make bench-peers ROUNDS=3", "date": "today", "rounds": 3, "store": "Valkey 9",
        "machine": {"cpu": "p", "cores": 2, "memory_gib": 1, "system": "s",
                    "load_before": 0},
        "python": {"pgo": False, "implementation": "CPython", "version": "3.12.1"},
        "versions": {name: {name: "1.0"} for name in rounds},
        "summary": summarise(rounds), "skipped": {"rq": "cannot be installed: no wheel"},
        "measured": rounds,
    }  # fmt: skip


def test_medians_are_compared_and_threads_only_with_threads() -> None:
    summary = results()["summary"]

    assert summary["qsync"]["drain"] == 1000
    assert summary["arq"]["ratio"]["drain"] == 0.25
    assert summary["huey"]["ratio"]["drain"] == 0.25
    assert "concurrent" not in summary["huey"]


def test_section_replaces_the_previous_section_and_leaves_the_rest(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n\nbefore\n")
    write_section(document, results())
    first = document.read_text()
    document.write_text(first + "\nafter\n")
    write_section(document, {**results(), "date": "tomorrow"})
    second = document.read_text()

    assert first.startswith("# Benchmarks\n\nbefore\n\n" + BEGIN)
    assert second == first.replace("today", "tomorrow") + "\nafter\n"
    assert second.count(BEGIN) == second.count(END) == 1
    assert "RQ: cannot be installed: no wheel" in second
    assert "some tasks ran more than once: 3 Huey tasks." in second
    assert "| arq | coroutine | 250 (0.25) |" in second


def test_a_section_without_its_end_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"{BEGIN}\nand what somebody wrote\n")

    with pytest.raises(ValueError, match="has no"):
        write_section(document, results())
    assert document.read_text() == f"{BEGIN}\nand what somebody wrote\n"


def test_stamped_payload_has_the_same_length_and_is_recognised() -> None:
    assert len(PAYLOAD) == len(stamp(123)) == 32
    assert stamp(123)[:1] in STAMPS
    assert PAYLOAD[:1] not in STAMPS
    assert int(stamp(123).encode()[1:]) == 123
