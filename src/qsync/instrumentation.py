"""The interface through which qsync.contrib extends an app, and the error for a missing extra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qsync.client import AsyncHandle, Handle
from qsync.formatting import install_command
from qsync.task import Task
from qsync.task_builder import TaskBuilder
from qsync.wrapped_client import AroundEnqueue

if TYPE_CHECKING:
    from qsync.server.server import Server


class Sender(Protocol):
    """Sends the tasks that task functions enqueue; replaces the app's shared clients."""

    def enqueue(self, task: Task[Any]) -> Handle[Any]:
        """Send the task now or later, and return its handle; the call blocks."""

    async def aenqueue(self, task: Task[Any]) -> AsyncHandle[Any]:
        """Send the task now or later, and return its handle."""

    def waiting(self) -> str:
        """Return a text for a failed test that says which tasks wait for a commit, and how to send
        them; "" if none wait."""


def _nothing(server: Server) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A context around each enqueue, a hook for each new server, a sender, and a builder.

    `sender` receives the tasks of `fn.enqueue` and `fn.enqueue_sync`. `builder` encodes and checks
    the arguments that operators enter on the command line and in the dashboard. In an app, the
    names of extensions are unique; any number of extensions may have no name.
    """

    name: str = ""
    around_enqueue: AroundEnqueue | None = None
    server: Callable[[Server], None] = _nothing
    sender: Sender | None = None
    builder: TaskBuilder | None = None


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """Return the error, with the pip command, for a part of qsync whose extra is not installed."""
    msg = f"{error.name} is not installed: {install_command(extra)}"
    return ModuleNotFoundError(msg, name=error.name)
