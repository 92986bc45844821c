"""Sends the tasks of a Django project immediately, or when the transaction commits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.db import transaction

from qsync.client import AsyncHandle, Handle
from qsync.connections import Connections
from qsync.contrib.django.at_commit import Commit, at_commit, waiting
from qsync.contrib.django.configuration import configuration
from qsync.contrib.django.outbox import DjangoOutbox
from qsync.contrib.django.uncommitted import handle_of
from qsync.errors import DuplicateTask
from qsync.formatting import plural
from qsync.loop_internals import running_loop
from qsync.new_task import new_id
from qsync.task import Arguments, Task

log: Final = logging.getLogger("qsync.django")

Sent = Callable[[str, bool], None]
"""Function that is called with the task's id in the store and with whether the task is new. With
`on_duplicate="skip"`, `"replace"` or `debounce`, the id may be that of another task."""


def _nothing(id: str, created: bool, /) -> None:
    pass


class ProjectSender:
    """Sends tasks at the time that the setting ENQUEUE selects; the setting is read at each
    enqueue.

    A task enqueued in an open transaction gets its id immediately. The handle's `created` is then
    False, because the store does not have the task yet, and the handle raises TaskNotFound until
    the commit.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.outbox: DjangoOutbox = DjangoOutbox(connections)

    def enqueue(self, task: Task[Any], sent: Sent = _nothing) -> Handle[Any]:
        """Send the task now or at the commit; `sent` is called once the store has the task."""
        client = self._connections.shared()
        later = self._defer(task, sent)
        if later is not None:
            return _handle(client, *later)
        handle = client.enqueue(task)
        sent(handle.id, handle.created)
        return handle

    async def aenqueue(self, task: Task[Any]) -> AsyncHandle[Any]:
        """Send the task now, or when the transaction of Django's sync thread commits."""
        later = None
        if configuration().enqueue != "now":
            later = await sync_to_async(self._defer, thread_sensitive=True)(task, _nothing)
        client = self._connections.here()
        if later is not None:
            return _handle(client, *later)
        return await client.enqueue(task)

    def _defer(self, task: Task[Any], sent: Sent) -> tuple[Task[Any], Commit] | None:
        """Send the task at the commit; return it with its id, and the commit. Return None if the
        task can be sent now."""
        configured = configuration()
        if configured.enqueue == "outbox" and self._connections.client_types is None:
            return self.outbox.write(task, sent)
        if configured.enqueue == "now" or not _in_transaction(configured.database):
            return None
        self._connections.check(task)
        later = task if task.id is not None else task.replace(id=new_id())
        return later, at_commit(configured.database, partial(self._send, later, sent))

    def waiting(self) -> str:
        """Return a hint for a failed test: how many enqueues wait for a commit, and how to send
        them; "" if none waits."""
        count = waiting(configuration().database)
        if not count:
            return ""
        tasks = f"waiting for the commit of this transaction: {plural(count, 'enqueue')}"
        if running_loop() is not None:
            return (
                f"{tasks}; a TestCase does not commit, and captureOnCommitCallbacks captures "
                "nothing in an async test: use a TransactionTestCase"
            )
        return (
            f"{tasks}; a TestCase does not commit, so run the code under test in\n"
            "  with self.captureOnCommitCallbacks(execute=True):"
        )

    def _send(self, task: Task[Any], sent: Sent) -> None:
        try:
            handle = self._connections.shared().enqueue(task)
        except DuplicateTask as error:
            log.info(
                "task %s of type %s was not enqueued at the commit: %s", task.id, task.type, error
            )
        else:
            sent(handle.id, handle.created)


def _in_transaction(database: str) -> bool:
    """Return whether an enqueue has to wait for a commit; do not connect to the database."""
    connection = transaction.get_connection(database)
    if connection.in_atomic_block:
        return True
    # Also return True if autocommit is off: Django then does not know when the commit happens, so
    # on_commit raises an error.
    return connection.connection is not None and not connection.get_autocommit()


def _handle(client: Any, task: Task[Any], commit: Commit) -> Any:
    handle = handle_of(client, str(task.id), task.queue, commit)
    decode = task.payload.decode if isinstance(task.payload, Arguments) else None
    return handle if decode is None else handle.with_decoder(decode)
