"""Records when the servers of a queue started, and with which version of the program. Pure.

A server reports its start once. Starts of one version within an hour form one entry, since they
belong to one deploy.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from qsync import codec

STARTS: Final = 200
"""Maximum number of entries per queue; the oldest are dropped."""

STARTS_AGE_US: Final = 90 * 86_400_000_000
"""Time for which an entry is kept, in microseconds."""

SAME_DEPLOY_US: Final = 3_600_000_000
"""Longest time between two successive starts of one version that form one entry."""

STORED_LIMIT: Final = 1 << 20
"""Maximum decompressed size of a queue's record, in bytes."""

LISTED_TYPES: Final = 100
"""Maximum number of types that are recorded for one start. A start with more types counts for every
type."""


class StartReport(msgspec.Struct, frozen=True, array_like=True):
    """The start of one server.

    `types` contains a number for each type that the server handles; empty means all types.
    """

    at_us: int
    version: str
    types: list[int]


class StoredStart(msgspec.Struct, array_like=True):
    """The starts of servers with one version, from the first start to the last."""

    first_us: int
    last_us: int
    version: str
    servers: int
    types: list[int]

    def concerns(self, type: str) -> bool:
        """Return whether these servers had a handler for a type."""
        return not self.types or number_of_type(type) in self.types


def number_of_type(type: str) -> int:
    """Return the number that represents a type."""
    return zlib.crc32(type.encode(errors="surrogatepass"))


def start_report(at_us: int, version: str, types: Sequence[str]) -> StartReport:
    """Return the report of a server's start."""
    numbers = sorted(number_of_type(type) for type in types) if len(types) <= LISTED_TYPES else []
    return StartReport(at_us, version, numbers)


def encode_start(report: StartReport) -> bytes:
    """Return the stored form of a report."""
    return codec.encode(report)


def decode_start(data: bytes) -> StartReport | None:
    """Return a report; None if it is damaged."""
    try:
        report: StartReport = codec.decode(data, StartReport)
    except codec.CodecError:
        return None
    return report


def encode_starts(starts: Sequence[StoredStart]) -> bytes:
    """Return the stored form of a queue's entries."""
    return codec.encode_compressed(list(starts))


def decode_starts(data: bytes | None) -> list[StoredStart]:
    """Return the entries of a queue; empty if there are none or they are damaged."""
    if not data:
        return []
    try:
        starts: list[StoredStart] = codec.decode_compressed(data, list[StoredStart], STORED_LIMIT)
    except codec.CodecError:
        return []
    return starts


def merge_starts(
    starts: Iterable[StoredStart], reports: Iterable[StartReport], now_us: int
) -> list[StoredStart]:
    """Return the entries of a queue with reports added and old entries dropped, sorted by time."""
    merged = list(starts)
    for report in sorted(reports, key=lambda report: report.at_us):
        entry = next((each for each in reversed(merged) if _belongs(report, each)), None)
        if entry is None:
            merged.append(StoredStart(report.at_us, report.at_us, report.version, 1, report.types))
            continue
        entry.first_us = min(entry.first_us, report.at_us)
        entry.last_us = max(entry.last_us, report.at_us)
        entry.servers += 1
    recent = [each for each in merged if each.last_us > now_us - STARTS_AGE_US]
    return sorted(recent, key=lambda each: each.first_us)[-STARTS:]


def _belongs(report: StartReport, entry: StoredStart) -> bool:
    is_near = entry.first_us - SAME_DEPLOY_US <= report.at_us <= entry.last_us + SAME_DEPLOY_US
    return is_near and (entry.version, entry.types) == (report.version, report.types)
