"""qsync: a distributed task queue for Python on Redis or Valkey.

Start with `Qsync`, the app: it turns functions into tasks and makes clients and servers. A `Mux`
maps task types to handlers.
"""

import typing

from qsync.app import Qsync
from qsync.backoff import ExponentialBackoff
from qsync.broker.stored_schedules import StoredSchedule
from qsync.client import AsyncClient, Client
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
from qsync.handle import AsyncHandle, Handle
from qsync.mux import CallNext, Middleware, Mux
from qsync.server.current import current
from qsync.state import TaskState
from qsync.task import CRITICAL, DEFAULT, LOWER, Task, TaskInfo, TaskStatus
from qsync.version import __version__

if typing.TYPE_CHECKING:
    from qsync.inspector import Inspector
    from qsync.server.server import Server

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


if not typing.TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name):
        """Import a class at its first use: a program that only enqueues starts sooner without."""
        if name == "Inspector":
            from qsync.inspector import Inspector as value
        elif name == "Server":
            from qsync.server.server import Server as value
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
