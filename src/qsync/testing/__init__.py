"""Helpers for testing programs that use qsync; see docs/testing.md.

The pytest fixtures `qsync` and `qsync_sync` are in the module `pytest_qsync`.
"""

from __future__ import annotations

from qsync.testing.enqueued_tasks import EnqueuedTask
from qsync.testing.handler_context import context, task_info
from qsync.testing.inline import inline
from qsync.testing.kit import Kit, SyncKit
from qsync.testing.test_case import QsyncMixin

__all__ = ["EnqueuedTask", "Kit", "QsyncMixin", "SyncKit", "context", "inline", "task_info"]
