"""Runs the programs in the migration guides, both for qsync and for the other library.

`make soak` also runs the programs for other libraries, each in an environment that the test creates
if it is missing. Programs in Go are not run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.peers.table import PEERS
from tests.support.stores import Store, wait_until
from tools import includes

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "docs" / "migrate"
GUIDES = ROOT / "docs" / "migrate"

PAID = "order 7 paid on attempt 2"
MAILED = "mail: order 7: 12500 cents paid"
REMINDED = "reminder: order 7"
REPORTED = "report"


@dataclass(frozen=True)
class Library:
    """How to run the program for a library.

    says    output of its servers, besides their log
    prints  output of the client
    """

    name: str
    requirement: str
    servers: tuple[tuple[str, ...], ...]
    says: tuple[str, ...] = (MAILED, REMINDED, REPORTED)
    prints: str = PAID


LIBRARIES = (
    Library(
        "celery",
        "celery[redis]==5.7.0",
        (("celery", "-A", "shop", "worker", "--beat", "-Q", "celery,mail", "-c", "2"),),
    ),
    Library(
        "rq",
        "rq==3.0.0",
        (
            ("rq", "worker", "default", "mail", "--with-scheduler", "--url", "{url}"),
            ("rq", "cron", "schedule.py", "--url", "{url}"),
        ),
    ),
    Library(
        "arq",
        "arq==0.28.0",
        (("arq", "shop.WorkerSettings"),),
        prints=f"{PAID} by a connection to the bank",
    ),
    Library(
        "dramatiq",
        "dramatiq[redis]==2.2.1",
        (("dramatiq", "shop", "--processes", "1", "--threads", "2"),),
        says=(MAILED, REMINDED),
    ),
    Library(
        "huey",
        "huey[redis]==3.5.4",
        (("huey_consumer", "shop.huey", "--workers", "2"),),
        says=(MAILED, REMINDED),
    ),
)

QSYNC = {
    "celery": ("default", "mail"),
    "rq": ("default", "mail"),
    "arq": ("default",),
    "dramatiq": ("default", "mail"),
    "huey": ("default", "critical"),
    "asynq": ("default", "critical"),
    "go-qsync": ("critical",),
}
"""The migration guides, each with the queues that its program's servers serve."""

SERVE = """
import asyncio, runpy, sys
from shop import app

async def main():
    async with app.server(queues=sys.argv[2:]):
        await asyncio.to_thread(runpy.run_path, sys.argv[1], run_name="__main__")
        await asyncio.to_thread(sys.stdin.read)  # until the test has seen what it waits for

asyncio.run(main())
"""
"""Runs the server and the client of a program in one process, to save time."""


def expected(name: str) -> Library:
    """Return the expected output of a guide's program."""
    for library in LIBRARIES:
        if library.name == name:
            return library
    said = (MAILED,) if name == "asynq" else ()
    return Library(name, "", (), says=said)


@pytest.mark.parametrize("name", QSYNC)
def test_program_in_qsync_behaves_as_in_the_guide(name: str, tmp_path: Path, valkey: Store) -> None:
    valkey.flush()
    shutil.copytree(PROGRAMS / name / "after", tmp_path, dirs_exist_ok=True)
    client = "buy.py" if (tmp_path / "buy.py").exists() else "shop.py"
    log = tmp_path / "log"
    environment = {**os.environ, "QSYNC_URL": valkey.url, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, client, *QSYNC[name]], cwd=tmp_path, env=environment,
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    library = expected(name)

    def missing() -> list[str]:
        # The output is not split by line, because threads that print at the same time may write
        # both strings before both line ends.
        text = log.read_text()
        return [line for line in (library.prints, *library.says) if line not in text]

    try:
        with contextlib.suppress(AssertionError):  # the assertions below show the log
            wait_until(lambda: not missing() or process.poll() is not None, 30)
    finally:
        process.communicate(timeout=30)
    assert process.returncode == 0, log.read_text()
    assert not missing(), log.read_text()


def test_program_in_qsync_runs_by_the_commands_of_the_guide(tmp_path: Path, valkey: Store) -> None:
    valkey.flush()
    shutil.copytree(PROGRAMS / "celery" / "after", tmp_path, dirs_exist_ok=True)
    worker = [sys.executable, "-m", "qsync", "worker", "shop:app", "--queues", "default,mail"]
    client = [sys.executable, "buy.py"]
    run(tmp_path, [worker], client, expected("celery"), {"QSYNC_URL": valkey.url})


@pytest.mark.parametrize("name", ["celery", "arq"])
def test_tests_of_the_guide_pass_without_a_url(name: str, tmp_path: Path) -> None:
    shutil.copytree(PROGRAMS / name / "after", tmp_path, dirs_exist_ok=True)
    run_tests(tmp_path, sys.executable, {})


def run_tests(folder: Path, python: str, environment: dict[str, str]) -> None:
    """Run `test_shop.py`; it must not use the store that the environment names."""
    unset = {name: value for name, value in os.environ.items() if name != "QSYNC_URL"}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-W", "ignore", "test_shop.py"],
        cwd=folder, env={**unset, **environment}, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def run(
    folder: Path,
    servers: Sequence[Sequence[str]],
    client: Sequence[str],
    library: Library,
    environment: dict[str, str],
) -> None:
    """Run the servers and a client of a program; compare their output with the expected output."""
    environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    logs = [folder / f"server{number}.log" for number in range(len(servers))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, path in zip(servers, logs, strict=True):
            with path.open("wb") as log:
                running.append(
                    subprocess.Popen(
                        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        done = subprocess.run(
            client, cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

        def said() -> str:
            return "\n".join(path.read_text(errors="replace") for path in logs)

        assert done.returncode == 0, done.stderr + said()
        assert done.stdout.splitlines() == [library.prints]
        for line in library.says:
            wait_until(lambda line=line: line in said(), 30)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=30)


def environment_of(library: Library) -> Path:
    """Return the environment for a library; create it if it is missing or has another version of
    the library."""
    folder = ROOT / f".venv-migrate-{library.name}"
    mark = folder / "requirement"
    wanted = [library.requirement, "pytest"]
    if not mark.exists() or mark.read_text().split() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        python = str(folder / "bin" / "python")
        subprocess.run([*pip, "--python", python, "install", *wanted], check=True, timeout=300)
        mark.write_text(" ".join(wanted))
    return folder / "bin"


@pytest.mark.slow  # the test installs the library first
@pytest.mark.timeout(400)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_program_in_the_other_library_does_the_same(
    library: Library, tmp_path: Path, valkey: Store
) -> None:
    valkey.flush()
    programs = environment_of(library)
    shutil.copytree(PROGRAMS / library.name / "before", tmp_path, dirs_exist_ok=True)
    servers = [
        [str(programs / command[0]), *(word.format(url=valkey.url) for word in command[1:])]
        for command in library.servers
    ]
    environment = {"REDIS_URL": f"{valkey.url}/0", "PYTHONPATH": str(tmp_path)}
    run(tmp_path, servers, [str(programs / "python"), "buy.py"], library, environment)
    if (tmp_path / "test_shop.py").exists():
        run_tests(tmp_path, str(programs / "python"), {"REDIS_URL": "redis://127.0.0.1:1"})


# The pages.


@pytest.mark.parametrize("name", QSYNC)
def test_guide_shows_its_programs_and_twenty_equivalents(name: str) -> None:
    page = (GUIDES / f"{name}.md").read_text("utf-8")
    files = {
        path.relative_to(ROOT).as_posix()
        for kind in ("before", "after")
        for path in (PROGRAMS / name / kind).iterdir()
        if path.is_file()
    }
    assert set(includes.files_of(page)) == files
    table = page.split("## Equivalents\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    assert all(row.count(" | ") == 2 for row in rows), "three cells: subject, other library, qsync"
    assert "\n## What changes in meaning\n" in page


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_guide_names_the_version_that_its_program_runs_with(library: Library) -> None:
    page = (GUIDES / f"{library.name}.md").read_text("utf-8")
    version = library.requirement.partition("==")[2]
    assert re.search(rf"^Written for .* {re.escape(version)}\b", page, re.MULTILINE)


def test_versions_compared_are_those_that_are_measured() -> None:
    page = (ROOT / "docs" / "why-not.md").read_text("utf-8")
    [header] = [line for line in page.splitlines() if line.startswith("| | qsync")]
    pins = {pin for peer in PEERS for pin in peer.requirements[:2]}
    for name in (
        "Celery",
        "RQ",
        "arq",
        "Dramatiq",
        "taskiq",
        "taskiq-redis",
        "SAQ",
        "streaQ",
        "Huey",
    ):
        [version] = re.findall(rf"\b{name} ([0-9.]+[0-9])", header)
        assert any(re.fullmatch(rf"{name.lower()}(\[.*\])?=={version}", pin) for pin in pins), name
    [version] = re.findall(r"docket ([0-9.]+[0-9])", header)
    assert f"pydocket=={version}" in pins


def test_included_files_are_those_of_the_tree() -> None:
    assert includes.outdated() == [], "run python -m tools.includes"
