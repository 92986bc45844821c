"""A client that edits documents through debounced tasks. Only the last version of a document
matters.

The ledger does not track these tasks, since one task stands for many calls; this module checks them
instead.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Final

from qsync.client import AsyncClient
from qsync.errors import QueueFull, StoreUnavailable
from qsync.task import Task

EDIT: Final = "edit-"
"""Prefix of the ids of debounced tasks."""

DEBOUNCE_S: Final = 0.4
DEBOUNCE_MAX_S: Final = 1.5
VERSIONS: Final = 14


@dataclass(slots=True)
class Documents:
    """The last accepted version of each document, and the last version that a handler has
    finished."""

    accepted: dict[int, int] = field(default_factory=dict)
    ran: dict[int, int] = field(default_factory=dict)
    """The latest version whose handler returned."""

    def note_run(self, plan: dict[str, Any]) -> None:
        document = plan["document"]
        self.ran[document] = max(plan["version"], self.ran.get(document, 0))

    def missing(self) -> dict[int, int]:
        """Return the documents whose last accepted version no handler has finished."""
        return {one: last for one, last in self.accepted.items() if self.ran.get(one, 0) < last}


def is_edit(id: bytes | str) -> bool:
    return (id if isinstance(id, str) else id.decode()).startswith(EDIT)


class Editor:
    """Enqueues a task for each version, one after another."""

    def __init__(self, rng: random.Random, queue: str, documents: Documents) -> None:
        self._random = rng
        self._queue = queue
        self._documents = documents

    async def run(self, client: AsyncClient, seconds: float) -> None:
        async with client:
            for version in range(1, VERSIONS + 1):
                await asyncio.sleep(self._random.expovariate(VERSIONS / seconds) % seconds)
                await self._edit(client, self._random.randrange(2), version)

    async def _edit(self, client: AsyncClient, document: int, version: int) -> None:
        plan = {
            "kind": "edit", "n": 0, "document": document, "version": version,
            "seconds": self._random.choice((0.0, 0.2, 1.0)), "times": self._random.choice((0, 1)),
        }  # fmt: skip
        options: dict[str, Any] = {"debounce": DEBOUNCE_S, "debounce_max": DEBOUNCE_MAX_S}
        if self._random.random() < 0.3:
            options = {"on_duplicate": "replace", "delay": self._random.choice((None, 0.5))}
        task = Task(
            "work", plan, queue=self._queue, id=f"{EDIT}{version}", retry=20, retry_delay=0.1,
            unique_key=f"document {document}", priority=self._random.choice((3, 5, 8)), **options,
        )  # fmt: skip
        try:
            await client.enqueue(task)
        except (StoreUnavailable, QueueFull):
            return
        self._documents.accepted[document] = version
