"""Checks the values that handlers report as their progress."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from qsync.errors import InvalidTask
from qsync.value_text import shorten


def checked_progress(done: object, total: object) -> tuple[float, float]:
    """Return both values as floats. Raise InvalidTask, which names the value, if one of them is not
    a finite number from 0."""
    return _checked("done", done), _checked("total", total)


def _checked(name: str, value: Any) -> float:
    number = -1.0
    if not isinstance(value, str | bytes | bytearray):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if number >= 0 and math.isfinite(number):
        return number
    raise InvalidTask(
        f"progress: {name}: {shorten(value)} is not a finite number from 0; report e.g. "
        "current().progress(3, 10)"
    )
