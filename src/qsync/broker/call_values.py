"""Makes the arguments of calls, and decodes parts of their replies. Without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from qsync.broker.call import Argument
from qsync.broker.op_values import MAX_TASKS_PER_CALL

T = TypeVar("T")


def bounded(items: Sequence[T]) -> Sequence[T]:
    """Return the items, at most MAX_TASKS_PER_CALL: Lua's `unpack` may not take more."""
    if len(items) > MAX_TASKS_PER_CALL:
        msg = f"{len(items)} tasks in one call are over the limit of {MAX_TASKS_PER_CALL}"
        raise ValueError(msg)
    return items


def now_argument(now_us: int | None) -> Argument:
    """Return the argument `now` of a script: empty for the store's clock."""
    return "" if now_us is None else now_us


def text_of(value: bytes) -> str:
    """Decode a value of the store; invalid UTF-8 is escaped and never raises."""
    return value.decode(errors="backslashreplace")


def texts_of(reply: Any) -> list[Any]:
    """Decode a list of texts. Their type is the caller's, e.g. a list of literals."""
    return [text_of(outcome) for outcome in reply]


def pairs_of(reply: Any) -> Any:
    """Decode a flat list of texts as a list of pairs."""
    texts = texts_of(reply)
    return list(zip(texts[::2], texts[1::2], strict=True))


def text_tuple(reply: Any) -> Any:
    """Decode a list of texts as a tuple."""
    return tuple([text_of(part) for part in reply])
