"""The work of a task: it records its start and end, and holds its slot while a file exists."""

import os
import time
from pathlib import Path

LOG = Path(os.environ["LIMITED_LOG"])
HOLD = Path(os.environ["LIMITED_HOLD"])
URL = os.environ["BENCH_URL"]
SLOTS = 2
RATE = 20
RUN_S = 0.1


def note(event: str, number: int) -> None:
    """Append a line in one write, so that lines from different processes do not mix."""
    line = f"{event} {number} {os.getpid()} {time.monotonic():.6f}\n"
    with LOG.open("ab", buffering=0) as log:
        log.write(line.encode())
