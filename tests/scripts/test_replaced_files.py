"""Scripts of a process whose installed files are replaced, e.g. by an in-place upgrade."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import qsync

PROGRAM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from qsync.broker import script
script.load("enqueue_one")
folder = pathlib.Path(script.__file__).with_name("lua")
before = {path.stem: path.read_text() for path in folder.glob("*.lua")}
for path in folder.rglob("*.lua"):
    path.write_text("later version")
script.load("fetch", flow=True)
script.load("complete")
print(len(before), all(script.read(f"{name}.lua") == text for name, text in before.items()))
"""


def test_scripts_are_those_of_the_version_that_the_process_started_with(tmp_path: Path) -> None:
    shutil.copytree(Path(qsync.__file__).parent, tmp_path / "qsync")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    count, unchanged = result.stdout.split()
    assert int(count) > 50
    assert unchanged == "True"
