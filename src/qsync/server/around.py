"""What `current()` gives to the handlers of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from qsync.server.lane import Leased, Stop
from qsync.task import TaskInfo

TellProgress = Callable[[Leased, float, float], None]


class Surroundings:
    """What all handlers of a server share."""

    def __init__(self, async_client: Any, client: Callable[[], Any]) -> None:
        self.async_client = async_client
        self.client = client
        self.state: Any = None


class Around(msgspec.Struct, eq=False):
    """The Current of one running task."""

    _leased: Leased
    task: TaskInfo
    _surroundings: Surroundings
    _tell: TellProgress

    def __repr__(self) -> str:
        return f"<Around {self._leased.id!r}>"

    @property
    def client(self) -> Any:
        """An AsyncClient on the event loop, a Client in a thread."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._surroundings.client()
        return self._surroundings.async_client

    @property
    def state(self) -> Any:
        """What the lifespan yielded."""
        return self._surroundings.state

    @property
    def cancelled(self) -> bool:
        """True once this run is not wanted any more."""
        return self._leased.stop is not None

    @property
    def stopped(self) -> Stop | None:
        """Why it is not wanted any more; None while it is."""
        return self._leased.stop

    def wait(self) -> None:
        """Note that the task waits for a thread or a process."""
        self._leased.waits = True

    def may_begin(self) -> bool:
        """Note that its turn has come; False when it was stopped, or is not ours any more."""
        leased = self._leased
        leased.waits = False  # first: a server that stops reads it before it sets `stop`
        return leased.stop is None and not leased.expired() and not leased.past_deadline()

    def progress(self, done: float, total: float) -> None:
        """Tell how far the task is."""
        self._tell(self._leased, float(done), float(total))
