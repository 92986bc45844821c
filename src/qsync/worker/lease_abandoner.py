"""Expires the leases of dead servers immediately, from a thread that retries until the store
replies.

A cluster node that does not reply delays only its own queues.
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
from qsync.formatting import plural
from qsync.keys import GlobalKeys, QueueKeys
from qsync.server.crash_log import listed, name_of
from qsync.server.outage_log import Outage
from qsync.state import TaskState

log: Final = logging.getLogger("qsync.worker")

T = TypeVar("T")

RECHECK_S: Final = 1.0
"""Delay before each job runs a second time, in seconds. A fetch that the dead server sent may reach
the store after the first run."""


TRY_S: Final = (0.5, 2.0)
"""Time limits for a reply from the store, in seconds: the first is for a job's first attempt, the
second for attempts after a failure."""

TASKS_LOGGED: Final = 500
"""Maximum number of a queue's active tasks to read in order to log which tasks the dead server
held."""


@dataclass(slots=True)
class _Job:
    keys: QueueKeys | None
    """Keys of a queue that the server served; None means that the job removes the server's
    record."""
    server_id: str
    due: float
    first: _Job | None = None
    """The job that this job repeats."""
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
    """Abandons dead servers in all of their queues, and retries while the store is unreachable."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._outage = Outage()
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, server_id: str, queues: Iterable[str], *, again: bool = True) -> None:
        """Expire the server's leases and delete its record as soon as the store replies.

        Return immediately. With `again`, each job runs a second time after RECHECK_S.
        """
        now = time.monotonic()
        keys = [*(QueueKeys(self._prefix, queue) for queue in queues), None]
        with self._changed:
            jobs = [_Job(one, server_id, now) for one in keys]
            if again:
                later = now + RECHECK_S
                jobs += [_Job(one.keys, server_id, later, one) for one in jobs]
            self._jobs += jobs
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="qsync-abandon", daemon=True
                )
                self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait until all jobs are done; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def _work(self) -> None:
        backoff = Backoff()
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except SchemaMismatch as error:
                log.debug("cannot abandon server %s: %s", job.server_id, error)
                self._remove(job)
                continue
            except QsyncError as error:
                self._outage.failed(job.part, error)
                job.failed = True
                self._postpone(job, time.monotonic() + backoff.next())
                continue
            backoff.reset()
            self._outage.worked(job.part)
            if job.cursor == "0":
                self._done(job)

    def _next(self) -> _Job | None:
        """Wait for the job that is due first and return it; return None if there are no jobs."""
        with self._changed:
            while self._jobs:
                now = time.monotonic()
                job = min(self._jobs, key=lambda entry: entry.due)
                if job.due <= now:
                    return job
                self._changed.wait(job.due - now)
            self._thread = None
            return None

    def _postpone(self, job: _Job, due: float) -> None:
        """Postpone a job and all jobs for the same node."""
        node = self._node(job)
        with self._changed:
            for other in self._jobs:
                if self._node(other) == node:
                    other.due = max(other.due, due)

    def _node(self, job: _Job) -> Node | None:
        keys = job.keys
        key = GlobalKeys(self._prefix).servers if keys is None else keys.key("active")
        return self._broker.node_of(key)

    def _run(self, job: _Job) -> None:
        """Run one step of a job; raise QsyncError if the store did not execute it."""
        if job.keys is None:
            keys, id = GlobalKeys(self._prefix), job.server_id
            self._try(job, registry_ops.server_heartbeat(keys, id, ttl_us=0))
            self._try(job, registry_ops.set_server_info(keys, id, {}, ttl_ms=0))
            return
        if job.names is None:
            job.names = self._read_names(job, job.keys)
        call = ops.abandon(job.keys, job.server_id, cursor=job.cursor)
        job.cursor, count = self._try(job, call)
        job.found += count

    def _try(self, job: _Job, call: Call[T]) -> T:
        """Make a call once, without retries."""
        return self._broker.run(call, patience=0, ends=ends_in(TRY_S[job.failed]))

    def _read_names(self, job: _Job, keys: QueueKeys) -> list[str]:
        """Return the names of the server's tasks from one page of active tasks, before another
        server recovers the tasks."""
        call = views.list_tasks(keys, TaskState.ACTIVE, count=TASKS_LOGGED)
        try:
            rows = self._try(job, call).rows
        except StoreUnavailable:
            raise
        except QsyncError:  # a store user set up for an older version may lack the permission
            return []
        mine = (f"{job.server_id}/", f"{job.server_id}~")
        return [name_of(row) for row in rows if (row.shown.owner or "").startswith(mine)]

    def _done(self, job: _Job) -> None:
        if job.keys and job.found and not (job.first and job.first.found):
            log.warning(
                "server %s died; its leases on queue %s are released: %s%s",
                job.server_id, job.keys.queue, plural(job.found, "task"),
                listed(job.names or [], job.found),
            )  # fmt: skip
        self._remove(job)

    def _remove(self, job: _Job) -> None:
        with self._changed:
            self._jobs.remove(job)
            self._changed.notify_all()
