"""What becomes of a task whose handler did not return: retry, death, or back to the queue. Pure."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from msgspec.structs import replace

from qsync import codec
from qsync.backoff import RetryPolicy, retry_delay
from qsync.broker.ops import HandedBack as Back
from qsync.broker.ops import Held, Killed, Retried
from qsync.errors import InvalidTask, QsyncError, Retry, SkipRetry
from qsync.keys import class_name, server_of_token
from qsync.server.lane import Leased
from qsync.task import ERROR_LIMIT, SHORT_ERROR_LIMIT, FailedAttempt, Failure

UNKNOWN_FOR_US: Final = 3_600_000_000
"""A task whose type no server knew for so long is dead."""

NEVER_RUN: Final = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})
"""Types of what is returned in place of a body that has not run: the work was not done."""

_OURS: Final = str(Path(__file__).parent)

Settlement = Retried | Killed | Back | Held
"""Held stands for the end of a cancelled task."""


class BadPayload(InvalidTask):
    """The payload does not fit the handler: another attempt would not go better."""


class NeverRun(QsyncError):
    """The handler returned a body that nobody ran: another attempt would not go better."""


def never_run(value: Any) -> NeverRun:
    """The failure of a handler that returned a coroutine or a generator; it is closed."""
    what = type(value).__name__.replace("_", " ")
    if not isinstance(value, AsyncGeneratorType):
        value.close()  # it has not begun, so this runs nothing of it
    hint = "await it, or make the handler `async def`" if what == "coroutine" else "do not yield"
    article = "an" if what.startswith("a") else "a"
    return NeverRun(f"the handler returned {article} {what}, whose body did not run: {hint}")


def describe(error: BaseException, limit: int = ERROR_LIMIT) -> str:
    """An exception as text, `limit` bytes of UTF-8 at most, whatever its `str` does.

    The first line says what it is, and then comes the traceback, cut in the middle when long, and
    the same of what it was raised from. What called the handler is left out.
    """
    head = _cut(_head(error), limit // 2)
    if isinstance(error, BadPayload | NeverRun):
        return head  # it says all; nothing of the user's has run
    try:
        elsewhere = getattr(error, "traceback", None)  # of a handler in another process
        parts = [str(elsewhere)] if elsewhere else [_trace(error), *_causes(error)]
    except Exception:  # whatever a class of the user's has in the places of these
        parts = []
    return _cut("\n\n".join([head, *filter(None, parts)]), limit)


def _head(error: BaseException) -> str:
    name = class_name(error)
    try:
        text = str(error)
    except BaseException as broken:
        text = f"<its text raised {class_name(broken)}>"
    return f"{name}: {text}" if text else name


def _trace(error: BaseException) -> str:
    stack = traceback.extract_tb(error.__traceback__, limit=-40)
    frames = [frame for frame in stack if not frame.filename.startswith(_OURS)]
    return "".join(traceback.format_list(frames))


def _causes(error: BaseException, most: int = 3) -> Iterator[str]:
    """What is in it, what it was raised from, or while handling which: three of each at most."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions[:3]:
            yield f"in it {_head(one)}"
            yield _trace(one)
    cause, how = error.__cause__, "raised from"
    if cause is None and not error.__suppress_context__:
        cause, how = error.__context__, "raised while handling"
    if cause is not None and most:
        yield f"{how} {_head(cause)}"
        yield _trace(cause)
        yield from _causes(cause, most - 1)


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode("utf-8")
    half = (limit - 5) // 2
    return f"{data[:half].decode('utf-8', 'ignore')}\n...\n{data[-half:].decode('utf-8', 'ignore')}"


def first_line(text: str) -> str:
    """The first line of an error, SHORT_ERROR_LIMIT bytes of UTF-8 at most."""
    data = text.partition("\n")[0].encode("utf-8", "backslashreplace")
    return data[:SHORT_ERROR_LIMIT].decode("utf-8", "ignore")


def failed(leased: Leased, error: BaseException, now_us: int, policy: RetryPolicy) -> Settlement:
    """A failed attempt: another one while some are left and the deadline allows, else death."""
    attempt = leased.failure.attempts + 1
    text = describe(error)
    brief = FailedAttempt(attempt, now_us, server_of_token(leased.token), first_line(text))
    record = Failure(attempt, text, now_us, history=leased.failure.with_attempt(brief))
    final = isinstance(error, SkipRetry | BadPayload | NeverRun)
    if final or attempt > leased.message.retry:
        return _kill(leased, record, failed=True)
    delay_us = _delay_us(leased, attempt, error, policy)
    deadline = leased.message.options and leased.message.options.deadline_us
    if deadline and now_us + delay_us >= deadline:
        why = _cut(f"deadline passes before the next attempt; last error: {text}", ERROR_LIMIT)
        return _kill(leased, replace(record, error=why), failed=True)
    record = replace(record, due_us=now_us + delay_us)
    return Retried(leased.id, leased.token, delay_us, codec.encode(record))


def _delay_us(leased: Leased, attempt: int, error: BaseException, policy: RetryPolicy) -> int:
    options = leased.message.options
    if isinstance(error, Retry) and error.delay is not None:
        asked = error.delay
        policy = lambda *_: asked  # noqa: E731 - so that a delay that is none is made good for
    elif options and options.retry_delay_us is not None:
        return options.retry_delay_us
    known = error if isinstance(error, Exception) else RuntimeError(class_name(error))
    return math.ceil(retry_delay(policy, attempt, known) * 1_000_000)


def past_deadline(leased: Leased, now_us: int) -> Settlement:
    """A task that would start after its deadline is dead."""
    text = "deadline passed before it could start"
    record = replace(leased.failure, error=text, failed_at_us=now_us)
    return _kill(leased, record, failed=False)


def unknown_type(leased: Leased, now_us: int) -> Settlement:
    """A type that this server does not know: later, maybe elsewhere; after an hour, dead."""
    before = leased.failure
    since = before.unknown_since_us or now_us
    times = before.unknown_times + 1
    if now_us - since >= UNKNOWN_FOR_US:
        text = f"unknown type {leased.message.type!r}: no server knew it for an hour"
        return _kill(leased, replace(before, error=text, failed_at_us=now_us), failed=False)
    delay_us = min(60, 2 ** min(times - 1, 6)) * 1_000_000
    record = replace(before, unknown_since_us=since, unknown_times=times, due_us=now_us + delay_us)
    return Back(leased.id, leased.token, delay_us, codec.encode(record))


def undecodable(id: str, token: str, why: str, now_us: int) -> Killed:
    """What lies in the store is no message that this version can read; its bytes are kept."""
    record = Failure(0, f"undecodable message: {why}"[:ERROR_LIMIT], now_us)
    return Killed(id, token, failed=False, failure=codec.encode(record))


def _kill(leased: Leased, record: Failure, *, failed: bool) -> Killed:
    return Killed(leased.id, leased.token, failed, codec.encode(record))


def timed_out(limit: float | None) -> TimeoutError:
    """The failure of a handler that took too long."""
    return TimeoutError(f"timed out after {limit:g} s")


def gave_up_itself() -> Exception:
    """The failure of a handler that raised CancelledError though nobody stopped it."""
    return RuntimeError("the handler raised CancelledError by itself")
