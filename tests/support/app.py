"""An app whose tasks run in processes. Each new process imports this module."""

from __future__ import annotations

import os

import pydantic

from qsync import Qsync, TaskInfo

app = Qsync("redis://localhost:1", prefix="elsewhere")


class Sum(pydantic.BaseModel):
    """A result that requires pydantic to encode."""

    total: int
    pid: int


@app.task(executor="process")
def add(task: TaskInfo, a: int, *, b: int = 2) -> Sum:
    """Return the sum and the id of the process that computed the sum."""
    assert task.type == "tests.support.app.add"
    return Sum(total=a + b, pid=os.getpid())


def _bare(a: int) -> int:
    return a * 2


renamed = app.task(executor="process")(_bare)
