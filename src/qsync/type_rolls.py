"""Merges reports of servers into blocks of minutes and hours. Pure.

In the hash `type_stats`, the field `m<hour>:<type>` contains a block with the minutes of an hour,
and `h<day>:<type>` contains a block with the hours of a day. The field `#` contains the directory
of the types. An hour is always the sum of its minutes as stored, so rounding errors do not
accumulate. The field `s:<type>` contains the slowest runs of a type, and `v` contains the starts of
servers, with their versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from qsync import codec
from qsync.server_starts import (
    StartReport,
    decode_start,
    decode_starts,
    encode_starts,
    merge_starts,
)
from qsync.slow_runs import (
    SlowRun,
    decode_slow_report,
    decode_slow_runs,
    encode_slow_runs,
    slowest,
)
from qsync.times import MINUTE_US
from qsync.type_counts import TypeCounts, decode_block, decode_report, encode_block, sum_of

TYPES: Final = 100
"""Maximum number of types with separate statistics per queue; further types are counted as
`OTHER`."""

OTHER: Final = "other"

KEPT_HOURS: Final = 48
"""Number of hours for which minutes are kept, in addition to the current hour."""

KEPT_DAYS: Final = 90
"""Number of days for which hours are kept, in addition to the current day."""

DIRECTORY: Final = "#"

STARTS_FIELD: Final = "v"
"""Field with the starts of servers."""

SLOW_REPORT: Final = "s"
START_REPORT: Final = "v"
"""Prefixes of the fields for reports on slow runs and on server starts; other reports have no
prefix. Versions without these statistics ignore such reports."""

TRIMMED_MOST: Final = 1000
"""Maximum number of fields that one roll-up deletes."""


class Directory(msgspec.Struct, array_like=True):
    """The types that have statistics in a queue, and the first hour and day with blocks."""

    number: int = 0
    """Number of roll-ups so far, which makes each roll-up change the directory."""
    types: dict[str, int] = msgspec.field(default_factory=dict)
    """Last hour in which each type has counts."""
    first_hour: int = 0
    """First hour for which there may be blocks of minutes."""
    first_day: int = 0
    """First day for which there may be blocks of hours."""


class RollUp(msgspec.Struct, frozen=True):
    """The changes that a roll-up makes to type_stats: new values by field, including that of the
    directory; None deletes a field."""

    fields: dict[str, bytes | None]


Reports = Mapping[str, bytes]
"""Reports by field, e.g. `<minute>:<server>`."""


def minutes_of(hour: int, type: str) -> str:
    """Return the field with the minutes of an hour."""
    return f"m{hour}:{type}"


def hours_of(day: int, type: str) -> str:
    """Return the field with the hours of a day."""
    return f"h{day}:{type}"


def slow_runs_of(type: str) -> str:
    """Return the field with the slowest runs of a type."""
    return f"s:{type}"


def report_field(minute: int, server: str, kind: str = "") -> str:
    """Return the field for a server's report on a minute; `kind` is SLOW_REPORT or START_REPORT."""
    return f"{kind}{minute}:{server}"


def kind_of(field: str) -> str:
    """Return the kind of a report."""
    return field[:1] if field[:1] in {SLOW_REPORT, START_REPORT} else ""


def minute_of(field: str) -> int | None:
    """Return the minute of a report; None for a field that is not a report."""
    number = field.partition(":")[0].removeprefix(kind_of(field))
    return int(number) if number.isdecimal() and len(number) < 12 else None


def decode_directory(data: bytes | None) -> Directory:
    """Return the stored directory; an empty directory if there is none, or if it is damaged."""
    try:
        return codec.decode(data, Directory) if data else Directory()
    except codec.CodecError:
        return Directory()


def merged_reports(reports: Reports, types: Iterable[str]) -> dict[str, dict[int, TypeCounts]]:
    """Return the counts in reports, by type and minute; types beyond the limit count as `OTHER`."""
    names, merged = {*types}, dict[str, dict[int, TypeCounts]]()
    for field, data in sorted(reports.items()):
        minute = None if kind_of(field) else minute_of(field)
        for type, counts in decode_report(data).items() if minute is not None else ():
            name = type if type in names or len(names - {OTHER}) < TYPES else OTHER
            names.add(name)
            merged.setdefault(name, {}).setdefault(minute or 0, TypeCounts()).add(counts)
    return merged


def reported_slow_runs(reports: Reports) -> dict[str, list[SlowRun]]:
    """Return the slow runs in reports, by type."""
    runs: dict[str, list[SlowRun]] = {}
    for field, data in reports.items():
        if kind_of(field) == SLOW_REPORT:
            server = field.partition(":")[2]
            for type, of_type in decode_slow_report(data).items():
                runs.setdefault(type, []).extend(
                    msgspec.structs.replace(run, server=server) for run in of_type
                )
    return runs


def reported_starts(reports: Reports) -> list[StartReport]:
    """Return the starts of servers in reports."""
    starts = [
        decode_start(data) for field, data in reports.items() if kind_of(field) == START_REPORT
    ]
    return [start for start in starts if start is not None]


def needed_fields(merged: Mapping[str, Mapping[int, TypeCounts]], reports: Reports) -> list[str]:
    """Return the fields whose values `roll` needs."""
    fields: dict[str, None] = {STARTS_FIELD: None}
    fields |= dict.fromkeys(slow_runs_of(type) for type in reported_slow_runs(reports))
    for type, minutes in merged.items():
        for minute in minutes:
            fields[minutes_of(minute // 60, type)] = None
            fields[hours_of(minute // 1440, type)] = None
    return list(fields)


def roll(
    directory: Directory,
    merged: Mapping[str, Mapping[int, TypeCounts]],
    reports: Reports,
    stored: Mapping[str, bytes | None],
    now_minute: int,
) -> RollUp:
    """Return the changes that add ended minutes to the blocks and delete blocks that are too
    old."""
    fields: dict[str, bytes | None] = {}
    blocks = {field: decode_block(data) for field, data in stored.items() if field[:1] in "mh"}
    types = dict(directory.types)
    hours = {minute // 60 for minutes in merged.values() for minute in minutes}
    for type, minutes in merged.items():
        changed = set()
        for minute, counts in minutes.items():
            hour, index = divmod(minute, 60)
            periods = blocks.setdefault(minutes_of(hour, type), {})
            periods.setdefault(index, TypeCounts()).add(counts)
            types[type] = max(types.get(type, 0), hour)
            changed.add(hour)
        for hour in changed:
            periods = blocks[minutes_of(hour, type)]
            encoded = fields[minutes_of(hour, type)] = encode_block(periods)
            day, index = divmod(hour, 24)
            days = blocks.setdefault(hours_of(day, type), {})
            days[index] = sum_of(decode_block(encoded).values())
            fields[hours_of(day, type)] = encode_block(days)
    first_hour = min([directory.first_hour or now_minute // 60, *hours])
    first_day = min([directory.first_day or now_minute // 1440, *[hour // 24 for hour in hours]])
    after = Directory(directory.number + 1, types, first_hour, first_day)
    _add_slow_runs(fields, types, reports, stored, now_minute)
    if starts := reported_starts(reports):
        entries = merge_starts(
            decode_starts(stored.get(STARTS_FIELD)), starts, now_minute * MINUTE_US
        )
        fields[STARTS_FIELD] = encode_starts(entries)
    _trim(after, fields, now_minute)
    fields[DIRECTORY] = codec.encode(after)
    return RollUp(fields)


def _add_slow_runs(
    fields: dict[str, bytes | None],
    types: Mapping[str, int],
    reports: Reports,
    stored: Mapping[str, bytes | None],
    now_minute: int,
) -> None:
    """Add reported slow runs to the stored runs, for types that have statistics."""
    for type, runs in reported_slow_runs(reports).items():
        if type in types:
            field = slow_runs_of(type)
            runs += decode_slow_runs(stored.get(field))
            fields[field] = encode_slow_runs(slowest(runs, now_minute // 1440))


def _trim(directory: Directory, fields: dict[str, bytes | None], now_minute: int) -> None:
    """Delete blocks that are too old, and forget types whose last block is deleted."""
    first_kept = now_minute // 60 - KEPT_HOURS
    room = TRIMMED_MOST
    while directory.first_hour < first_kept and room > 0:
        for type in directory.types:
            fields[minutes_of(directory.first_hour, type)] = None
        directory.first_hour += 1
        room -= max(1, len(directory.types))
    first_kept = now_minute // 1440 - KEPT_DAYS
    while directory.first_day < first_kept and room > 0:
        for type in directory.types:
            fields[hours_of(directory.first_day, type)] = None
        directory.first_day += 1
        room -= max(1, len(directory.types))
    for type, hour in list(directory.types.items()):
        if hour // 24 < directory.first_day and hour < directory.first_hour:
            del directory.types[type]
            fields[slow_runs_of(type)] = None
