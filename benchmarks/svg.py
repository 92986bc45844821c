"""A small SVG writer whose colours follow the reader's light or dark scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal
from xml.sax.saxutils import escape

Anchor = Literal["start", "middle", "end"]

LIGHT: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8c959f")
DARK: Final = ("#4493f8", "#f0883e", "#3fb950", "#768390")
"""Colours of the marks, by number: blue, orange, green, grey."""


def _style(ink: str, soft: str, rule: str, colours: Sequence[str]) -> str:
    lines = [
        f"text {{ fill: {ink} }} text.soft {{ fill: {soft} }} .rule {{ stroke: {rule} }}",
        *[
            f".fill.c{number} {{ fill: {colour} }} .line.c{number} {{ stroke: {colour} }} "
            f".area.c{number} {{ fill: {colour}; stroke: {colour} }}"
            for number, colour in enumerate(colours)
        ],
    ]
    return "\n".join(lines)


_STYLE: Final = f"""
text {{ font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }}
text.title {{ font-size: 15px; font-weight: 600 }}
.area {{ fill-opacity: .22; stroke-width: 1.5 }}
.line {{ fill: none; stroke-width: 2 }}
{_style("#24292f", "#57606a", "#d0d7de", LIGHT)}
@media (prefers-color-scheme: dark) {{
{_style("#e6edf3", "#9198a1", "#3d444d", DARK)}
}}
"""


class Svg:
    """A drawing of fixed size without a background; y grows downward, in pixels."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self._title = width, height, title
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, anchor: Anchor = "start", style: str = ""
    ) -> None:
        """Add a line of text whose baseline is at y."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">'
            f"{escape(text)}</text>"
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: int) -> None:
        """Add a filled rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" '
            f'rx="2" class="fill c{colour}"/>'
        )

    def rule(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add a thin line of an axis or a grid."""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="rule"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        """Add a line through points, and a dot at each."""
        self._parts.append(f'<polyline points="{_join(points)}" class="line c{colour}"/>')
        self._parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="fill c{colour}"/>' for x, y in points
        ]

    def area(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        """Add a filled outline."""
        self._parts.append(f'<polygon points="{_join(points)}" class="area c{colour}"/>')

    def render(self) -> str:
        """Return the text of the file."""
        body = "\n".join(self._parts)
        size = f'width="{self.width:.0f}" height="{self.height:.0f}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            f'viewBox="0 0 {self.width:.0f} {self.height:.0f}">\n'
            f"<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
        )


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
