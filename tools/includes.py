"""python -m tools.includes: copy files of the repository into the documentation pages that show
them.

A page shows a file between two lines:

    <!-- include tests/docs/migrate/celery/before/shop.py -->
    <!-- end of include -->

`--check` lists the pages that are out of date and writes nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
INCLUDE: Final = re.compile(r"(<!-- include (\S+) -->\n).*?(<!-- end of include -->)", re.DOTALL)
KINDS: Final = {".py": "python", ".go": "go", ".service": "ini", ".env": "ini"}
"""Language of a code block, by file suffix."""


def files_of(page: str) -> list[str]:
    """Return the files that a page shows."""
    return [match[2] for match in INCLUDE.finditer(page)]


def generated(page: str) -> str:
    """Return the page with the current content of its files."""

    def shown(match: re.Match[str]) -> str:
        text = (ROOT / match[2]).read_text("utf-8").rstrip("\n")
        kind = KINDS[Path(match[2]).suffix]
        return f"{match[1]}\n```{kind}\n{text}\n```\n\n{match[3]}"

    return INCLUDE.sub(shown, page)


def outdated(*, write: bool = False) -> list[str]:
    """Return the pages whose files have changed; if `write`, also update these pages."""
    names = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text("utf-8")
        if page != (right := generated(page)):
            names.append(path.relative_to(ROOT).as_posix())
            if write:
                path.write_text(right, "utf-8")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.includes")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    names = outdated(write=not check)
    if names and check:
        sys.stdout.write(f"{', '.join(names)}: out of date; run python -m tools.includes\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
