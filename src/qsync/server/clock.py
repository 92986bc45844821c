"""The clock with which a server checks whether leases have expired."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

boot_s: Final[Callable[[], float]] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Returns the time in seconds of a clock that, like leases, continues while the machine is
suspended."""
