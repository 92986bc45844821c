"""Lets the leases of servers that died lapse at once, from a thread that waits for the store.

A node of a cluster that does not answer holds up its own queues and no others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from qsync.backoff import Backoff
from qsync.broker import ops, views
from qsync.broker.call import Call
from qsync.broker.shell import Broker, ends_in
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError, SchemaMismatch, StoreUnavailable
from qsync.keys import GlobalKeys, QueueKeys
from qsync.server.crash_log import listed, name_of
from qsync.server.outage_log import Outage
from qsync.state import TaskState

log = logging.getLogger("qsync.worker")

T = TypeVar("T")

RECHECK_S: Final = 1.0
"""A fetch that the dead server had sent may reach the store after us: so look once more."""


TRY_S: Final = (0.5, 2.0)
"""How long the store may take to answer: at the first try, and at later ones."""

PAGE: Final = 500
"""Running tasks of a queue that are looked at for the names of those of the dead server."""


@dataclass(slots=True)
class _Job:
    keys: QueueKeys | None
    """Of the queue whose tasks it held; None: its record is to be taken away."""
    server_id: str
    due: float
    first: _Job | None = None
    """The one that this one repeats."""
    cursor: str = "0"
    found: int = 0
    failed: bool = False
    names: list[str] | None = None
    """Some of the tasks that it held; None: not read yet."""

    @property
    def part(self) -> str:
        """What it is, for the log."""
        where = "" if self.keys is None else f" on queue {self.keys.queue}"
        return f"abandon servers that died{where}"


class LeaseAbandoner:
    """Abandons dead servers, each on all of its queues, for as long as the store is away."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._outage = Outage()
        self._errands: list[_Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, server_id: str, queues: Iterable[str], *, again: bool = True) -> None:
        """The server's leases lapse, and its record goes, as soon as the store can be told.

        Returns at once.

        `again`: look once more a little later.
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
        """Wait until the store knows of all; False when that takes longer than so many seconds."""
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
        """The errand that is due first, when it is; None, and the thread's end, without any."""
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
        """Put off an errand, and those that go to the same node."""
        node = self._node(errand)
        with self._changed:
            for one in self._errands:
                if self._node(one) == node:
                    one.due = max(one.due, due)

    def _node(self, errand: _Job) -> Node | None:
        keys = errand.keys
        key = GlobalKeys(self._prefix).servers if keys is None else keys.key("active")
        return self._broker.node_of(key)

    def _run(self, errand: _Job) -> None:
        """One step of an errand. QsyncError when the store cannot be told yet."""
        if errand.keys is None:
            keys, id = GlobalKeys(self._prefix), errand.server_id
            self._try(errand, ops.announce(keys, id, ttl_us=0))
            self._try(errand, ops.describe(keys, id, {}, ttl_ms=0))
            return
        if errand.names is None:
            errand.names = self._read_names(errand, errand.keys)
        call = ops.abandon(errand.keys, errand.server_id, cursor=errand.cursor)
        errand.cursor, found = self._try(errand, call)
        errand.found += found

    def _try(self, errand: _Job, call: Call[T]) -> T:
        """Make a call once."""
        return self._broker.run(call, patience=0, ends=ends_in(TRY_S[errand.failed]))

    def _read_names(self, errand: _Job, keys: QueueKeys) -> list[str]:
        """Which tasks it held, before others recover them: as far as one page of them says."""
        call = views.page(keys, TaskState.ACTIVE, count=PAGE)
        try:
            rows = self._try(errand, call).rows
        except StoreUnavailable:
            raise
        except QsyncError:  # it does without: a user of an older version may not read them
            return []
        mine = (f"{errand.server_id}/", f"{errand.server_id}~")
        return [name_of(row) for row in rows if (row.shown.owner or "").startswith(mine)]

    def _done(self, errand: _Job) -> None:
        if errand.keys and errand.found and not (errand.first and errand.first.found):
            log.warning(
                "server %s is abandoned on queue %s: it held %d tasks%s",
                errand.server_id, errand.keys.queue, errand.found,
                listed(errand.names or [], errand.found),
            )  # fmt: skip
        self._remove(errand)

    def _remove(self, errand: _Job) -> None:
        with self._changed:
            self._errands.remove(errand)
            self._changed.notify_all()
