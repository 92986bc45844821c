"""The Lua scripts, read once from their files.

A script names its keys in its header, so that an operation only says which queue it is about:

    -- KEYS[1] tasks     hash   id -> message

and the shared pieces that it needs, which are put before it:

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
_INCLUDE: Final = re.compile(r"^-- include: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the store runs it."""

    name: str
    text: str
    sha: str
    keys: tuple[str, ...]


def read(path: str) -> str:
    """The text of a file, `<verb>.lua` or `include/<piece>.lua`.

    What `load` reads goes through here, so that a test can plant a mistake in one.
    """
    return (files("qsync.broker") / "lua" / path).read_text("utf-8")


@cache
def load(name: str, *, allow_oom: bool | None = None) -> Script:
    """Read a script; `allow_oom` sets that flag otherwise than its file does."""
    shebang, body = read(f"{name}.lua").split("\n", 1)
    if allow_oom is not None:
        shebang = "#!lua flags=allow-oom" if allow_oom else "#!lua"
    includes = [
        read(f"include/{piece}.lua") for found in _INCLUDE.findall(body) for piece in found.split()
    ]
    text = "\n".join([shebang, *map(_code, includes), _code(body)])
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha, tuple(_KEY.findall(body)))


def _code(source: str) -> str:
    """The source without its comment lines: what travels to the store need not carry them."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))
