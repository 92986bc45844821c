"""Limits of a child process of `qsync worker`, after which its parent replaces it."""

from __future__ import annotations

import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qsync.errors import ConfigError
from qsync.phrase import phrase

LIMITS_CHECK_S: Final = 0.25
"""Interval at which a child checks its limits, in seconds."""

REPORT_AGAIN_S: Final = 10.0
"""Interval at which a child that has reached a limit reports it again, in seconds."""

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_UNITS: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_STATM: Final = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Limits:
    """Number of tasks, and memory in bytes, at which a process is replaced; None means no limit."""

    max_tasks: int | None = None
    max_memory: int | None = None

    def __bool__(self) -> bool:
        return self.max_tasks is not None or self.max_memory is not None

    def exceeded(self, tasks: int, memory: int) -> str | None:
        """Return the limit that a process has reached, as text; None if there is none."""
        if self.max_tasks is not None and tasks >= self.max_tasks:
            return f"it has run {tasks} tasks, and --max-tasks is {self.max_tasks}"
        if self.max_memory is not None and memory >= self.max_memory:
            return f"it uses {size_text(memory)}, and --max-memory is {size_text(self.max_memory)}"
        return None

    def check_start(self, memory: int) -> None:
        """Raise ConfigError if a process is over its memory limit before its first task."""
        if self.max_memory is not None and memory >= self.max_memory:
            raise ConfigError(
                f"--max-memory {size_text(self.max_memory)}: a process uses {size_text(memory)} "
                "before its first task, and would be replaced immediately; set a higher limit"
            )


def memory_used() -> int:
    """Return the resident memory of this process in bytes, or its peak if there is no /proc."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGESIZE")


def size_of(text: str) -> int:
    """Convert a size such as `1GiB`, `500MB` or `1048576` to bytes.

    Raises ValueError if the text is not a size above 0.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise ValueError(
            phrase("%(value)s is not a size; write 500MiB, 1GiB or 2GB", value=repr(text))
        )
    return size


def size_text(size: int) -> str:
    """Return a size as text for people, e.g. `1.5 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} B"
