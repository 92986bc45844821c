"""Constructs that no file of the package may contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

import qsync
from qsync.broker.script import load

SOURCE: Final = Path(str(files(qsync)))
FILES: Final = sorted(SOURCE.rglob("*.py"))

UNPICKLERS: Final = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"}
RUNNERS: Final = {"eval", "exec", "compile", "__import__"}
IMPORTERS: Final = {
    # Modules that import modules whose names are not in an import statement, and what they import.
    "__init__.py": "modules in the table of public names in that file",
    "server/process_pool_child.py": "modules of handlers that the parent process has registered",
    "worker/load_app.py": "the app's module, which the command line names",
    "cli/main.py": "modules in the table of commands in that file",
    "cli/dashboard.py": "the extra's packages, and the mask that the command line names",
}


def named(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.fixture(params=FILES, ids=named)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


@pytest.mark.guarantee(8)
def test_nothing_is_unpickled_evaluated_or_imported_by_a_name_from_the_store(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in RUNNERS, f"line {node.lineno}"
            if called.endswith(("import_module", "find_spec")):
                constant = isinstance(node.args[0], ast.Constant)
                assert constant or named(path) in IMPORTERS, f"line {node.lineno}"
            assert not any(word.arg == "shell" for word in node.keywords), f"line {node.lineno}"


def test_source_has_no_assert_statement(path: Path) -> None:
    """`python -O` removes assertions, so the package must not rely on them."""
    assert not [node for node in nodes(path) if isinstance(node, ast.Assert)]


def test_random_module_is_used_for_jitter_only(path: Path) -> None:
    for node in nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if "random" in (*names, module):
            assert named(path) == "backoff.py" or named(path).startswith("cli/demo/")


def test_names_of_computed_attributes_have_a_type(path: Path) -> None:
    """`pyright --verifytypes`, which only the release check runs, treats other types as unknown."""
    untyped = [
        f"{path.name}:{node.lineno}"
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "getattr"
        and not any(isinstance(to, ast.Name) and to.id.startswith("_") for to in node.targets)
    ]
    assert not untyped, "give the name an annotation"


def test_only_the_exchanges_send_scripts(path: Path) -> None:
    """Only `exchanges.py` may send scripts, so no other file can build a script from data.

    `protocol.py` looks for the name of the command, to cache the encoded head of a call.
    """
    text = path.read_text("utf-8")
    if named(path) not in ("broker/exchanges.py", "broker/protocol.py"):
        assert not re.search(r"""["']EVAL(SHA)?["']""", text)


@pytest.mark.faults(54)
@pytest.mark.guarantee(8)
def test_scripts_get_data_as_arguments_only() -> None:
    """No script is built from data. The source of a script, and therefore its digest, is always the
    same."""
    for script in (SOURCE / "broker" / "lua").glob("*.lua"):
        assert load(script.stem).text == load.__wrapped__(script.stem).text
        assert "loadstring" not in script.read_text("utf-8")
