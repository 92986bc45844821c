"""Draws the charts of a report: rates, latency, and the cost of a backlog."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.figures import Curve
from benchmarks.report import Report, format_value
from benchmarks.svg import Anchor, Svg

WIDTH: Final = 760
LEFT: Final = 66
RIGHT: Final = 24
RATES: Final = ("enqueue", "callers", "bulk", "drain", "executors", "waiting")
LATENCIES: Final = ("latency", "lateness")
"""Prefixes of the curve names that the latency chart shows."""
BACKLOG: Final = ("throughput against backlog", "store time against backlog")


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw the charts that have data into a folder, which is created if necessary; return their
    paths."""
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
    """Draw a bar for each rate; the bar of the floor is grey."""
    rates = [
        (measure, figure.name, figure.value)
        for measure, figure in report.figures
        if measure in RATES and figure.unit == "tasks/s" and figure.value
    ]
    if not rates:
        return None
    largest = max(value for _, _, value in rates)
    left, row, top = 220, 24, 44
    svg = Svg(WIDTH, top + row * len(rates) + 12, "Rates of enqueue and drain")
    svg.text(0, 18, "Tasks a second", style="title")
    svg.text(WIDTH, 18, "grey: the floor, which has no queue", anchor="end", style="soft")
    for number, (measure, name, value) in enumerate(rates):
        y = top + row * number
        is_floor = name.startswith(("bare", "asyncio floor"))
        colour = 3 if is_floor else 0 if measure in RATES[:3] else 2
        svg.text(left - 10, y + 12, name, anchor="end")
        length = (WIDTH - left - 80) * value / largest
        svg.bar(left, y, length, 16, colour)
        svg.text(left + max(length, 1) + 8, y + 12, format_value(value), style="soft")
    return svg


def _latency(report: Report) -> Svg | None:
    """Draw the histograms of the latencies, on a logarithmic scale."""
    curves = [curve for name, curve in report.curves.items() if name.startswith(LATENCIES)]
    if not curves:
        return None
    top, bottom = 48 + 20 * len(curves), 40
    height = top + 220 + bottom
    svg = Svg(WIDTH, height, "Latency from enqueue to start")
    svg.text(0, 18, "Time from enqueue to start of the handler, in milliseconds", style="title")
    ends = [x for curve in curves for x, _ in curve.points]
    across = _log_axis(min(ends) / 1.25, max(ends))
    highest = max(y for curve in curves for _, y in curve.points)
    base = height - bottom
    for tick, x in _ticks(min(ends) / 1.25, max(ends), across):
        svg.rule(x, top, x, base)
        svg.text(x, base + 18, f"{tick:g}", anchor="middle", style="soft")
    for colour, curve in enumerate(curves):
        up = (base - top) / highest
        outline = [(across(curve.points[0][0] / 1.25), float(base))]
        for x, y in curve.points:
            outline += [(across(x / 1.25), base - y * up), (across(x), base - y * up)]
        outline.append((across(curve.points[-1][0]), float(base)))
        svg.area(outline, colour)
    svg.rule(LEFT, base, WIDTH - RIGHT, base)
    svg.text(LEFT - 8, top + 10, f"{highest:.0f} %", anchor="end", style="soft")
    svg.text(LEFT - 8, base, "0", anchor="end", style="soft")
    svg.text(WIDTH, 18, "share of the tasks in each bin", anchor="end", style="soft")
    _legend(svg, [_with_percentiles(report, curve) for curve in curves])
    return svg


def _with_percentiles(report: Report, curve: Curve) -> str:
    values = {figure.name: figure.value for _, figure in report.figures}
    p50, p99 = [format_value(values.get(f"{curve.name}, {text}")) for text in ("p50", "p99")]
    return f"{curve.name}: p50 {p50}, p99 {p99}"


def _legend(svg: Svg, names: Sequence[str]) -> None:
    for colour, name in enumerate(names):
        svg.bar(0, 34 + 20 * colour, 11, 11, colour)
        svg.text(18, 44 + 20 * colour, name)


def _backlog(report: Report) -> Svg | None:
    """Draw throughput and the store's time against the backlog, in two charts one above the
    other."""
    curves = [report.curves[name] for name in BACKLOG if name in report.curves]
    curves = [curve for curve in curves if len(curve.points) > 1]
    if not curves:
        return None
    panel = 190
    svg = Svg(WIDTH, panel * len(curves), "Throughput and cost against backlog")
    titles = {
        BACKLOG[0]: "Tasks per second of one server, by number of pending tasks",
        BACKLOG[1]: "Store time per task for enqueue, fetch and completion, in microseconds",
    }
    for number, curve in enumerate(curves):
        colour = 2 if number == 0 else 1
        _panel(svg, panel * number, panel, titles[curve.name], curve, colour=colour)
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
        svg.text(x, y - 9, format_value(value), anchor=anchor)
        svg.text(x, base + 18, f"{backlog:,.0f}", anchor=anchor, style="soft")


def _log_axis(minimum: float, maximum: float) -> Callable[[float], float]:
    """Return a function that maps a value to its position on a logarithmic axis."""
    low, span = math.log(minimum), math.log(maximum / minimum) or 1.0
    return lambda value: LEFT + (math.log(value) - low) / span * (WIDTH - LEFT - RIGHT)


def _ticks(
    minimum: float, maximum: float, across: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Return the ticks between two values (1, 2, 5, 10, ...; fewer on a long axis) with their
    positions."""
    digits = (1, 2, 5) if maximum / minimum < 1000 else (1,)
    powers = range(math.floor(math.log10(minimum)), math.ceil(math.log10(maximum)) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits]
    return [(value, across(value)) for value in values if minimum <= value <= maximum]


def _round_up(value: float) -> float:
    """Return a round number at least 20 % above the value."""
    unit = 10.0 ** math.floor(math.log10(value * 1.2)) / 2
    return math.ceil(value * 1.2 / unit) * unit
