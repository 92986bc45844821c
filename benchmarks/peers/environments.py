"""Creates an environment for each peer, and recreates it when the peer's pinned versions or the
interpreter change."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.shared import ENVIRONMENTS, ROOT
from benchmarks.peers.table import QSYNC, Peer

PATIENCE = 300
"""Time limit for each step of an installation, in seconds."""


class CannotInstall(Exception):
    """Raised if a peer cannot be installed on this machine; the message gives the reason."""


def program(peer: Peer, name: str) -> Path:
    """Return the path of a program in the peer's environment."""
    return ENVIRONMENTS / peer.folder / "bin" / name


def install(peer: Peer, python: str) -> dict[str, str]:
    """Install the requirements in the table; return the versions of all installed packages by
    name."""
    folder = ENVIRONMENTS / peer.folder
    mark = folder / "installed.json"
    wanted = {"python": python, "requirements": list(peer.requirements)}
    if not mark.exists() or json.loads(mark.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        _run([python, "-m", "venv", "--without-pip", str(folder)])
        _pip(peer, "install", "--quiet", "--prefer-binary", *_packages(peer))
        if peer.folder == QSYNC:
            _pip(peer, "install", "--quiet", *peer.requirements)
        mark.write_text(json.dumps(wanted))
    elif peer.name == QSYNC:  # install qsync again, to measure the current code
        _pip(peer, "install", "--quiet", "--force-reinstall", "--no-deps", str(ROOT))
    listed = json.loads(_pip(peer, "list", "--format", "json"))
    return {one["name"].lower().replace("_", "-"): one["version"] for one in listed}


def _packages(peer: Peer) -> list[str]:
    return [one for one in peer.requirements if not one.startswith(str(ROOT))]


def _pip(peer: Peer, *words: str) -> str:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    return _run([*pip, "--python", str(program(peer, "python")), *words])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - pip, and a Python that the user chose
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"not done within {PATIENCE} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise CannotInstall(said[-1].strip()[-300:] or f"exit status {done.returncode}")
    return done.stdout
