"""`python -m benchmarks` runs, reports and plots its results, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.figures import Curve, Figure, percentiles
from benchmarks.machine import built_with_pgo
from benchmarks.measures import MEASURES
from benchmarks.measures.latency import histogram
from benchmarks.plot import draw
from benchmarks.report import Report, as_json, format_value
from benchmarks.scale import FULL
from tests.support.stores import Cluster, Store, wait_until

pytestmark = pytest.mark.timeout(300)  # a busy machine starts processes slowly

ROOT = Path(__file__).resolve().parents[2]
NAMES = tuple(MEASURES)

SVG = "{http://www.w3.org/2000/svg}"


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}


def bench(*arguments: str, folder: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks --quick` in a folder, which also holds its temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass
class Run:
    """The output and the files of a complete run."""

    folder: Path
    said: str
    written: dict[str, Any]

    def value(self, name: str) -> float:
        [found] = [one["value"] for one in self.written["figures"] if one["name"] == name]
        return float(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bench")
    done = bench("--json", "figures.json", "--plot", "charts/new", folder=folder)
    assert done.returncode == 0, done.stderr
    return Run(folder, done.stdout, json.loads((folder / "figures.json").read_text()))


def test_selected_measures_are_taken_and_shown(tmp_path: Path) -> None:
    done = bench("--only", "enqueue,latency", "--json", "-", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert {one["measure"] for one in figures} == {"enqueue", "latency"}
    assert "a blocking Client" not in done.stderr, "enqueue is measured without an event loop"
    for one in figures:
        assert one["value"] > 0, one
        assert one["name"] in done.stderr


@pytest.mark.slow  # the whole benchmark runs
def test_every_measure_has_figures_and_each_is_in_the_table(run: Run) -> None:
    figures = run.written["figures"]
    assert list(dict.fromkeys(one["measure"] for one in figures)) == list(NAMES)
    names = [one["name"] for one in figures]
    assert len(set(names)) == len(names)
    for one in figures:
        line = re.search(rf"^{re.escape(one['name'])} +(\S+) ", run.said, re.MULTILINE)
        assert line is not None, one["name"]
        assert line[1] == format_value(one["value"]).split()[0]
        assert one["unit"] and one["how"]


@pytest.mark.slow  # the whole benchmark runs
def test_figures_measure_what_they_name(run: Run) -> None:
    may_be_zero = {
        "scheduled tasks started early", "idle server, commands",
        "idle server, commands in scripts", "idle server, CPU",
    }  # fmt: skip
    for one in run.written["figures"]:
        assert one["value"] > 0 or one["name"] in may_be_zero, one
    value = run.value
    assert value("scheduled tasks started early") == 0
    for kind in (
        "latency, idle",
        "latency at 500/s",
        "latency at 1,000/s, uvloop",
        "lateness of scheduled",
    ):
        ends = [value(f"{kind}, {text}") for text in ("p50", "p95", "p99")]
        assert ends == sorted(ends)
    assert value("drain, 5 ms tasks") < 20_000
    assert value("drain, coroutine") < value("asyncio floor")
    parts = [value(f"store, {verb}") for verb in ("enqueue", "fetch", "complete")]
    assert value("store, all three") == pytest.approx(sum(parts))
    assert 100 < value("memory of a pending task") < 300
    assert 50 < value("memory of a waiter") < 150
    assert value("drain, limits") < value("drain, no limits")
    assert value("rate used") <= 106  # a late first start raises the rate
    assert value("most starts in a second") <= 21
    assert value("enqueue_many") > value("enqueue, blocking")
    assert 10 < value("idle server, memory") < value("busy server, memory") < 1000


@pytest.mark.slow  # the whole benchmark runs
def test_run_describes_its_machine_and_store(run: Run) -> None:
    machine = run.written["machine"]
    assert machine["command"] == (
        "python -m benchmarks --quick --json figures.json --plot charts/new"
    )
    assert machine["cores"] == os.cpu_count()
    assert machine["store"].startswith("valkey 9")
    assert machine["python_pgo"] is built_with_pgo()
    said = run.said.replace("\n", " ")
    for word in (machine["cpu"], machine["store"], machine["qsync"], machine["date"]):
        assert word in said


@pytest.mark.slow  # the whole benchmark runs
def test_the_charts_follow_the_readers_scheme(run: Run) -> None:
    charts = sorted((run.folder / "charts/new").iterdir())
    assert [chart.name for chart in charts] == ["backlog.svg", "latency.svg", "rates.svg"]
    for chart in charts:
        root = ElementTree.fromstring(chart.read_text())  # noqa: S314 - our own file
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert "prefers-color-scheme: dark" in str(root.findtext(f"{SVG}style"))
        for text in root.iter(f"{SVG}text"):
            assert 0 <= float(text.attrib["x"]) <= width
            assert 0 <= float(text.attrib["y"]) <= height
        for bar in root.iter(f"{SVG}rect"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        assert "nan" not in chart.read_text()


@pytest.mark.slow  # the whole benchmark runs
def test_nothing_is_left_of_the_private_store(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == ["charts", "figures.json"]


def test_given_store_is_left_unchanged(own_store: Store, tmp_path: Path) -> None:
    own_store.command("SET", "somebody's", "own")
    done = bench(
        "--url", own_store.url, "--only", "bulk,latency", "--only", "store", "--json", "-",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert {one["measure"] for one in written["figures"]} == {"bulk", "latency", "store"}
    assert own_store.url.removeprefix("redis://") in written["machine"]["store_at"]
    assert "enqueue_many" in done.stderr  # the output is JSON instead of the table
    assert own_store.command("KEYS", "*") == [b"somebody's"]


@pytest.mark.slow
def test_cluster_is_measured_and_left_unchanged(cluster: Cluster, tmp_path: Path) -> None:
    def count_keys() -> int:
        return sum(node.command("DBSIZE") for node in cluster.nodes)

    before = count_keys()
    done = bench(
        "--url", cluster.url, "--only", "enqueue,drain", "--json", "figures.json", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "drain, coroutine" in done.stdout
    assert json.loads((tmp_path / "figures.json").read_text())
    assert count_keys() == before


def test_unreported_store_values_are_left_empty(own_store: Store, tmp_path: Path) -> None:
    own_store.command("ACL", "SETUSER", "shy", "on", ">secret-1", "~*", "&*", "+@all", "-info")
    url = own_store.url.replace("://", "://shy:secret-1@")
    done = bench("--url", url, "--only", "store,bytes,idle", "--json", "f.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "f.json").read_text())
    told = {one["name"]: one["value"] for one in written["figures"]}
    open = ("store, fetch", "memory of a pending task", "idle server, commands")
    assert [told[name] for name in open] == [None] * 3
    assert told["idle server, memory"] > 0
    assert "unknown" in done.stdout
    assert "secret-1" not in done.stdout + (tmp_path / "f.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--only", "drains"], 2, "--only: unknown measure 'drains'; use one of enqueue, callers,"),
        (["--scale", "0.5"], 2, "--scale: not allowed with argument --quick"),
        (["--rounds", "0"], 2, "--rounds must be at least 1"),
        (["--url", "redis://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["--url", "mysql://x"], 1, "mysql"),
        (["--json", "/proc/none/x.json"], 2, "/proc/none"),
        (["--plot", "/proc/none/x"], 2, "/proc/none"),
    ],
)
def test_impossible_options_are_reported_in_one_line(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = bench(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("python -m benchmarks: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_put_into_a_store_from_which_it_cannot_be_deleted(
    own_store: Store, tmp_path: Path
) -> None:
    own_store.command("ACL", "SETUSER", "keeper", "on", ">secret-1", "~*", "&*", "+@all", "-unlink")
    url = own_store.url.replace("://", "://keeper:secret-1@")
    done = bench("--url", url, "--only", "bulk", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("python -m benchmarks: the store refuses UNLINK")
    assert own_store.command("KEYS", "*") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--only", "drain"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: children.read_text().split(), timeout=30)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "python -m benchmarks: stopped; nothing is left running\n"
    assert list(tmp_path.iterdir()) == []


def test_percentiles_are_of_the_times_in_milliseconds() -> None:
    figures = percentiles("x", [at / 1000 for at in range(100, 0, -1)], "so")
    assert [(one.name, one.value) for one in figures] == [
        ("x, p50", 51), ("x, p95", 96), ("x, p99", 100),
    ]  # fmt: skip


def test_histogram_contains_every_time_once() -> None:
    seconds = [0.0, 0.001, 0.0011, 0.1, -1.0]
    bins = histogram(seconds)
    assert sum(share for _, share in bins) == pytest.approx(100)
    assert [end for end, _ in bins] == sorted(end for end, _ in bins)
    assert bins[-1][0] / 1.25 <= 100 < bins[-1][0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"), (0, "0"), (0.163, "0.16"), (12.34, "12.3"), (123.4, "123"),
        (48123.7, "48,124"),
    ],
)  # fmt: skip
def test_truncated_value_shows_readable_part(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_share_of_a_scale_has_that_share_of_the_tasks_and_the_same_times() -> None:
    tenth = FULL.times(0.1)
    assert (tenth.drain, tenth.one_by_one, tenth.singles) == (10_000, 500, 50)
    assert (tenth.load_s, tenth.backlogs) == (FULL.load_s, FULL.backlogs)
    assert FULL.times(1) == FULL


def test_unmeasured_values_have_no_chart(tmp_path: Path) -> None:
    report = Report({}, {"store": [Figure("store, fetch", "us/task", None, "so")]})
    assert draw(report, tmp_path) == []
    report.results["backlog"] = [Curve("throughput against backlog", "tasks/s", ((1, 2.0),), "so")]
    assert draw(report, tmp_path) == []
    assert json.loads(as_json(report))["figures"][0]["value"] is None
