"""Forecasts the backlog of a queue, and finds its problems; does no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from qsync.inspector import Died, QueueInfo
from qsync.state import TaskState
from qsync.web.sampler import Figures
from qsync.web.translation import _, coarse, ngettext, relative, short_count

Steps = Sequence[tuple[float, Figures] | None]
"""Intervals between samples, the latest last, as `Sampler.series` returns them."""

WINDOW_S: Final = 300.0
"""Length of the window of samples, in seconds."""

MIN_WINDOW_S: Final = 30.0
"""Minimum time span of the samples for a forecast, in seconds."""

FAR_S: Final = 7 * 86_400.0
"""Time in seconds: a queue that would take longer to drain counts as steady."""

LARGE: Final = 100
"""Minimum backlog at which a growing queue is a problem, in tasks."""

MANY: Final = 20
"""Minimum number of failed attempts in the window before they are reported as a problem."""

MOST_FAIL: Final = 0.5
"""Minimum share of failed attempts in the window before they are reported as a problem."""

STANDSTILL: Final = 0
LOSSES: Final = 1
LATE: Final = 2
SLOWER: Final = 3
"""Ranks of problems, the most urgent first: nothing runs, tasks die, a target is missed, other."""


class Problem(NamedTuple):
    """A problem that needs attention: a sentence about a queue, and the page that shows more."""

    queue: str
    text: str
    path: str
    query: Mapping[str, str] = {}
    part: str = ""
    """Id of the element on the page at `path` to which the problem links."""
    acknowledged: str = ""
    """Time of the last death that an operator can acknowledge here, in ISO 8601."""
    rank: int = SLOWER
    """How urgent the problem is: STANDSTILL, LOSSES, LATE or SLOWER."""
    kind: str = ""
    """Kind of the problem; the overview shows a few problems of each kind."""


def growth_of(steps: Steps) -> float | None:
    """Return the recent growth of the backlog, in tasks per second; None if not known yet."""
    recent = _recent(steps)
    seconds = sum(length for length, _ in recent[1:])
    if seconds < MIN_WINDOW_S:
        return None
    return (recent[-1][1].pending - recent[0][1].pending) / seconds


def forecast(steps: Steps, pending: int) -> str:
    """Return a forecast such as `empty in about 4 min`; "" if there is no backlog or no
    forecast."""
    growth = growth_of(steps)
    if growth is None or not pending:
        return ""
    if growth > 0:
        return _("grows by %(rate)s", rate=_rate(growth))
    left_s = pending / -growth if growth else math.inf
    return _("empty in about %(length)s", length=coarse(left_s)) if left_s < FAR_S else _("steady")


def problems_of(info: QueueInfo, steps: Steps, errors: int | None = None) -> list[Problem]:
    """Return the problems of a queue that need attention.

    `errors` is the number of different errors of the queue's unacknowledged dead tasks; None if
    unknown.
    """
    problems = []
    recent = [figures for _, figures in _recent(steps)]
    window = coarse(WINDOW_S)
    died = info.died
    if died is not None:
        problem = Problem(info.name, _died(died, errors), "/errors", rank=LOSSES, kind="died")
        problems.append(problem._replace(acknowledged=died.last_at.isoformat()))
    if crashed := sum(figures.crashed for figures in recent):
        text = ngettext(
            "servers died %(num)s time in the last %(window)s while running its tasks.",
            "servers died %(num)s times in the last %(window)s while running its tasks.",
            crashed, window=window,
        )  # fmt: skip
        problem = Problem(info.name, text, "/errors") if died else _on_queue(info, text)
        problems.append(problem._replace(rank=LOSSES, kind="crashed"))
    if info.is_late and info.latency_target is not None:
        text = _(
            "the oldest pending task has waited %(latency)s; the target is %(target)s.",
            latency=coarse(info.latency), target=coarse(info.latency_target),
        )  # fmt: skip
        problems.append(_on_queue(info, text)._replace(rank=LATE, kind="late"))
    if died is None and (text := _failing(recent)):
        problems.append(Problem(info.name, text, "/errors", rank=LATE, kind="failing"))
    growth, pending = growth_of(steps), info.states[TaskState.PENDING]
    if growth and pending >= LARGE and growth * WINDOW_S > pending / 10 and not info.paused:
        text = _("the backlog grows by %(rate)s and will not drain.", rate=_rate(growth))
        problems.append(_on_queue(info, text)._replace(kind="grows"))
    return problems


def _failing(recent: Sequence[Figures]) -> str:
    """Return a sentence if most recent attempts failed, e.g. because an API is down; "" if not."""
    failed, completed = (
        sum(getattr(each, name) for each in recent) for name in ("failed", "completed")
    )
    ended = failed + completed
    if failed < MANY or failed < MOST_FAIL * ended:
        return ""
    return ngettext(
        "%(failed)s of %(num)s attempt failed in the last %(window)s.",
        "%(failed)s of %(num)s attempts failed in the last %(window)s.",
        ended, failed=failed, window=coarse(WINDOW_S),
    )  # fmt: skip


def _died(died: Died, errors: int | None) -> str:
    text = ngettext(
        "%(num)s task died %(last)s and was neither re-run nor acknowledged.",
        "%(num)s tasks died, the first %(first)s and the last %(last)s, and were neither "
        "re-run nor acknowledged.",
        died.number, first=relative(died.first_at), last=relative(died.last_at),
    )  # fmt: skip
    if not errors or died.number == 1:
        return text
    return f"{text} {ngettext('%(num)s error.', '%(num)s different errors.', errors)}"


def _on_queue(info: QueueInfo, text: str) -> Problem:
    return Problem(info.name, text, "/queue", {"queue": info.name})


def _recent(steps: Steps) -> list[tuple[float, Figures]]:
    """Return the intervals of the last WINDOW_S, without those that lack a sample."""
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
    if growth >= 1:
        return _("%(number)s/s", number=short_count(growth))
    return _("%(number)s/min", number=short_count(60 * growth))
