"""Hints in errors about an unknown name: the name that is probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qsync.errors import InvalidTask
from qsync.value_text import shorten

EQUIVALENTS: Final = {
    # Celery
    "autoretry_for": "retry_for",
    "countdown": "delay",
    "default_retry_delay": "retry_delay",
    "dont_autoretry_for": "dont_retry_for",
    "eta": "process_at",
    "expires": "deadline",
    "max_retries": "retry",
    "rate_limit": "limits",
    "retry_backoff": "retry_delay",
    "soft_time_limit": "timeout",
    "task_id": "id",
    "time_limit": "timeout",
    # RQ
    "job_id": "id",
    "job_timeout": "timeout",
    "result_ttl": "retention",
    # arq
    "defer_by": "delay",
    "defer_until": "process_at",
    "keep_result": "retention",
    "max_tries": "retry",
    # Dramatiq, Huey, SAQ
    "max_age": "deadline",
    "queue_name": "queue",
    "retries": "retry",
    "scheduled": "process_at",
    "throws": "dont_retry_for",
}
"""Options of tasks in other libraries, without a leading underscore, and what qsync calls them."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean '...'?` with the known name that is meant; else an empty text."""
    if not isinstance(name, str):
        return ""
    import difflib  # here, since few programs misspell a name

    names = list(known)
    equivalent = EQUIVALENTS.get(name.lstrip("_"))
    close = [equivalent] if equivalent in names else difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def no_option(where: str, option: str, known: Iterable[str]) -> InvalidTask:
    """Return the error for an option of a task that does not exist."""
    names = list(known)
    meant = did_you_mean(option, names)
    there = f"{meant} There" if meant else "; there"
    return InvalidTask(f"{where}: no option {shorten(option)}{there} are {', '.join(names)}")


def no_attribute(task: str, attribute: str) -> str:
    """Return the message for an attribute of a task function that does not exist."""
    return (
        f"task {task!r}: a task function has no {attribute!r}; enqueue by enqueue_sync(...), or in "
        "async code by await enqueue(...), and give options by options(...)"
    )
