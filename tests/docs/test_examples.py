"""The examples and the README's first program run unchanged."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qsync import TaskFailed
from qsync.bounds import Bounds
from tests.support.stores import Store, wait_until, wait_until_async

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def python(
    *arguments: str, folder: Path, url: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder; environment variables name the store."""
    environment = {**os.environ} if url is None else {**os.environ, "QSYNC_URL": url}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_hello_example_runs(tmp_path: Path) -> None:
    done = python(str(EXAMPLES / "hello.py"), folder=tmp_path, url="embedded://")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "12 bytes"


def test_throughput_example_runs(tmp_path: Path) -> None:
    done = python(str(EXAMPLES / "throughput.py"), "5000", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d tasks/s$", done.stdout, re.MULTILINE)) == 4


def test_shop(tmp_path: Path, valkey: Store) -> None:
    url = valkey.url
    worker = subprocess.Popen(
        [sys.executable, "-m", "qsync", "worker", "shop:app", "--queues", "default=3,lower=1"],
        cwd=EXAMPLES,
        env={**os.environ, "QSYNC_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        done = python("shop_client.py", folder=EXAMPLES, url=url)
        assert done.returncode == 0, done.stderr
        sent, digest = done.stdout.split("\n")[:2]
        assert sent == "invoice 7 sent on attempt 1"
        assert len(digest) == 64
    finally:
        worker.terminate()
        said, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0, said


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_first_program_of_the_readme_runs(name: str, tmp_path: Path, valkey: Store) -> None:
    """The program runs unchanged except for the address and shorter times."""
    text = (ROOT / name).read_text("utf-8")
    program = re.search(r"```python\n(import asyncio.*?)```", text, re.DOTALL)
    assert program is not None
    source = (
        program[1]
        .replace("redis://localhost:6379", valkey.url)
        .replace("delay=30", "delay=0.2")
        .replace("asyncio.sleep(60)", "asyncio.sleep(2)")
    )
    (tmp_path / "program.py").write_text(source)
    done = python("program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" b'task payload'\n")
    with valkey.client() as client:
        wait_until(lambda: not client.zcard("{alnovi:default}:pending"))


def example(name: str, prefix: str, url: str) -> Any:
    """Return an example as a module, with an app on this store."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSYNC_URL", url)
        patch.setenv("QSYNC_PREFIX", prefix)
        spec.loader.exec_module(module)
    return module


def test_batch_example_runs(prefix: str, valkey: Store) -> None:
    """The program in docs/batches.md inserts all rows; only the task with the wrong payload is
    dead."""
    module = example("batch", prefix, valkey.url)

    async def main() -> None:
        async with module.app:
            wrong = await module.insert_visits.enqueue({"page": "/", "seconds": "long"})
            for number in range(250):
                await module.note(f"/{number}", number / 10)
            async with module.app.server(shutdown_timeout=5):
                query = "select count(*), max(seconds) from visits"
                await wait_until_async(
                    lambda: module.database.execute(query).fetchone() == (250, 24.9)
                )
                with pytest.raises(TaskFailed, match="seconds"):
                    await wrong.result(10)

    asyncio.run(main())


def test_bounds_example_runs(prefix: str, valkey: Store) -> None:
    """The program in docs/bounds.md runs, here with lower bounds."""
    module = example("bounds", prefix, valkey.url)
    app = module.app
    app.bounds = {
        "mail": Bounds(max_tasks=3), "positions": Bounds(max_tasks=2, when_full="drop_oldest"),
    }  # fmt: skip

    async def main() -> None:
        async with app, app.inspector() as inspector:
            async with app.server(queues=["other"]):
                assert await module.newsletter([1, 2]) == []
                assert await module.order(3) == "sent"
                assert await module.order(4) == "try again later: max_tasks of queue mail is 3"
            assert await inspector.purge("mail", "pending")
            assert await module.newsletter(list(range(5))) == [3, 4]
            for car in range(5):
                await module.move.enqueue(car, (0.0, 1.0))
            info = await inspector.queue("positions")
            assert (info.states["pending"], info.counters["dropped"]) == (2, 3)

    asyncio.run(main())
