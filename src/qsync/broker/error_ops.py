"""The operation that counts failed tasks by error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from qsync.broker.call import Argument, Call, queue_query
from qsync.broker.stored_task import StoredTask
from qsync.broker.views import PageKey, StoredTaskRow
from qsync.keys import QueueKeys
from qsync.state import TaskState

COUNTED_MOST: Final = 250
"""Maximum number of tasks that one call counts."""


class CountedError(NamedTuple):
    """One error: its fingerprint, the number of tasks that failed with it, and the times of the
    first and last failure in us."""

    fingerprint: str
    number: int
    first_us: int
    last_us: int
    keys: dict[str, int]
    """Number of tasks by fairness key; the empty name counts the tasks of all other keys."""
    sample: StoredTaskRow | None
    """The task that failed last; None for a known error."""


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Counts of failed tasks by error, for a part of a state; the latest tasks come first.

    The part ends before a task whose record has no mark. If `read` is 0 and `more` is true, the
    next task has no mark.
    """

    more: bool
    read: int
    place: PageKey | None
    """Position of the last task counted."""
    errors: list[CountedError]


def count_errors(
    keys: QueueKeys, state: TaskState, *, after: PageKey | None = None, known: Iterable[str] = ()
) -> Call[ErrorCounts]:
    """Count some of the dead or retried tasks by error, from the latest to the oldest.

    `after` is the position of the last task that the previous call counted. Errors in `known` are
    returned without their last task.
    """
    score, id = after or ("", "")
    raw = id.encode(errors="surrogateescape")
    args: tuple[Argument, ...] = (state.value, COUNTED_MOST, score, raw, " ".join(known))

    def decode(fields: dict[str, Any]) -> ErrorCounts:
        place = None
        if fields["read"]:
            last = fields["id"].decode(errors="surrogateescape")
            place = (fields["score"].decode(), last)
        return ErrorCounts(
            bool(fields["more"]),
            fields["read"],
            place,
            [_error(state, row) for row in fields["errors"]],
        )

    return queue_query("count_errors", keys, args, decode)


def _error(state: TaskState, row: list[Any]) -> CountedError:
    fingerprint, number, first, last, keys, sample = row
    names = [name.decode(errors="replace") for name in keys[::2]]
    return CountedError(
        fingerprint.decode(), number, int(first), int(last),
        dict(zip(names, keys[1::2], strict=True)), _sample(state, int(last), sample),
    )  # fmt: skip


def _sample(state: TaskState, at_us: int, sample: list[Any]) -> StoredTaskRow | None:
    if not sample:
        return None
    id, length, message, failure = sample
    shown = StoredTask(state, at_us, message or None, None, None, failure, None, None, None)
    text = id.decode(errors="backslashreplace")
    return StoredTaskRow(text, (str(at_us), id.decode(errors="surrogateescape")), length, shown)
