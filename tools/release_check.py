"""python -m tools.release_check: check the files that a release would upload.

The program builds sdist and wheel twice, compares the builds byte by byte, and checks their
contents and metadata. It installs the bare wheel into a new environment, and runs the README's
first program there. Finally, it runs pyright and mypy on the wheel's types and on the examples, and
checks the licences of all dependencies. `make release-check` runs it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from qsync.embedded import Embedded

ROOT: Final = Path(__file__).parents[1]
NAME: Final = "qsync-py"

FREE: Final = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|LGPL|MPL|Mozilla|Unlicense)\b",
    re.I,
)
"""Licences that a dependency may have."""

NEEDED: Final = (
    "qsync/py.typed", "qsync/broker/lua/fetch.lua", "qsync/broker/lua/include/clock.lua",
    "qsync/web/templates/base.html", "qsync/web/static/style.css",
)  # fmt: skip
"""Samples of the files other than Python modules that the wheel must contain."""


OWN: Final = ("qsync/", "pytest_qsync/", "qsync_py-")
"""Prefixes that the names of files in the wheel may have."""

CHECKERS: Final = ("pyright", "mypy", "django-stubs", "flask", "litestar", "httpx", "pytest")
"""Packages that the type check needs in addition to the extras."""


class Wrong(Exception):
    """Raised for a fault that must not be released; the message describes the fault."""


def build(target: Path) -> list[Path]:
    """Build sdist and wheel from the source tree into a folder; return both, sorted by name."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT))
    return sorted(target.iterdir())


def build_from(sdist: Path, target: Path) -> Path:
    """Build the wheel from an sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target / "tree", filter="data")
    [tree] = (target / "tree").iterdir()
    command = ("build", "--no-isolation", "--wheel", "--outdir", str(target), str(tree))
    _run(sys.executable, "-m", *command)
    [wheel] = target.glob("*.whl")
    return wheel


def check_equal(first: Iterable[Path], second: Iterable[Path]) -> None:
    """Raise Wrong if files differ in name or content."""
    one, two = ({path.name: _digest(path) for path in paths} for paths in (first, second))
    if one != two:
        names = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        raise Wrong(f"two builds differ in {', '.join(names)}")


def check_wheel(wheel: Path) -> None:
    """Raise Wrong if the wheel lacks a file or contains a file that belongs only in the
    repository."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if missing := [name for name in NEEDED if name not in names]:
        raise Wrong(f"the wheel lacks {', '.join(missing)}")
    if strange := [name for name in names if not name.startswith(OWN)]:
        raise Wrong(f"the wheel has {', '.join(strange)}")


def check_licences(extras: Iterable[str] | None = None) -> list[str]:
    """Return the dependencies with their licences; raise Wrong if a licence is not allowed.

    If `extras` is None, include all extras. The function looks up the dependencies in this
    environment, where they are installed.
    """
    if extras is None:
        extras = metadata.metadata(NAME).get_all("Provides-Extra") or ()
    lines = []
    for name in sorted(dependencies(NAME, extras) - {NAME}):
        licence = licence_of(name)
        if not FREE.search(licence):
            raise Wrong(f"{name} has the licence {licence or 'unknown'}")
        lines.append(f"{name}: {licence}")
    return lines


def dependencies(name: str, extras: Iterable[str] = ()) -> set[str]:
    """Return the names of a distribution and of all its installed requirements, including those of
    the extras."""
    found: set[str] = set()
    pending = [(name, tuple(extras))]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while pending:
        asked = pending.pop()
        if asked in seen:
            continue
        seen.add(asked)
        found.add(asked[0])
        for text in metadata.requires(asked[0]) or ():
            needs = Requirement(text)
            marker = needs.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *asked[1])):
                pending.append((_normal(needs.name), tuple(sorted(needs.extras))))
    return found


def licence_of(name: str) -> str:
    """Return the licence in the metadata of a distribution, in one line."""
    about = metadata.metadata(name)
    classifiers = [
        one.rpartition(" :: ")[2]
        for one in about.get_all("Classifier") or ()
        if one.startswith("License :: ")
    ]
    text = about["License-Expression"] or ", ".join(classifiers) or about["License"] or ""
    return " ".join(text.split())[:80]


def check_installed(wheel: Path, folder: Path) -> None:
    """Install the bare wheel into a new environment; run the README's first program."""
    python = folder / "env" / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder / "env"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(*pip, "--python", str(python), "install", str(wheel))
    _run(str(python.with_name("qsync")), "--version", cwd=folder)
    readme = (ROOT / "README.md").read_text("utf-8")
    [program] = re.findall(r"```python\n(import asyncio.*?)```", readme, re.DOTALL)
    store = Embedded(folder / "store")
    try:
        text = program.replace("redis://localhost:6379", f"unix://{store.start()}")
        (folder / "tasks.py").write_text(text, "utf-8")
        said = _run(str(python), "-W", "error", "tasks.py", cwd=folder)
    finally:
        store.close()
    if "b'task payload'" not in said:
        raise Wrong(f"the README's first program printed {said!r}")


def check_types(wheel: Path, folder: Path) -> str:
    """Install the wheel with all extras. Raise Wrong if a public name has no declared type or an
    example has a type error; otherwise, return pyright's report on the public names.
    """
    python = folder / "types" / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder / "types"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    extras = ",".join(metadata.metadata(NAME).get_all("Provides-Extra") or ())
    _run(*pip, "--python", str(python), "install", f"{wheel}[{extras}]", *CHECKERS)
    examples = folder / "examples"
    shutil.copytree(ROOT / "examples", examples)
    inside = {**os.environ, "VIRTUAL_ENV": str(folder / "types")}
    inside["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    pyright = str(python.with_name("pyright"))
    _run(pyright, str(examples), cwd=folder, env=inside)
    for program in sorted(examples.glob("*.py")):
        _run(str(python.with_name("mypy")), "--strict", program.name, cwd=examples, env=inside)
    said = _run(pyright, "--verifytypes", "qsync", "--ignoreexternal", cwd=folder, env=inside)
    return said.partition("Type completeness score:")[2].strip().partition("\n")[0]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(*command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a command; return its output, or raise Wrong with the output if it fails."""
    done = subprocess.run(  # noqa: S603 - programs of this tree
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Wrong(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    say = sys.stdout.write
    with tempfile.TemporaryDirectory(prefix="qsync-release-") as name:
        folder = Path(name)
        try:
            first, second = build(folder / "first"), build(folder / "second")
            check_equal(first, second)
            [sdist] = [path for path in first if path.name.endswith(".tar.gz")]
            [wheel] = [path for path in first if path.suffix == ".whl"]
            (folder / "third").mkdir()
            check_equal([wheel], [build_from(sdist, folder / "third")])
            say(f"built twice, and the wheel also from the sdist: {sdist.name}, {wheel.name}\n")
            check_wheel(wheel)
            _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, first))
            say("contents and metadata are right\n")
            check_installed(wheel, folder)
            say("the bare wheel runs the README's first program\n")
            say(f"declared types of public names: {check_types(wheel, folder)}\n")
            for line in check_licences():
                say(f"  {line}\n")
        except Wrong as error:
            say(f"{error}\n")
            return 1
    say("ready to be released\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
