"""Plant a mistake in a script, to see that a test catches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qsync.broker import script


@contextmanager
def planted(path: str, right: str, wrong: str) -> Iterator[None]:
    """Inside, the file (`kill.lua`, `include/lock.lua`) says `wrong` where it says `right`.

    `right` must be there once. Holds for this process, and for calls that are made inside. Another
    mistake may be planted beside it, in the same file too.
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
