"""Decides whether a task that did not complete is retried, becomes dead or is handed back. Without
I/O."""

from __future__ import annotations

import logging
import math
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from msgspec.structs import replace

from qsync import codec
from qsync.backoff import ExponentialBackoff, RetryPolicy, retry_delay
from qsync.broker.op_values import HandedBack as Back
from qsync.broker.op_values import Killed, LeaseRef, Retried
from qsync.errors import ConfigError, RateLimited, Retry, SkipRetry, Snooze
from qsync.fingerprint import mark_of
from qsync.keys import server_of_token
from qsync.limit import limit_name
from qsync.message import ERROR_LIMIT, FailedAttempt, Failure
from qsync.retry_policy import NO_RULES, RetryRules
from qsync.server.error_text import (
    BadPayload,
    NeverRun,
    ResultNotKept,
    cut,
    describe,
    first_line,
)
from qsync.server.queue_state import LeasedTask
from qsync.value_text import class_name, class_path, raised_at, shorten

log: Final = logging.getLogger("qsync.server")

TOO_LATE: Final = "deadline passed before it could start"

SNOOZED_TOO_LONG: Final = "deadline passes before the end of its snooze"

UNKNOWN_FOR_US: Final = 3_600_000_000
"""How long a task may lack a server with a handler before it becomes dead, in microseconds."""

NEVER_RUN: Final = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})
"""Types of return values whose body has not run, which means that the handler did no work."""


class Snoozed(Back):
    """A task whose handler asked to run later; it is handed back with a delay."""

    __slots__ = ()


Settlement = Retried | Killed | Back | LeaseRef
"""Record that settles a task; a LeaseRef represents the end of a cancelled task."""


def never_run(value: Any) -> NeverRun:
    """Close a coroutine or generator that a handler returned, and return the error for it."""
    kind = type(value).__name__.replace("_", " ")
    if not isinstance(value, AsyncGeneratorType):
        value.close()  # the body has not started, so closing runs none of its code
    hint = "await it, or make the handler `async def`" if kind == "coroutine" else "do not yield"
    article = "an" if kind.startswith("a") else "a"
    return NeverRun(f"the handler returned {article} {kind}, whose body did not run: {hint}")


def failed(
    leased: LeasedTask,
    error: BaseException,
    now_us: int,
    policy: RetryPolicy,
    rules: RetryRules = NO_RULES,
) -> Settlement:
    """Return the record for a failed attempt: a retry, or death if no attempts or time are left."""
    attempt = leased.failure.attempts + 1
    text = describe(error)
    server, begun_us = server_of_token(leased.token), leased.begun_us(now_us)
    brief = FailedAttempt(attempt, now_us, server, first_line(text), begun_us, class_path(error))
    record = Failure(
        attempt, text, now_us, history=leased.failure.with_attempt(brief),
        snoozes=leased.failure.snoozes,
    )  # fmt: skip
    hopeless = SkipRetry | BadPayload | NeverRun | ResultNotKept
    final = isinstance(error, hopeless) or _is_final(rules, error)
    if final or attempt > leased.message.retry:
        return _kill(leased, record, failed=True)
    delay_us = _delay_us(leased, attempt, error, rules.delay or policy)
    deadline = leased.message.options and leased.message.options.deadline_us
    if deadline and now_us + delay_us >= deadline:
        why = cut(f"deadline passes before the next attempt; last error: {text}", ERROR_LIMIT)
        return _kill(leased, replace(record, error=why), failed=True)
    record = replace(record, due_us=now_us + delay_us)
    return Retried(leased.id, leased.token, delay_us, _encoded(leased, record))


def _is_final(rules: RetryRules, error: BaseException) -> bool:
    """Return whether the rules forbid a retry; False if a class in them raises, e.g. in the
    `__instancecheck__` of its metaclass."""
    try:
        return rules.is_final(error)
    except BaseException as raised:  # even SystemExit, which would end the server
        log.warning("retry_for or dont_retry_for raised %s; the task is retried", raised_at(raised))
        return False


def snoozed(leased: LeasedTask, error: Snooze, now_us: int) -> Settlement:
    """Return the record for a task whose handler asked to run later.

    The task is handed back with a delay, without counting an attempt, or is dead if its deadline is
    earlier. A RateLimited also closes a limit, and the task waits for that limit.

    Raises ConfigError if the task does not have the limit.
    """
    limit = _closed_limit(leased, error) if isinstance(error, RateLimited) else None
    before, due_us = leased.failure, now_us + error.delay_us
    deadline = leased.message.options and leased.message.options.deadline_us
    if deadline and due_us >= deadline:
        record = replace(before, error=SNOOZED_TOO_LONG, failed_at_us=now_us)
        return _kill(leased, record, failed=False)
    record = replace(
        before, unknown_since_us=0, unknown_times=0, due_us=due_us, snoozes=before.snoozes + 1,
        snoozed_at_us=now_us,
    )  # fmt: skip
    failure = codec.encode(record)
    if limit is None:
        return Snoozed(leased.id, leased.token, error.delay_us, failure, started=True)
    return Snoozed(
        leased.id, leased.token, None, failure, started=True, limit=limit,
        closed_us=error.delay_us,
    )  # fmt: skip


def _closed_limit(leased: LeasedTask, error: RateLimited) -> str | None:
    """Return the limit that the error closes; None if neither the error nor the task has a limit.

    Raise ConfigError if the error names a limit that the task does not have.
    """
    options = leased.message.options
    limits = () if options is None else options.limits or ()
    if error.limit is None:
        return limits[0] if limits else None
    for limit in limits:
        if error.limit in (limit, limit_name(limit)):
            return limit
    others = f"only {', '.join(limits)}" if limits else "nor any other limit"
    raise ConfigError(
        f"RateLimited: limit: the task has no limit {shorten(error.limit)}, {others}; name one of "
        "the task's limits=, or add the limit to them"
    )


def _delay_us(leased: LeasedTask, attempt: int, error: BaseException, policy: RetryPolicy) -> int:
    options = leased.message.options
    if isinstance(error, Retry) and error.delay is not None:
        asked = error.delay
        policy = lambda *_: asked  # noqa: E731 - an invalid delay then falls back to the default
    elif options and options.retry_delay is not None:
        policy = policy_of(options.retry_delay)
    exception = error if isinstance(error, Exception) else RuntimeError(class_name(error))
    return math.ceil(retry_delay(policy, attempt, exception) * 1_000_000)


def policy_of(stored: int | tuple[int, ...] | ExponentialBackoff) -> RetryPolicy:
    """Convert the retry delays of a message to a policy in seconds."""
    if isinstance(stored, int):
        return stored / 1_000_000
    if isinstance(stored, tuple):
        return tuple(delay / 1_000_000 for delay in stored)
    return stored


def past_deadline(leased: LeasedTask, now_us: int) -> Settlement:
    """Return the death record for a task that would start after its deadline."""
    record = replace(leased.failure, error=TOO_LATE, failed_at_us=now_us)
    return _kill(leased, record, failed=False)


def unknown_type(leased: LeasedTask, now_us: int) -> Settlement:
    """Return the record for a task that has no handler here: hand it back, or make it dead after an
    hour.

    The delay, which doubles from 1 s up to 60 s, lets other servers take the task.
    """
    before = leased.failure
    since = before.unknown_since_us or now_us
    times = before.unknown_times + 1
    if now_us - since >= UNKNOWN_FOR_US:
        text = f"unknown type {leased.message.type!r}: no server had a handler for it for an hour"
        return _kill(leased, replace(before, error=text, failed_at_us=now_us), failed=False)
    delay_us = min(60, 2 ** min(times - 1, 6)) * 1_000_000
    record = replace(before, unknown_since_us=since, unknown_times=times, due_us=now_us + delay_us)
    return Back(leased.id, leased.token, delay_us, codec.encode(record))


def undecodable(id: str, token: str, why: str, now_us: int) -> Killed:
    """Return the death record for a message that this version cannot decode; its bytes are kept."""
    record = Failure(0, f"undecodable message: {why}"[:ERROR_LIMIT], now_us)
    return Killed(id, token, failed=False, failure=codec.encode(record))


def _kill(leased: LeasedTask, record: Failure, *, failed: bool) -> Killed:
    return Killed(leased.id, leased.token, failed, _encoded(leased, record))


def _encoded(leased: LeasedTask, record: Failure) -> bytes:
    """Encode the record, with the mark by which scripts count failures of the same kind."""
    options = leased.message.options
    key = None if options is None else options.fairness_key
    return codec.encode(replace(record, mark=mark_of(leased.message.type, record.error, key)))


def timed_out(limit: float | None) -> TimeoutError:
    """Return the error of a handler that exceeded its timeout."""
    return TimeoutError("timed out" if limit is None else f"timed out after {limit:g} s")


def gave_up_itself() -> Exception:
    """Return the error of a handler that raised CancelledError without being stopped."""
    return RuntimeError("the handler raised CancelledError by itself")
