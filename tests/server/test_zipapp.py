"""qsync works inside a zip archive, such as a zipapp that contains a program and its
dependencies."""

from __future__ import annotations

import subprocess
import sys
import zipapp
from pathlib import Path

import qsync
from tests.support.stores import Store

PROGRAM = """
import asyncio, sys
import qsync
from qsync.cli.main import app as cli

queue = qsync.Qsync(sys.argv[1], prefix=sys.argv[2])

@queue.task(retention=60, executor="process")
def double(n: int) -> int:
    return 2 * n

async def main() -> None:
    async with queue.server():
        print(qsync.__file__, await (await double.enqueue(21)).result(timeout=30))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_program_in_a_zip_archive_enqueues_and_runs_tasks(
    store: Store, prefix: str, tmp_path: Path
) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "program.pyz"
    package = Path(qsync.__file__).parent
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            to = folder / "qsync" / path.relative_to(package)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    (folder / "program.py").write_text(PROGRAM)
    (folder / "__main__.py").write_text("import asyncio, program\nasyncio.run(program.main())\n")
    zipapp.create_archive(folder, archive)
    done = subprocess.run(
        [sys.executable, archive, store.url, prefix],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == f"{archive}/qsync/__init__.py 42\n", done.stderr
