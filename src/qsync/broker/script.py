"""The Lua scripts, read once from their files.

The header of a script names its keys, so that an operation only needs to name its queue:

    -- KEYS[1] tasks     hash   id -> message

and the shared includes that are put in front of it:

    -- include: clock wake
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_KEY: Final = re.compile(r"^-- KEYS\[\d+\] (\w+)", re.MULTILINE)
_NOW: Final = re.compile(r"^-- ARGV\[1\] now ", re.MULTILINE)
_INCLUDE: Final = re.compile(r"^-- include: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the store runs it: includes and code, without comment lines."""

    name: str
    text: str
    sha: str
    keys: tuple[str, ...]
    timed: bool = False
    """Whether the first argument is the time, empty for the store's clock."""


def read(path: str) -> str:
    """Return the text of a file, `<verb>.lua` or `include/<name>.lua`.

    `load` reads every file through this function, so that a test can plant a mistake in one.
    """
    return (files("qsync.broker") / "lua" / path).read_text("utf-8")


@cache
def load(name: str, *, allow_oom: bool | None = None) -> Script:
    """Read a script; `allow_oom` overrides that flag of the file."""
    shebang, body = read(f"{name}.lua").split("\n", 1)
    if allow_oom is not None:
        shebang = "#!lua flags=allow-oom" if allow_oom else "#!lua"
    includes = [
        read(f"include/{piece}.lua") for found in _INCLUDE.findall(body) for piece in found.split()
    ]
    text = "\n".join([shebang, *map(_code, includes), _code(body)])
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha, tuple(_KEY.findall(body)), _NOW.search(body) is not None)


def _code(source: str) -> str:
    """Remove the comment lines, so that they are not sent to the store."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))
