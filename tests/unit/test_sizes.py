"""Files and functions stay small, and class names are unique."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "src" / "qsync"

FILE_LINES: Final = 450
"""Maximum number of lines of a file."""

FUNCTION_LINES: Final = 40
"""Maximum number of lines of a function, without its signature and decorators."""

LONG_FILES: Final[dict[str, int]] = {}
"""Files that are still too long, with their numbers of lines; the list may only shrink."""

LONG_FUNCTIONS: Final = {}
"""Functions that are still too long, with their numbers of lines; the list may only shrink."""

SHARED_NAMES: Final = {"Meta", "Migration", "Schedule", "Task"}
"""Names that more than one class may have: Django's conventions, and the Django models of a
schedule and a task."""


def long_files() -> dict[str, int]:
    """Return the files that are too long, with their numbers of lines."""
    sizes = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    return {name: lines for name, lines in sizes.items() if lines > FILE_LINES}


def long_functions() -> dict[str, int]:
    """Return the functions that are too long, with their numbers of lines."""
    long: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        pending: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text("utf-8")))]
        while pending:
            prefix, parent = pending.pop()
            for node in ast.iter_child_nodes(parent):
                name = getattr(node, "name", None)
                inner = f"{prefix}{name}." if isinstance(name, str) else prefix
                pending.append((inner, node))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                    if lines > FUNCTION_LINES:
                        long[f"{file}: {prefix}{name}"] = lines
    return long


def grown(now: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """Return files or functions that are too long or have grown, and entries of the list that are
    obsolete."""
    news = [
        f"{name} has {lines} lines" for name, lines in now.items() if lines > allowed.get(name, 0)
    ]
    return news + [f"{name} is short enough: take it off the list" for name in allowed.keys() - now]


def test_no_file_is_too_long() -> None:
    assert grown(long_files(), LONG_FILES) == []


def test_no_function_is_too_long() -> None:
    assert grown(long_functions(), LONG_FUNCTIONS) == []


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == SHARED_NAMES
