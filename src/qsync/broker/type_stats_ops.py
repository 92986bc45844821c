"""The operations on statistics of types: servers report, roll reports into blocks, and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qsync.broker.call import Argument, Call, queue_call, queue_query
from qsync.keys import QueueKeys

REPORTS_READ: Final = 200
"""Maximum number of reports that one call reads."""

MAX_REPORTS: Final = 1000
"""Maximum number of servers' reports of a queue that an inspector reads."""

FIELDS_READ: Final = 500
"""Maximum number of fields that one call reads."""


@dataclass(frozen=True, slots=True)
class StoredTypeStats:
    """What the store holds of the statistics of a queue's types."""

    now_us: int
    blocks: dict[str, bytes | None]
    reports: dict[str, bytes]


def report_types(keys: QueueKeys, reports: Mapping[str, bytes]) -> Call[list[str]]:
    """Store reports by their field; return the fields of those that were there before."""
    args: list[Argument] = []
    for field, report in reports.items():
        args += (field, report)
    return queue_call("report_types", keys, args, _texts)


def roll_types(
    keys: QueueKeys, directory: bytes, reports: Sequence[str], fields: Mapping[str, bytes | None]
) -> Call[bool]:
    """Replace reports by fields of the statistics; False: the directory has changed meanwhile."""
    args: list[Argument] = [directory, len(reports), *reports]
    for field, block in fields.items():
        args += (field, block or b"")
    return queue_call("roll_types", keys, args, bool)


def type_stats(
    keys: QueueKeys,
    fields: Sequence[str],
    *,
    reports: int = 0,
    offset: int = 0,
    now_us: int | None = None,
) -> Call[StoredTypeStats]:
    """Read fields of the statistics, up to FIELDS_READ, and a part of the reports."""
    args = ("" if now_us is None else now_us, reports, offset, *fields)

    def decode(answer: dict[str, Any]) -> StoredTypeStats:
        flat = answer["reports"]
        blocks = dict(zip(fields, answer["blocks"], strict=True))
        names = _texts(flat[::2])
        held = {name: data for name, data in zip(names, flat[1::2], strict=True) if data}
        return StoredTypeStats(int(answer["now"]), blocks, held)

    return queue_query("type_stats", keys, args, decode)


def _texts(raw: Sequence[bytes]) -> list[str]:
    return [text.decode(errors="replace") for text in raw]
