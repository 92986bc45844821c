"""The interface through which an extension encodes and checks the payloads of its tasks."""

from __future__ import annotations

from typing import Any, Protocol

from qsync.task import Task


class TaskBuilder(Protocol):
    """Builds tasks of types whose payload has its own format, e.g. those of django.tasks."""

    def build(self, type: str, value: Any) -> Task[Any] | None:
        """Return a task for arguments decoded from JSON (b"" if there are none); None if the type
        is unknown.

        Raises InvalidTask if the arguments do not match the parameters.
        """

    def check(self, type: str, payload: Any) -> None:
        """Raise InvalidTask if the type is known and its tasks cannot have this payload."""
