"""Expires the leases of dead servers at once, from a thread that retries until the store answers.

A cluster node that does not answer delays only its own queues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from qsync.backoff import Backoff
from qsync.broker import ops, registry_ops, views
from qsync.broker.base import ends_in
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError, SchemaMismatch, StoreUnavailable
from qsync.keys import GlobalKeys, QueueKeys
from qsync.server.crash_log import listed, name_of
from qsync.server.outage_log import Outage
from qsync.state import TaskState

log: Final = logging.getLogger("qsync.worker")

T = TypeVar("T")

RECHECK_S: Final = 1.0
"""Delay before each job runs a second time, in seconds: a fetch that the dead server sent may reach
the store after the first run."""


TRY_S: Final = (0.5, 2.0)
"""Time that the store has to answer, in seconds: at the first attempt, and after a failure."""

PAGE: Final = 500
"""Number of active tasks of a queue that are read to log the names of the dead server's tasks."""


@dataclass(slots=True)
class _Job:
    keys: QueueKeys | None
    """Keys of a queue that the server served; None: remove the server's own record."""
    server_id: str
    due: float
    first: _Job | None = None
    """The job that this one repeats."""
    cursor: str = "0"
    found: int = 0
    failed: bool = False
    names: list[str] | None = None
    """Names of some tasks that the server held; None until they are read."""

    @property
    def part(self) -> str:
        """Description of the job for the log."""
        where = "" if self.keys is None else f" on queue {self.keys.queue}"
        return f"abandon servers that died{where}"


class LeaseAbandoner:
    """Abandons dead servers on all of their queues, and retries while the store is unreachable."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._outage = Outage()
        self._errands: list[_Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, server_id: str, queues: Iterable[str], *, again: bool = True) -> None:
        """Expire the server's leases and delete its record as soon as the store answers.

        Returns at once. With `again`, each job runs a second time after RECHECK_S.
        """
        now = time.monotonic()
        keys = [*(QueueKeys(self._prefix, queue) for queue in queues), None]
        with self._changed:
            errands = [_Job(one, server_id, now) for one in keys]
            if again:
                later = now + RECHECK_S
                errands += [_Job(one.keys, server_id, later, one) for one in errands]
            self._errands += errands
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="qsync-abandon", daemon=True
                )
                self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._errands, timeout)

    def _work(self) -> None:
        backoff = Backoff()
        while (errand := self._next()) is not None:
            try:
                self._run(errand)
            except SchemaMismatch as error:
                log.info("cannot abandon server %s: %s", errand.server_id, error)
                self._remove(errand)
                continue
            except QsyncError as error:
                self._outage.failed(errand.part, error)
                errand.failed = True
                self._postpone(errand, time.monotonic() + backoff.next())
                continue
            backoff.reset()
            self._outage.worked(errand.part)
            if errand.cursor == "0":
                self._done(errand)

    def _next(self) -> _Job | None:
        """Wait for the job that is due first and return it; return None if there are no jobs."""
        with self._changed:
            while self._errands:
                now = time.monotonic()
                errand = min(self._errands, key=lambda one: one.due)
                if errand.due <= now:
                    return errand
                self._changed.wait(errand.due - now)
            self._thread = None
            return None

    def _postpone(self, errand: _Job, due: float) -> None:
        """Postpone a job and all jobs of the same node."""
        node = self._node(errand)
        with self._changed:
            for other in self._errands:
                if self._node(other) == node:
                    other.due = max(other.due, due)

    def _node(self, errand: _Job) -> Node | None:
        keys = errand.keys
        key = GlobalKeys(self._prefix).servers if keys is None else keys.key("active")
        return self._broker.node_of(key)

    def _run(self, errand: _Job) -> None:
        """Run one step of a job. QsyncError if the store did not carry it out."""
        if errand.keys is None:
            keys, id = GlobalKeys(self._prefix), errand.server_id
            self._try(errand, registry_ops.server_heartbeat(keys, id, ttl_us=0))
            self._try(errand, registry_ops.set_server_info(keys, id, {}, ttl_ms=0))
            return
        if errand.names is None:
            errand.names = self._read_names(errand, errand.keys)
        call = ops.abandon(errand.keys, errand.server_id, cursor=errand.cursor)
        errand.cursor, count = self._try(errand, call)
        errand.found += count

    def _try(self, errand: _Job, call: Call[T]) -> T:
        """Make a call once, without retries."""
        return self._broker.run(call, patience=0, ends=ends_in(TRY_S[errand.failed]))

    def _read_names(self, errand: _Job, keys: QueueKeys) -> list[str]:
        """Return names of the server's tasks, from one page, before others recover them."""
        call = views.list_tasks(keys, TaskState.ACTIVE, count=PAGE)
        try:
            rows = self._try(errand, call).rows
        except StoreUnavailable:
            raise
        except QsyncError:  # a store user of an older version may lack the right
            return []
        mine = (f"{errand.server_id}/", f"{errand.server_id}~")
        return [name_of(row) for row in rows if (row.shown.owner or "").startswith(mine)]

    def _done(self, errand: _Job) -> None:
        if errand.keys and errand.found and not (errand.first and errand.first.found):
            log.warning(
                "server %s died; its leases on queue %s are released: %d tasks%s",
                errand.server_id, errand.keys.queue, errand.found,
                listed(errand.names or [], errand.found),
            )  # fmt: skip
        self._remove(errand)

    def _remove(self, errand: _Job) -> None:
        with self._changed:
            self._errands.remove(errand)
            self._changed.notify_all()
