"""The charts of a report: rates, latency, and what a backlog costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from qsync.cli.bench.figure import Curve, Figure
from qsync.cli.bench.report import Report, shown
from qsync.cli.bench.svg import Anchor, Svg

WIDTH: Final = 760
LEFT: Final = 66
RIGHT: Final = 24
RATES: Final = ("enqueue", "callers", "bulk", "drain", "executors", "waiting")
DELAYS: Final = ("latency, idle", "latency, half load", "lateness of scheduled")
BACKLOG: Final = ("throughput against backlog", "store time against backlog")


def draw(report: Report, folder: Path) -> list[Path]:
    """The charts for which there is something to show, as files in a folder that may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in (("rates", _rates), ("latency", _latency), ("backlog", _backlog)):
        drawing = chart(report)
        if drawing is not None:
            path = folder / f"{name}.svg"
            path.write_text(drawing.render(), "utf-8")
            written.append(path)
    return written


def _rates(report: Report) -> Svg | None:
    """A bar for each rate; those of the floor in grey."""
    rates = [
        (name, one)
        for name in RATES
        for one in report.found.get(name, [])
        if isinstance(one, Figure) and one.unit == "tasks/s" and one.value
    ]
    if not rates:
        return None
    most = max(one.value or 0.0 for _, one in rates)
    left, row, top = 220, 24, 44
    svg = Svg(WIDTH, top + row * len(rates) + 12, "Rates of enqueue and drain")
    svg.text(0, 18, "Tasks a second", style="title")
    svg.text(WIDTH, 18, "grey: the floor, which has no queue", anchor="end", style="soft")
    for at, (name, one) in enumerate(rates):
        value, y = one.value or 0.0, top + row * at
        floor = one.name.startswith(("bare", "asyncio floor"))
        enqueues = name in RATES[:3]
        svg.text(left - 10, y + 12, one.name, anchor="end")
        length = (WIDTH - left - 80) * value / most
        svg.bar(left, y, length, 16, 3 if floor else 0 if enqueues else 2)
        svg.text(left + max(length, 1) + 8, y + 12, shown(value), style="soft")
    return svg


def _latency(report: Report) -> Svg | None:
    """How the times from enqueue to start are spread, on a logarithmic scale."""
    curves = [report.curves[name] for name in DELAYS if name in report.curves]
    if not curves:
        return None
    top, bottom = 48 + 20 * len(curves), 40
    height = top + 220 + bottom
    svg = Svg(WIDTH, height, "Latency from enqueue to start")
    svg.text(0, 18, "From enqueue to the start of the handler, milliseconds", style="title")
    ends = [x for curve in curves for x, _ in curve.points]
    across = _log_axis(min(ends) / 1.25, max(ends))
    most = max(y for curve in curves for _, y in curve.points)
    base = height - bottom
    for tick, x in _ticks(min(ends) / 1.25, max(ends), across):
        svg.rule(x, top, x, base)
        svg.text(x, base + 18, f"{tick:g}", anchor="middle", style="soft")
    for colour, curve in enumerate(curves):
        up = (base - top) / most
        outline = [(across(curve.points[0][0] / 1.25), float(base))]
        for x, y in curve.points:
            outline += [(across(x / 1.25), base - y * up), (across(x), base - y * up)]
        outline.append((across(curve.points[-1][0]), float(base)))
        svg.area(outline, colour)
    svg.rule(LEFT, base, WIDTH - RIGHT, base)
    svg.text(LEFT - 8, top + 10, f"{most:.0f} %", anchor="end", style="soft")
    svg.text(LEFT - 8, base, "0", anchor="end", style="soft")
    svg.text(WIDTH, 18, "share of the tasks in each bin", anchor="end", style="soft")
    _legend(svg, [_with_percentiles(report, curve) for curve in curves])
    return svg


def _with_percentiles(report: Report, curve: Curve) -> str:
    values = {one.name: one.value for one in report.figures}
    ends = [shown(values.get(f"{curve.name}, {text}")) for text in ("p50", "p99")]
    return f"{curve.name}: p50 {ends[0]}, p99 {ends[1]}"


def _legend(svg: Svg, names: Sequence[str]) -> None:
    for colour, name in enumerate(names):
        svg.bar(0, 34 + 20 * colour, 11, 11, colour)
        svg.text(18, 44 + 20 * colour, name)


def _backlog(report: Report) -> Svg | None:
    """Throughput and the store's time against what waits, one above the other."""
    curves = [report.curves[name] for name in BACKLOG if name in report.curves]
    curves = [curve for curve in curves if len(curve.points) > 1]
    if not curves:
        return None
    panel = 190
    svg = Svg(WIDTH, panel * len(curves), "Throughput and cost against backlog")
    titles = {
        BACKLOG[0]: "Tasks a second of one server, while so many others wait",
        BACKLOG[1]: "Store time a task, us: enqueue, fetch and complete together",
    }
    for at, curve in enumerate(curves):
        _panel(svg, panel * at, panel, titles[curve.name], curve, colour=2 if at == 0 else 1)
    return svg


def _panel(svg: Svg, y0: int, height: int, title: str, curve: Curve, *, colour: int) -> None:
    top, base = y0 + 48, y0 + height - 34
    xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
    across, ceiling = _log_axis(xs[0], xs[-1]), _round_up(max(ys))
    svg.text(0, y0 + 18, title, style="title")
    for part in (0.0, 0.5, 1.0):
        y = base - part * (base - top)
        svg.rule(LEFT, y, WIDTH - RIGHT, y)
        svg.text(LEFT - 8, y + 4, f"{part * ceiling:,.10g}", anchor="end", style="soft")
    points = [(across(x), base - y / ceiling * (base - top)) for x, y in curve.points]
    svg.line(points, colour)
    for (x, y), backlog, value in zip(points, xs, ys, strict=True):
        anchor: Anchor = "start" if x == points[0][0] else "end" if x == points[-1][0] else "middle"
        svg.text(x, y - 9, shown(value), anchor=anchor)
        svg.text(x, base + 18, f"{backlog:,.0f}", anchor=anchor, style="soft")


def _log_axis(least: float, most: float) -> Callable[[float], float]:
    """Where on the drawing a value is, on a logarithmic scale."""
    low, span = math.log(least), math.log(most / least) or 1.0
    return lambda value: LEFT + (math.log(value) - low) / span * (WIDTH - LEFT - RIGHT)


def _ticks(
    least: float, most: float, across: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Ones, twos and fives between two values, and where they are; only ones when far apart."""
    digits = (1, 2, 5) if most / least < 1000 else (1,)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits]
    return [(value, across(value)) for value in values if least <= value <= most]


def _round_up(value: float) -> float:
    """A value of one or two digits that leaves room above."""
    unit = 10.0 ** math.floor(math.log10(value * 1.2)) / 2
    return math.ceil(value * 1.2 / unit) * unit
