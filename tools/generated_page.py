"""Writes documentation pages in which everything below a marker line is generated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def replaced(page: str, mark: str, text: str) -> str:
    """Return the page with the text in place of everything below the marker line."""
    head, found, _ = page.partition(mark)
    if not found:
        raise ValueError(f"the page has no line {mark}")
    return f"{head}{mark}\n{text}\n"


def write_or_check(program: str, path: Path, mark: str, text: str) -> int:
    """Write the page. With --check, write nothing; if the page is out of date, print the command to
    run and return 1."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--check", action="store_true")
    page = path.read_text("utf-8")
    right = replaced(page, mark, text)
    if not parser.parse_args().check:
        path.write_text(right, "utf-8")
    elif page != right:
        sys.stdout.write(f"{path.name} is out of date; run {program}\n")
        return 1
    return 0
