"""Which task's handler runs here, for those who must know it without knowing servers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

running: ContextVar[Any] = ContextVar("qsync.current")
"""The `Current` of the running task; not set outside of handlers."""


def check_lease() -> None:
    """Raise LeaseLost in the handler of a task that this server holds no lease of any more."""
    check: Callable[[], None] | None = getattr(running.get(None), "check_lease", None)
    if check is not None:
        check()


def nonce_of_parent() -> bytes | None:
    """The mark of enqueues by the running task, the same in each of its attempts.

    By it a task that a handler enqueues again under the same id is the one that is there. None
    outside of a handler that a server runs.
    """
    current = running.get(None)
    if current is None or not current.task.enqueued_at_us:  # nobody enqueued that of a plain one
        return None
    parent = current.task
    name = f"{parent.queue} {parent.id} {parent.enqueued_at_us}"
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def waiting_for(queue: str, id: str) -> AbstractContextManager[None]:
    """Tell the server of the running task, if there is one, that it waits for another's result."""
    note: Callable[[str, str], AbstractContextManager[None]] | None
    note = getattr(running.get(None), "waiting_for", None)
    return contextlib.nullcontext() if note is None else note(queue, id)
