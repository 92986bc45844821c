"""Hints for errors about an unknown name: the name that was probably meant."""

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
"""Task options of other libraries, without leading underscores, and their names in qsync."""


_AFTERWARDS: Final = "enqueue the next task at the end of the handler"

NOTES: Final = {
    "acks_late": "leave it out: a task stays in the store until its handler has ended",
    "at_front": "did you mean 'priority'? Tasks with priority=9 start first",
    "base": "for code that runs around the handler, use middleware=",
    "bind": (
        "there is no 'bind': give the function a first parameter that is annotated as TaskInfo, "
        "def send(task: TaskInfo, ...)"
    ),
    "depends_on": f"there is no 'depends_on': {_AFTERWARDS}",
    "ignore_result": "leave it out: a result is kept only if the task has a retention",
    "expires": "did you mean 'deadline'? It is a time: datetime.now(UTC) + timedelta(seconds=...)",
    "link": f"there is no 'link': {_AFTERWARDS}",
    "link_error": "there is no 'link_error': use app.on(\"dead\"), which is called for dead tasks",
    "max_age": "did you mean 'deadline'? It is a time: datetime.now(UTC) + timedelta(...)",
    "max_tries": "did you mean 'retry'? It does not count the first attempt, so pass 4 for 5 tries",
    "meta": "did you mean 'headers'? They are strings, and the handler cannot change them",
    "on_failure": "there is no 'on_failure': use app.on(\"dead\"), which is called for dead tasks",
    "on_success": f"there is no 'on_success': {_AFTERWARDS}",
    "serializer": "leave it out: arguments and results are stored as msgpack",
}
"""Hints for options of other libraries where qsync's name for the option would not be enough."""


def option_hint(name: str, options: Iterable[str]) -> str:
    """Return qsync's name for an option of another library; "" for any other name."""
    plain = name.lstrip("_")
    if plain in NOTES:
        return f"; {NOTES[plain]}"
    equivalent = EQUIVALENTS.get(plain, "")
    return f"; did you mean the option {equivalent!r}?" if equivalent in set(options) else ""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean '...'?` with the most similar known name, or "" if none is similar."""
    if not isinstance(name, str):
        return ""
    import difflib  # imported here, since few programs need it

    names = list(known)
    equivalent = EQUIVALENTS.get(name.lstrip("_"))
    close = [equivalent] if equivalent in names else difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def no_option(where: str, option: str, known: Iterable[str]) -> InvalidTask:
    """Return the error for a task option that does not exist."""
    names = list(known)
    note = NOTES.get(option.lstrip("_")) if isinstance(option, str) else None
    meant = f"; {note}" if note else did_you_mean(option, names)
    options = f"{meant}{'' if meant.endswith('?') else '.'} The" if meant else "; the"
    return InvalidTask(
        f"{where}: no option {shorten(option)}{options} options are {', '.join(names)}"
    )


def no_attribute(task: str, attribute: str) -> str:
    """Return the message for a missing attribute of a task function."""
    return (
        f"task {task!r}: a task function has no {attribute!r}; enqueue with enqueue_sync(...), or "
        "in async code with await enqueue(...), and set options with options(...)"
    )
