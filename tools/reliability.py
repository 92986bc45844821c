"""python -m tools.reliability: list the tests of each guarantee and fault in docs/reliability.md.

The marks `faults` and `guarantee` are read from the source of the tests, so a deleted test
disappears from the page. `--check` prints the problems and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.faults import FAULTS, GUARANTEES, LEFT_OUT, OPTIONAL

TOOLS: Final = Path(__file__).parent
TESTS: Final = TOOLS.parent / "tests"
PAGE: Final = TOOLS.parent / "docs" / "reliability.md"
MUTANTS: Final = TOOLS / "mutants.json"
MARKS: Final = {"faults": FAULTS, "guarantee": GUARANTEES}


@dataclass(frozen=True)
class Shown:
    """A test and its marks."""

    test: str
    """Path relative to the tests folder, and name: `file::name`."""
    slow: bool
    faults: tuple[int, ...]
    guarantee: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"`{self.test}`{' (soak)' if self.slow else ''}"


def marked(folder: Path = TESTS) -> list[Shown]:
    """Return all tests that have one of the marks, in the order of files and lines."""
    found: list[Shown] = []
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text("utf-8")
        if not any(name in text for name in MARKS):
            continue
        tree = ast.parse(text)
        of_module = list(_marks(_pytestmark(tree)))
        for node in tree.body:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and node.name.startswith("test_"):
                marks = [*of_module, *_marks(node.decorator_list)]
                rows = {
                    name: tuple(
                        sorted({row for mark, args in marks if mark == name for row in args})
                    )
                    for name in MARKS
                }
                if rows["faults"] or rows["guarantee"]:
                    slow = any(mark == "slow" for mark, _ in marks)
                    name = f"{path.relative_to(folder).as_posix()}::{node.name}"
                    found.append(Shown(name, slow, **rows))
    return found


def _pytestmark(tree: ast.Module) -> list[ast.expr]:
    """Return the expressions of `pytestmark = ...`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            value = node.value
            return value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    return []


def _marks(nodes: Sequence[ast.expr]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the numbers of each `pytest.mark.name(...)`."""
    for node in nodes:
        function = node.func if isinstance(node, ast.Call) else node
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "pytest.mark":
            known = isinstance(node, ast.Call) and function.attr in MARKS
            args = [ast.literal_eval(arg) for arg in node.args] if known else []  # type: ignore[attr-defined]
            yield function.attr, tuple(args)


def wrong(shown: Sequence[Shown]) -> list[str]:
    """Return the problems with the marks: unknown rows, and rows without a test."""
    found = [
        f"{one.test}: unknown {name} {row}"
        for one in shown
        for name, known in MARKS.items()
        for row in getattr(one, name)
        if row not in known
    ]
    faults = {row for one in shown for row in one.faults}
    guarantees = {number for one in shown for number in one.guarantee}
    found += [f"fault {row} has no test" for row in missing(faults)]
    found += [f"guarantee {n} has no test" for n in GUARANTEES if n not in guarantees]
    found += [
        f"fault {row} has both a test and a reason for having none"
        for row in LEFT_OUT
        if row in faults
    ]
    return found


def missing(faults: set[int]) -> list[int]:
    """Return the rows that need a test but have neither a test nor a reason for having none."""
    return [row for row in FAULTS if row not in faults | OPTIONAL | LEFT_OUT.keys()]


def table(words: Mapping[int, str], shown: Sequence[Shown], name: str, head: str) -> str:
    """Return a table of these rows, each with its tests."""
    lines = [f"| | {head} | shown by |", "|---|---|---|"]
    for row, text in words.items():
        tests = [one.label for one in shown if row in getattr(one, name)]
        reason = LEFT_OUT.get(row, "") if name == "faults" else ""
        if tests or reason:
            cell = "<br>".join(tests) or f"no test: {reason}"
            lines.append(f"| {row} | {text} | {cell} |")
    return "\n".join(lines)


def mutants(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of planted mistakes from the last search."""
    lines = ["| mistake | found by | attempts | symptom |", "|---|---|---|---|"]
    for record in records:
        seen = str(record["seen"]).replace("|", "\\|")
        lines.append(f"| {record['mistake']} | {record['by']} | {record['needed']} | {seen} |")
    return "\n".join(lines)


def filled(page: str, parts: Mapping[str, str]) -> str:
    """Return the page with each part inserted between its marker lines."""
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{PAGE.name} lacks the markers of {name}")
        page = f"{before}{begin}\n{text}\n\n{end}{after}"
    return page


def generated(page: str) -> str:
    """Return the page with its generated parts updated."""
    shown = marked()
    return filled(
        page,
        {
            "guarantees": table(GUARANTEES, shown, "guarantee", "guarantee"),
            "faults": table(FAULTS, shown, "faults", "fault"),
            "mistakes": mutants(json.loads(MUTANTS.read_text("utf-8"))),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.reliability")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    found = wrong(marked())
    page = PAGE.read_text("utf-8")
    if not options.check:
        PAGE.write_text(generated(page), "utf-8")
    elif generated(page) != page:
        found.append(f"{PAGE.name} does not match the marks; run python -m tools.reliability")
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
