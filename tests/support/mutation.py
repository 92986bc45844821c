"""Plants mistakes in scripts, to prove that a test catches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qsync.broker import script


@contextmanager
def planted(path: str, right: str, wrong: str) -> Iterator[None]:
    """During the block, replace `right` with `wrong` in a script file such as `kill.lua` or
    `include/lock.lua`.

    The text `right` must occur exactly once in the file. The mistake affects only this process, and
    only calls that are created inside the block. Blocks can be nested, even for the same file.
    """
    read = script.read
    text = read(path)
    if text.count(right) != 1:
        raise ValueError(f"{path} holds {text.count(right)} times: {right}")

    mistaken = {path: text.replace(right, wrong)}
    script.read = lambda path: mistaken.get(path) or read(path)
    script.load.cache_clear()
    try:
        yield
    finally:
        script.read = read
        script.load.cache_clear()
