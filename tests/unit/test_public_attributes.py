"""All type checkers infer the same type for each public attribute, as pyright --verifytypes
requires.

`make release-check` runs pyright itself, on the wheel.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "qsync"


def is_plain(value: ast.expr, parameters: set[str]) -> bool:
    """Return whether all type checkers infer the same type for a value, which holds for literals
    and annotated parameters."""
    return isinstance(value, ast.Constant) or (
        isinstance(value, ast.Name) and value.id in parameters
    )


def assigned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, bool]]:
    """Yield the public attributes that a method sets without an annotation, and whether all type
    checkers infer the same type."""
    parameters = {
        one.arg for one in function.args.args + function.args.kwonlyargs if one.annotation
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    yield target.attr, is_plain(node.value, parameters)


def ambiguous(kind: ast.ClassDef) -> list[str]:
    """Return the public attributes of a class that have no annotation and for which type checkers
    may infer different types."""
    annotated = {
        node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target)
        for node in ast.walk(kind)
        if isinstance(node, ast.AnnAssign)
    }
    properties = {one.name for one in kind.body if isinstance(one, ast.FunctionDef)}
    methods = [one for one in kind.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        name
        for method in methods
        for name, plainly in assigned(method)
        if not plainly and name[0] != "_" and name not in annotated | properties
    ]


def test_public_attributes_are_annotated() -> None:
    found = {
        f"{path.relative_to(SOURCES)}: {kind.name}.{name}"
        for path in SOURCES.rglob("*.py")
        for kind in ast.walk(ast.parse(path.read_text()))
        if isinstance(kind, ast.ClassDef) and kind.name[0] != "_"
        for name in ambiguous(kind)
    }
    assert found == set()
