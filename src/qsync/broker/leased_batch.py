"""Reads the part of a fetch's reply that describes the leased tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final


def spared_crashes(ids: list[bytes], crashes: list[bytes | None]) -> dict[str, int]:
    """Return a dict from task ids to the number of crashes that did not count against the task;
    tasks without such crashes are left out."""
    counts = {}
    for id, text in zip(ids, crashes, strict=True):
        if text and (match := _SPARED.match(text)):
            counts[id.decode()] = int(match[1])
    return counts


def runnable_times(ids: list[bytes], texts: list[bytes | None]) -> dict[str, int]:
    """Return a dict from task ids to the time in each text `@<us>`. Skip other texts, which hold
    progress."""
    return {
        id.decode(): int(text[1:])
        for id, text in zip(ids, texts, strict=True)
        if text and text[:1] == b"@" and text[1:].isdigit() and len(text) < 18
    }


def only_tasks(ids: Any, *beside: Any) -> Iterator[list[Any]]:
    """Return the lists of a batch, padded to equal length; leave out entries whose id is not a
    valid task id.

    qsync never creates invalid ids, only other programs do. Recovery deletes such ids once their
    lease expires.
    """
    lists = [ids, *(column or [None] * len(ids) for column in beside)]
    together = b"".join(ids).decode(errors="replace")
    if not (together.isascii() and together.isprintable() and " " not in together and all(ids)):
        good = [index for index, id in enumerate(ids) if _PRINTABLE.fullmatch(id)]
        lists = [[column[index] for index in good] for column in lists]
    return iter(lists)


def crash_count(text: bytes | None) -> int:
    """Return the number at the start of a crash count; 0 if there is none."""
    match = _NUMBER.match(text) if text else None
    return int(match[0]) if match else 0


_NUMBER: Final = re.compile(rb"\d{1,16}")
_SPARED: Final = re.compile(rb"\d+~(\d{1,6})")
_PRINTABLE: Final = re.compile(rb"[!-~]+")
