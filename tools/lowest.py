"""python tools/lowest.py: print the lowest releases of dependencies that pyproject.toml allows.

The releases for the package and its extras are printed as arguments for pip. The program needs no
installed packages.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT: Final = re.compile(r"([A-Za-z0-9_.-]+(?:\[[^]]+\])?)>=([0-9.]+)[^;]*(?:;.*)?")


def lowest() -> list[str]:
    """Return each requirement with the lowest release that it allows."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    pins = []
    for text in (*project["dependencies"], *(one for extra in extras for one in extra)):
        match = REQUIREMENT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text}: has no lowest release (>=)")
        pins.append(f"{match[1]}=={match[2]}.*")
    return list(dict.fromkeys(pins))


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest()) + "\n")
