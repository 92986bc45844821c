"""How reports of servers become blocks of minutes and hours. Pure.

The hash `type_stats` has a block for each type and hour, `m<hour>:<type>`, with its minutes, and
one for each type and day, `h<day>:<type>`, with its hours; `#` is the directory. An hour is always
the sum of its minutes as they are stored, so repeated roundings do not add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from qsync import codec
from qsync.type_counts import TypeCounts, decode_block, decode_report, encode_block, sum_of

TYPES: Final = 100
"""Maximum number of types of a queue with statistics of their own; the others share `OTHER`."""

OTHER: Final = "other"

KEPT_HOURS: Final = 48
"""Number of hours for which minutes are kept, besides the running one."""

KEPT_DAYS: Final = 90
"""Number of days for which hours are kept, besides the running one."""

DIRECTORY: Final = "#"

TRIMMED_MOST: Final = 1000
"""Maximum number of fields that one roll deletes."""


class Directory(msgspec.Struct, array_like=True):
    """Which types a queue has statistics of, and from which hour and day on."""

    number: int = 0
    """Number of rolls, so that each one changes the directory."""
    types: dict[str, int] = msgspec.field(default_factory=dict)
    """Last hour of each type."""
    first_hour: int = 0
    """Hour from which on there may be blocks of minutes."""
    first_day: int = 0
    """Day from which on there may be blocks of hours."""


class RollUp(msgspec.Struct, frozen=True):
    """What a roll changes: fields of type_stats, None deletes one; the new directory is in it."""

    fields: dict[str, bytes | None]


Reports = Mapping[str, bytes]
"""Reports by their field, `<minute>:<server>`."""


def minutes_of(hour: int, type: str) -> str:
    """Return the field with the minutes of an hour."""
    return f"m{hour}:{type}"


def hours_of(day: int, type: str) -> str:
    """Return the field with the hours of a day."""
    return f"h{day}:{type}"


def report_field(minute: int, server: str) -> str:
    """Return the field of a server's report of a minute."""
    return f"{minute}:{server}"


def minute_of(field: str) -> int | None:
    """Return the minute of a report; None for a field that is none."""
    number = field.partition(":")[0]
    return int(number) if number.isdecimal() and len(number) < 12 else None


def decode_directory(data: bytes | None) -> Directory:
    """Return the stored directory; an empty one if there is none, or it is damaged."""
    try:
        return codec.decode(data, Directory) if data else Directory()
    except codec.CodecError:
        return Directory()


def merged_reports(reports: Reports, known: Iterable[str]) -> dict[str, dict[int, TypeCounts]]:
    """Return the counts in reports, by type and minute; types beyond the limit are `OTHER`."""
    names, merged = {*known}, dict[str, dict[int, TypeCounts]]()
    for field, data in sorted(reports.items()):
        minute = minute_of(field)
        for type, counts in decode_report(data).items() if minute is not None else ():
            name = type if type in names or len(names - {OTHER}) < TYPES else OTHER
            names.add(name)
            merged.setdefault(name, {}).setdefault(minute or 0, TypeCounts()).add(counts)
    return merged


def needed_fields(merged: Mapping[str, Mapping[int, TypeCounts]]) -> list[str]:
    """Return the fields that `roll` needs to read."""
    fields: dict[str, None] = {}
    for type, minutes in merged.items():
        for minute in minutes:
            fields[minutes_of(minute // 60, type)] = None
            fields[hours_of(minute // 1440, type)] = None
    return list(fields)


def roll(
    directory: Directory,
    merged: Mapping[str, Mapping[int, TypeCounts]],
    stored: Mapping[str, bytes | None],
    now_minute: int,
) -> RollUp:
    """Return the change that adds ended minutes to the blocks, and deletes what is too old."""
    fields: dict[str, bytes | None] = {}
    blocks = {field: decode_block(data) for field, data in stored.items()}
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
    _trim(after, fields, now_minute)
    fields[DIRECTORY] = codec.encode(after)
    return RollUp(fields)


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
