"""Says where the backlog of a queue goes, and what needs somebody. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from qsync.formatting import coarse_duration, plural, short_count
from qsync.inspector import QueueInfo
from qsync.state import TaskState
from qsync.web.sampler import Figures

Steps = Sequence[tuple[float, Figures] | None]
"""Intervals between samples, the latest last, as `Sampler.series` returns them."""

WINDOW_S: Final = 300.0
"""Time that is looked at, in seconds."""

LEAST_S: Final = 30.0
"""Time without which there is no forecast, in seconds."""

FAR_S: Final = 7 * 86_400.0
"""A queue that takes longer than this is called steady."""

LARGE: Final = 100
"""Backlog from which on a growing queue is a problem."""


class Problem(NamedTuple):
    """Something that needs somebody: a sentence about a queue, and the page that shows more."""

    queue: str
    text: str
    path: str


def growth_of(steps: Steps) -> float | None:
    """Return by how many tasks a second the backlog has grown lately; None: not known yet."""
    recent = _recent(steps)
    seconds = sum(length for length, _ in recent[1:])
    if seconds < LEAST_S:
        return None
    return (recent[-1][1].pending - recent[0][1].pending) / seconds


def forecast(steps: Steps, pending: int) -> str:
    """Return a forecast such as `empty in about 4 min`; empty without a backlog or a forecast."""
    growth = growth_of(steps)
    if growth is None or not pending:
        return ""
    if growth > 0:
        return f"grows by {_rate(growth)}"
    left_s = pending / -growth if growth else math.inf
    return f"empty in about {coarse_duration(left_s)}" if left_s < FAR_S else "steady"


def problems_of(info: QueueInfo, steps: Steps) -> list[Problem]:
    """Return what needs somebody in a queue."""
    found = []
    recent = [figures for _, figures in _recent(steps)]
    window = coarse_duration(WINDOW_S)
    if died := sum(figures.dead for figures in recent):
        text = f"{plural(died, 'task')} died in the last {window}."
        found.append(Problem(info.name, text, "/errors"))
    if crashed := sum(figures.crashed for figures in recent):
        text = (
            f"servers died {plural(crashed, 'time')} in the last {window} while running its tasks."
        )
        found.append(Problem(info.name, text, "/queue"))
    growth, pending = growth_of(steps), info.states[TaskState.PENDING]
    if growth and pending >= LARGE and growth * WINDOW_S > pending / 10 and not info.paused:
        text = f"the backlog grows by {_rate(growth)} and will not drain."
        found.append(Problem(info.name, text, "/queue"))
    return found


def _recent(steps: Steps) -> list[tuple[float, Figures]]:
    """Return the intervals of the window, without those that miss a sample."""
    recent: list[tuple[float, Figures]] = []
    seconds = 0.0
    for step in reversed(steps):
        if seconds >= WINDOW_S:
            break
        if step is not None:
            seconds += step[0]
            recent.append(step)
    return recent[::-1]


def _rate(growth: float) -> str:
    return f"{short_count(growth)}/s" if growth >= 1 else f"{short_count(60 * growth)}/min"
