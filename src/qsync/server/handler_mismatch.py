"""Warns if another server of a queue has a handler that this server lacks."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from qsync import queue_servers
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.formatting import printable
from qsync.keys import GlobalKeys

log: Final = logging.getLogger("qsync.server")


class HandlerFinder:
    """Looks for a live server that has a handler for a type that this server lacks."""

    def __init__(self, broker: AsyncBroker, prefix: str, server_id: str) -> None:
        self._broker = broker
        self._keys = GlobalKeys(prefix)
        self._server_id = server_id
        self._searches: set[asyncio.Task[None]] = set()

    def search(self, queue: str, type: str) -> None:
        """Look in the background, and log a warning if there is such a server."""
        task = asyncio.get_running_loop().create_task(self._search(queue, type))
        self._searches.add(task)
        task.add_done_callback(self._searches.discard)

    async def aclose(self) -> None:
        """Stop looking."""
        for task in self._searches:
            task.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)

    async def _search(self, queue: str, type: str) -> None:
        with suppress(QsyncError):  # the warning is only a hint, so ignore errors
            _, live = await self._broker.run(queue_servers.live(self._keys))
            others = [server for server in live if server != self._server_id]
            replies = await self._broker.run_many(queue_servers.records(self._keys, others))
            for server, record in zip(others, replies, strict=True):
                if isinstance(record, QsyncError) or not queue_servers.knows(record, type):
                    continue
                if queue_servers.serves(record, queue):
                    self._warn(queue, type, server)
                    return

    def _warn(self, queue: str, type: str, server: str) -> None:
        log.warning(
            "server %s has a handler for type %s and also serves queue %s of prefix %s: two "
            "programs with different tasks hand each other's tasks back, which delays them. Give "
            "each program its own prefix or queue. During a rolling deploy this is expected",
            server, printable(type), queue, self._keys.prefix,
            extra={"queue": queue, "task_type": type},
        )  # fmt: skip
