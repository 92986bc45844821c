"""Finds the Python interpreter that runs all peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

WANTED = ("3.12", "3.13")
"""Python versions for which every peer in the table has a release. The first available version is
used."""

_ASK = """
import json, platform, shlex, sys, sysconfig
args = sysconfig.get_config_var("CONFIG_ARGS") or ""
flags = [arg for arg in shlex.split(args) if "/" not in arg]  # paths do not affect the speed
print(json.dumps({
    "program": sys.executable,
    "version": platform.python_version(),
    "implementation": platform.python_implementation(),
    "config_args": flags,
    # Debian builds with a profile without saying so; its own scheme identifies it.
    "pgo": "--enable-optimizations" in args or "deb_system" in sysconfig.get_scheme_names(),
}))
"""


def describe(program: str) -> dict[str, object] | None:
    """Return a description of an interpreter, or None if it does not run."""
    try:
        done = subprocess.run(  # noqa: S603 - a program that the user named, or a known one
            [program, "-c", _ASK], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return None
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None


def choose(named: str | None) -> dict[str, object]:
    """Return the named interpreter, else the first that supports every peer, else the current
    one."""
    if named:
        found = describe(named)
        if found is None:
            raise SystemExit(f"{named}: no such interpreter, or it does not run")
        return found
    for version in WANTED:
        for program in _candidates(version):
            if found := describe(program):
                return found
    found = describe(sys.executable)
    if found is None:
        raise SystemExit(f"{sys.executable}: does not run")
    return found


def _candidates(version: str) -> list[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    return [f"python{version}", *map(str, pyenv.glob(f"{version}.*/bin/python{version}"))]
