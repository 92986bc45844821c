"""The task whose handler is running, for modules that do not import the server."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

running: ContextVar[Any] = ContextVar("qsync.current")
"""The `Current` of the running task; unset outside of handlers."""


def check_lease() -> None:
    """Raise LeaseLost in a handler when this server no longer holds the lease on its task."""
    check: Callable[[], None] | None = getattr(running.get(None), "check_lease", None)
    if check is not None:
        check()


def nonce_of_parent() -> bytes | None:
    """Return the nonce for the running task's enqueues; it is the same in each of the task's
    attempts.

    When a retry enqueues a child task again under the same id, the store recognizes the task by its
    nonce. Returns None outside of a handler that a server runs.
    """
    current = running.get(None)
    # A plain context, outside of a server, has the enqueue time 0.
    if current is None or not current.task.enqueued_at_us:
        return None
    parent = current.task
    name = f"{parent.queue} {parent.id} {parent.enqueued_at_us}"
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def waiting_for(queue: str, id: str) -> AbstractContextManager[None]:
    """Report to the server that, during the block, the running task waits for another task's
    result."""
    note: Callable[[str, str], AbstractContextManager[None]] | None
    note = getattr(running.get(None), "waiting_for", None)
    return contextlib.nullcontext() if note is None else note(queue, id)
