"""The documentation site builds, and documents every public name, setting, metric and key."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import qsync
from qsync import ConfigError, Qsync, Task, errors
from qsync.broker.address_options import OPTIONS, SENTINEL_OPTIONS
from qsync.contrib import prometheus
from qsync.keys import QUEUE_KEYS
from qsync.server.config import Config
from tools import cli_reference, docstring_columns, settings_reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "qsync"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
API = PAGES["reference/api.md"]
ERRORS = PAGES["reference/errors.md"]

PUBLIC = (
    "__init__.py",
    "testing/__init__.py",
    "web/__init__.py",
    "inspector/__init__.py",
    *sorted(
        path.relative_to(PACKAGE).as_posix()
        for path in (*PACKAGE.glob("contrib/*.py"), *PACKAGE.glob("contrib/*/__init__.py"))
        if path != PACKAGE / "contrib" / "__init__.py"
    ),
)
"""Files of the modules that have public names."""


def module_of(file: str) -> str:
    """Return the dotted name of the module in a file."""
    path = Path(file).with_suffix("")
    parts = path.parts[:-1] if path.name == "__init__" else path.parts
    return ".".join(("qsync", *parts))


def public_names(file: str) -> list[str]:
    """Return `__all__` of a module without importing the module, since its extra may not be
    installed."""
    for node in ast.parse((PACKAGE / file).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def documented(page: str) -> set[str]:
    """Return the names whose docstrings the site shows on a page."""
    return set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site and return its folder. Any warning makes the build fail."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    assert {name for name in PAGES if not (site / name).with_suffix(".html").exists()} == {
        "design/README.md"  # an index.html
    }
    assert (site / "design" / "index.html").exists()


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    loading = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if loading.search(page.read_text("utf-8"))] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()[\s\"']*(?:https?:)?//", style.read_text("utf-8"))


def test_search_finds_an_option_and_an_error(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    for word, page in (("fairness_key", "reference/settings.html"), ("QueueFull", "guide.html")):
        found = {entry["location"] for entry in index["docs"] if word in entry["text"]}
        assert any(location.startswith(page) for location in found), found


def test_llms_txt_lists_every_page_with_its_markdown(site: Path) -> None:
    text = (site / "llms.txt").read_text("utf-8")
    assert text.startswith("# qsync\n\n> ")
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S.*$", text, re.MULTILINE)
    assert set(PAGES) <= set(listed)
    pages = {name: (site / name).read_text("utf-8") for name in listed}
    assert all(page.startswith("# ") for page in pages.values())
    assert [name for name, page in pages.items() if documented(page)] == []
    api = pages["reference/api.md"]
    assert {f"### {name}" for name in documented(API)} <= set(api.splitlines())
    assert "#### AsyncClient.enqueue\n\n```python\nasync def enqueue(" in api
    assert "* `patience`: how long clients retry" in api
    assert "### qsync.StoreUnavailable\n" in pages["reference/errors.md"]


def test_every_documented_name_is_shown(site: Path) -> None:
    api = (site / "reference" / "api.html").read_text("utf-8")
    shown = set(re.findall(r'id="([\w.]+)"', api))
    assert documented(API) <= shown
    assert "qsync.Client.enqueue" in shown


def test_repository_is_that_of_the_package() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert f"repository: {urls['Repository']} " in config


# Documented names.


@pytest.mark.parametrize("file", PUBLIC)
def test_every_public_name_is_documented(file: str) -> None:
    names = public_names(file)
    assert names, f"{file} has no __all__"
    pages = documented(API) | documented(ERRORS)
    aliases = {f"qsync.{name}" for name in qsync.__all__}
    missing = {f"{module_of(file)}.{name}" for name in names} - pages
    missing = {name for name in missing if f"qsync.{name.rpartition('.')[2]}" not in aliases}
    assert missing == set(), f"add ::: {missing} to docs/reference/api.md"


def test_every_error_is_documented() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, qsync.QsyncError)
    }
    assert documented(ERRORS) - {"qsync.errors"} == {f"qsync.{name}" for name in classes}
    assert classes <= set(re.findall(r"\w+", errors.__doc__ or ""))


def test_every_command_has_a_section() -> None:
    headings = set(re.findall(r"^##+ (qsync.*)$", PAGES["cli.md"], re.MULTILINE))
    commands = {path for path, _ in cli_reference.commands()} - {"qsync"}
    assert headings == commands


def test_settings_are_those_of_the_code() -> None:
    page = PAGES["reference/settings.md"]
    right = settings_reference.generated(page)
    assert page == right, "run python -m tools.settings_reference"


def test_every_option_of_app_server_and_task_is_described() -> None:
    app = set(inspect.signature(Qsync).parameters) - {"url", "server"}
    assert set(settings_reference.parameters(Qsync)) == app
    assert set(settings_reference.server_options()) == {one.name for one in fields(Config)}
    task = set(inspect.signature(Task).parameters) - {"type", "payload"}
    assert set(settings_reference.parameters(Task)) == task


def test_every_option_of_a_worker_is_in_the_command_line() -> None:
    options = settings_reference.worker_options()
    assert len(options) > 20
    assert options <= set(re.findall(r"--[a-z][a-z-]+", PAGES["cli.md"]))


def test_commands_in_the_docs_have_only_options_that_a_worker_has() -> None:
    reference = PAGES["cli.md"].split("\n## qsync worker\n")[1].split("\n## ")[0]
    known = set(re.findall(r"--[a-z][a-z-]+", reference))
    commands = [
        (page, command)
        for page, text in PAGES.items()
        for command in re.findall(r"^\$ qsync worker [^#|\n]*", text, re.MULTILINE)
    ]
    assert len(commands) > 3
    for page, command in commands:
        unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", command)) - known
        assert not unknown, f"{page}: {command}"


def test_every_option_of_a_url_is_described() -> None:
    page = PAGES["addresses.md"]
    named = set(re.findall(r"`([a-z_]+)`", page))
    assert set(OPTIONS) <= named
    assert {
        name
        for name in SENTINEL_OPTIONS
        if name not in named and not name.startswith("sentinel_ssl_")
    } == set()


def test_every_environment_variable_is_described() -> None:
    sources = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r"\bQSYNC_[A-Z_]+\b", sources)) - {"QSYNC_DEMO"}  # between its processes
    assert used <= set(re.findall(r"`(QSYNC_[A-Z_]+)`", PAGES["reference/settings.md"]))


def test_every_metric_is_described() -> None:
    families = [
        *prometheus.server_metrics([], []),
        *prometheus.worker_metrics(0),
        *prometheus.store_metrics(None),
    ]
    names = {one.name + ("_total" if one.type == "counter" else "") for one in families}
    assert len(names) > 20
    described = re.findall(r"^\| `(qsync_\w+)` \|", PAGES["operations.md"], re.MULTILINE)
    assert set(described) == names


def test_every_key_of_a_queue_is_described() -> None:
    assert {
        name for name in QUEUE_KEYS if f"`{name}`" not in PAGES["design/data-model.md"]
    } == set()


# Parsing of docstrings.


def test_columns_of_a_docstring_become_a_list() -> None:
    text = "Do it.\n\nqueue  name of\n       the queue\nretry_delay time\n\nNot a column  here."
    assert docstring_columns.all_rows(text) == {}
    assert docstring_columns.all_rows("a  one\nlong_name\n   two") == {
        "a": "one",
        "long_name": "two",
    }
    text = "Do it.\n\nqueue        name of\n             the queue\nretry_delay  time\n\nThe end."
    assert docstring_columns.all_rows(text) == {"queue": "name of the queue", "retry_delay": "time"}
    assert docstring_columns.to_markdown(text) == (
        "Do it.\n\n* `queue`: name of the queue\n* `retry_delay`: time\n\nThe end."
    )


def test_settings_without_a_mark_are_refused() -> None:
    with pytest.raises(ValueError, match="the page has no line"):
        settings_reference.generated("# Settings\n")
    assert issubclass(ConfigError, ValueError)
