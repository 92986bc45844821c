"""Lets the leases of servers that died lapse at once, from a thread that waits for the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qsync.backoff import Backoff
from qsync.broker import ops
from qsync.broker.shell import Broker
from qsync.errors import QsyncError, SchemaMismatch
from qsync.keys import QueueKeys

log = logging.getLogger("qsync.worker")

AGAIN_S: Final = 1.0
"""A fetch that the dead server had sent may reach the store after us: so look once more."""


@dataclass(slots=True)
class _Errand:
    keys: QueueKeys
    server_id: str
    due: float
    last: bool
    cursor: str = "0"
    found: int = 0


class Abandoner:
    """Abandons dead servers, each on all of its queues, for as long as the store is away."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._errands: list[_Errand] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, server_id: str, queues: Iterable[str], *, again: bool = True) -> None:
        """The server's leases lapse as soon as the store can be told; returns at once.

        `again`: look once more a little later.
        """
        now = time.monotonic()
        keys = [QueueKeys(self._prefix, queue) for queue in queues]
        with self._changed:
            self._errands += [_Errand(one, server_id, now, last=False) for one in keys]
            if again:
                self._errands += [_Errand(one, server_id, now + AGAIN_S, last=True) for one in keys]
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
                errand.cursor, found = self._broker.run(
                    ops.abandon(errand.keys, errand.server_id, cursor=errand.cursor), patience=0
                )
            except SchemaMismatch as error:
                log.info("cannot abandon server %s: %s", errand.server_id, error)
                self._remove(errand)
                continue
            except QsyncError as error:
                log.warning(
                    "cannot abandon server %s on queue %s yet: %s",
                    errand.server_id, errand.keys.queue, error,
                )  # fmt: skip
                errand.due = time.monotonic() + backoff.next()
                continue
            backoff.reset()
            errand.found += found
            if errand.cursor == "0":
                self._done(errand)

    def _next(self) -> _Errand | None:
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

    def _done(self, errand: _Errand) -> None:
        if errand.found or not errand.last:
            log.info(
                "server %s is abandoned on queue %s: it held %d tasks",
                errand.server_id, errand.keys.queue, errand.found,
            )  # fmt: skip
        self._remove(errand)

    def _remove(self, errand: _Errand) -> None:
        with self._changed:
            self._errands.remove(errand)
            self._changed.notify_all()
