"""Formats numbers, durations, sizes, times and commands as readable text. Without I/O.

The results contain only numbers, times and qsync's own names, so they need no escaping. `printable`
and `csv_cell` escape other strings.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any, Final

import msgspec

from qsync import store_clock

_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


Parts = list[tuple[str, str]]
"""Numbers with their units, `[("4", "min"), ("10", "s")]`."""


def duration(seconds: float) -> str:
    """Return a duration in its largest two units: `20 ms`, `1.5 s`, `4 min 10 s`, `2 d 5 h`."""
    return _joined(duration_parts(seconds))


def duration_parts(seconds: float) -> Parts:
    """Return a duration in its largest two units, as numbers and units."""
    if seconds < 0.0995:
        return [(f"{max(1000 * seconds, 0.01):.2g}", "ms")]
    if seconds < 1:
        return [(f"{seconds:.2g}", "s")]
    if seconds < 9.95 and round(seconds, 1) % 1:
        return [(f"{seconds:.1f}", "s")]
    return whole_units(seconds)


def coarse_duration(seconds: float) -> str:
    """Return a duration in its largest unit: `1.5 s`, `4 min`, `2 d`."""
    return _joined(duration_parts(seconds)[:1])


def _joined(parts: Parts) -> str:
    return " ".join(f"{number} {unit}" for number, unit in parts)


def whole_units(seconds: float) -> Parts:
    """Return the largest unit of a duration, followed by the next smaller unit unless that is 0."""
    rest, parts = round(seconds), Parts()
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append((str(count), unit))
        elif parts:
            break
    return parts[:2]


def relative(time: datetime | None) -> str:
    """Return `3 min 4 s ago` or `in 2 h` by the store's clock; empty if unknown."""
    if time is None:
        return ""
    seconds = (time - store_clock.now()).total_seconds()
    if round(abs(seconds)) < 1:
        return "now"
    length = _joined(whole_units(abs(seconds)))
    return f"in {length}" if seconds > 0 else f"{length} ago"


def utc_time(time: datetime | None) -> str:
    """Return a time in UTC, to the second; empty if unknown."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def local_time(time: datetime) -> str:
    """Return a time in this machine's zone, to the second."""
    with contextlib.suppress(OverflowError, ValueError):  # raised near the years 1 and 9999
        time = time.astimezone()
    return f"{time:%Y-%m-%d %H:%M:%S %Z}"


def count(number: float | None) -> str:
    """Return a count as `1,234,567`; empty if unknown."""
    return "" if number is None else f"{number:,.0f}"


def short_count(number: float) -> str:
    """Return a number in a short form: `987`, `12.3k`, `4.5M`."""
    return "".join(short_count_parts(number))


def short_count_parts(number: float) -> tuple[str, str]:
    """Return a number in a short form, and its unit letter, which may be empty."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * (10 if unit == "k" else 1):
            return f"{number / size:.3g}", unit
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.2g}", ""


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: `1 task`, `1,234 tasks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `3rd`, `4th`, `11th`, `1,520th`."""
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    suffix = "th" if number % 100 in (11, 12, 13) else suffixes.get(number % 10, "th")
    return f"{number:,}{suffix}"


def size(number: int | None) -> str:
    """Return a size in bytes: `321 B`, `1.2 MiB`; empty if unknown."""
    return "" if number is None else " ".join(size_parts(number))


def size_parts(number: int) -> tuple[str, str]:
    """Return a size in bytes as a number and its unit."""
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return (str(number) if unit == "B" else f"{amount:,.1f}"), unit


def percent(progress: tuple[float, float] | None) -> str:
    """Return the progress of a handler: `30%`, or the count if the handler reported no total."""
    if progress is None:
        return ""
    done, total = progress
    return f"{done / total:.0%}" if total > 0 else plain_number(done)


def plain_number(value: float) -> str:
    """Return all digits of a number, without grouping."""
    return f"{value:.15g}"


def install_command(extra: str) -> str:
    """Return the command or advice to install an extra, however qsync was installed.

    The package may come from an index, a wheel or a clone; docs/index.md lists the commands for
    each.
    """
    return f"install qsync-py[{extra}]"


def printable(text: str) -> str:
    """Return the text with all unprintable characters escaped, including newlines."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters of strings that a spreadsheet would run as a formula."""


def csv_cell(value: Any) -> str:
    """Return a string as a CSV cell that is safe in a terminal and in a spreadsheet."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return printable(msgspec.json.encode(value, enc_hook=str).decode())
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text
