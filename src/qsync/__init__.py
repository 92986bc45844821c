"""qsync: a distributed task queue for Python on Redis or Valkey.

Start with `Qsync`, the app: it turns functions into tasks and creates clients and servers. A `Mux`
maps task types to handlers.
"""

import typing

from qsync.errors import (
    ConfigError,
    DuplicateTask,
    InvalidTask,
    LeaseLost,
    QsyncError,
    QueueFull,
    RateLimited,
    ResultTimeout,
    Retry,
    SchemaMismatch,
    SkipRetry,
    Snooze,
    StoreUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskNotWaiting,
)
from qsync.version import __version__

if typing.TYPE_CHECKING:
    from qsync.app import Qsync
    from qsync.backoff import ExponentialBackoff
    from qsync.broker.stored_schedules import StoredSchedule
    from qsync.client import AsyncClient, Client
    from qsync.handle import AsyncHandle, Handle
    from qsync.inspector import Inspector
    from qsync.mux import CallNext, Middleware, Mux
    from qsync.server.current import current
    from qsync.server.server import Server
    from qsync.state import TaskState
    from qsync.task import CRITICAL, DEFAULT, LOWER, Task, TaskInfo, TaskStatus

__all__ = [
    "CRITICAL",
    "DEFAULT",
    "LOWER",
    "AsyncClient",
    "AsyncHandle",
    "CallNext",
    "Client",
    "ConfigError",
    "DuplicateTask",
    "ExponentialBackoff",
    "Handle",
    "Inspector",
    "InvalidTask",
    "LeaseLost",
    "Middleware",
    "Mux",
    "Qsync",
    "QsyncError",
    "QueueFull",
    "RateLimited",
    "ResultTimeout",
    "Retry",
    "SchemaMismatch",
    "Server",
    "SkipRetry",
    "Snooze",
    "StoreUnavailable",
    "StoredSchedule",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskInfo",
    "TaskNotFound",
    "TaskNotWaiting",
    "TaskState",
    "TaskStatus",
    "__version__",
    "current",
]


_MODULES = {
    "qsync.app": ("Qsync",),
    "qsync.backoff": ("ExponentialBackoff",),
    "qsync.broker.stored_schedules": ("StoredSchedule",),
    "qsync.client": ("AsyncClient", "Client"),
    "qsync.handle": ("AsyncHandle", "Handle"),
    "qsync.inspector": ("Inspector",),
    "qsync.mux": ("CallNext", "Middleware", "Mux"),
    "qsync.server.current": ("current",),
    "qsync.server.server": ("Server",),
    "qsync.state": ("TaskState",),
    "qsync.task": ("CRITICAL", "DEFAULT", "LOWER", "Task", "TaskInfo", "TaskStatus"),
}
"""Public names by module. A module is imported at the first use of one of its names, so a program
imports only what it uses. The errors are imported right away, because all modules need them."""


if not typing.TYPE_CHECKING:  # hidden from type checkers, which would accept any name

    def __getattr__(name):
        """Import the module of a public name at its first use."""
        module = next((module for module, names in _MODULES.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(module), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
