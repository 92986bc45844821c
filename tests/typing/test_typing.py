"""The public types are part of the interface, so mypy --strict checks two files that use them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def mypy(name: str) -> str:
    """Run mypy on a file, with the settings of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(HERE / name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_correct_program_is_accepted_with_the_right_types() -> None:
    """Arguments and results have the types of the function, and so does a direct call of a task."""
    assert mypy("accepted.py") == ""


def test_wrong_program_is_refused() -> None:
    """Each wrong line has exactly the errors that its comment lists; no other line has errors."""
    lines = (HERE / "refused.py").read_text().splitlines()
    expected = {
        (number, code)
        for number, line in enumerate(lines, 1)
        if (found := re.search(r"# error: (.+)$", line))
        for code in found[1].split()
    }
    said = re.findall(r"^\S+:(\d+): error: .*\[([a-z-]+)\]$", mypy("refused.py"), re.MULTILINE)
    assert {(int(number), code) for number, code in said} == expected
    assert len(expected) > 20
