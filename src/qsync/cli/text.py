"""Values as people read them, and as programs do. What comes from the store is escaped here."""

from __future__ import annotations

import getpass
import json
import re
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from qsync.inspector.explain import duration
from qsync.worker.logs import escape

_BEYOND_ASCII: Final = re.compile(r"[^\n -~]")


def print_json(value: Any) -> None:
    """One JSON document on standard output, indented, that sets no terminal off."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    print_out(_BEYOND_ASCII.sub(_all if plain else _unprintable, text))


def _unprintable(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else _all(found)


def _all(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x80 else json.dumps(found[0])[1:-1]


def print_out(text: str) -> None:
    """Text on standard output; what its encoding has not is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text, each of them escaped."""
    return [escape(line.expandtabs()) for line in text.rstrip("\n").split("\n")]


def timestamp(at: datetime | None) -> str:
    """A moment by the local clock, and how long ago or ahead it is."""
    return "" if at is None else f"{clock(at)} ({relative(at)})"


def clock(at: datetime) -> str:
    """A moment by the local clock."""
    try:
        local = at.astimezone()
    except (OverflowError, ValueError):  # of the year 9999, say
        local = at
    return f"{local:%Y-%m-%d %H:%M:%S %Z}"


def relative(at: datetime | None) -> str:
    """`3 min 4 s ago`, `in 2 h`, by the clock of this machine."""
    if at is None:
        return ""
    seconds = (at - datetime.now(UTC)).total_seconds()
    if abs(seconds) < 0.5:
        return "now"
    return f"in {short_duration(seconds)}" if seconds > 0 else f"{short_duration(-seconds)} ago"


def short_duration(seconds: float) -> str:
    """A duration; less than ten seconds to a tenth."""
    return f"{seconds:.1f} s" if 1 <= seconds < 9.95 and seconds % 1 else duration(seconds)


def coarse_duration(seconds: float) -> str:
    """A duration in its largest unit."""
    return " ".join(short_duration(seconds).split(" ")[:2])


def size(count: int | None) -> str:
    """Bytes: `321 B`, `1.2 MiB`; empty when nobody knows."""
    if count is None:
        return ""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{count} B" if unit == "B" else f"{number:,.1f} {unit}"


def tasks(count: int) -> str:
    """`1 task`, `1,234 tasks`."""
    return f"{count:,} task" if count == 1 else f"{count:,} tasks"


def progress(share: tuple[float, float] | None) -> str:
    """`30 %`, of what a handler said."""
    if share is None:
        return ""
    done, total = share
    return f"{done / total:.0%}" if total > 0 else f"{done:g}"


def current_user() -> str:
    """Who sits here: `ann@host`."""
    return f"{fallback('somebody', getpass.getuser)}@{fallback('somewhere', socket.gethostname)}"


def fallback(other: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (OSError, KeyError, ImportError):  # in a container without a user's name
        return other
