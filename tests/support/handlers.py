"""Handlers that tests run in other processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from qsync.errors import InvalidTask, QsyncError, RateLimited, Retry, SkipRetry, Snooze
from qsync.mux import Handler
from qsync.server.current import current
from qsync.task import TaskInfo


class Panic(BaseException):
    """An error that is not an Exception, like a panic in a Rust extension."""


@dataclass
class Panics:
    """A result that cannot be encoded."""

    field: int

    def __getattribute__(self, name: str) -> Any:
        if name == "field":
            raise Panic("in the encoder")
        return super().__getattribute__(name)


def look(task: TaskInfo) -> dict[str, object]:
    try:
        client = str(current().client)
    except QsyncError as error:
        client = str(error)
    return {
        "info": [task.id, task.payload.decode(), task.attempt, dict(task.headers)],
        "current": current().task.id,
        "pid": os.getpid(),
        "client": client,
    }


class Odd:
    pass


class OddError(Exception):
    """An error that cannot be unpickled: it takes two arguments but stores only one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class MuteError(Exception):
    def __str__(self) -> str:
        raise OSError


def nothing(task: TaskInfo) -> None:
    pass


class SlowDownError(Exception):
    """An error that carries a delay."""

    def __init__(self, after: int) -> None:
        super().__init__("slow down")
        self.after = after


def fail_with_value(task: TaskInfo) -> None:
    raise ValueError("no good", 7)


def fail_with_key(task: TaskInfo) -> None:
    raise KeyError("missing")


def fail_with_attributes(task: TaskInfo) -> None:
    raise SlowDownError(12)


def fail_with_os_error(task: TaskInfo) -> None:
    Path("/there/is/none").read_bytes()


def fail_locally(task: TaskInfo) -> None:
    class LocalError(LookupError):
        pass

    raise LocalError("here")


def start_a_program(task: TaskInfo) -> None:
    program = subprocess.Popen(["sleep", "60"])
    Path(task.payload.decode(), "program").write_text(str(program.pid))
    program.wait()


def print_and_wait(task: TaskInfo) -> None:
    print("printed before the end")  # noqa: T201 - it is to be seen
    wait_for(task)


def print_and_crash(task: TaskInfo) -> None:
    print("printed before the end")  # noqa: T201 - it is to be seen
    crash(task)


def fork(task: TaskInfo) -> int:
    child = os.fork()
    if child == 0:
        return 0
    os.waitpid(child, 0)
    return os.getpid()


def echo(task: TaskInfo) -> bytes:
    return task.payload


def unencodable(task: TaskInfo) -> Odd:
    return Odd()


def fail(task: TaskInfo) -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        raise OddError("it ", "broke") from error


def fail_without_text(task: TaskInfo) -> None:
    raise MuteError


def leave(task: TaskInfo) -> None:
    raise SystemExit(7)


def fail_with_cancelled_error(task: TaskInfo) -> None:
    raise asyncio.CancelledError


def fail_with_group(task: TaskInfo) -> None:
    class LocalError(Exception): ...

    inner = ExceptionGroup("inner", [LocalError("here")])
    raise ExceptionGroup("several", [ValueError(1), OddError("it ", "broke"), inner])


def exit_hard(task: TaskInfo) -> None:
    os._exit(3)


def crash(task: TaskInfo) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def retry(task: TaskInfo) -> None:
    raise Retry("later", delay=timedelta(seconds=90))


def retry_wrongly(task: TaskInfo) -> None:
    delay: Any = "soon"
    raise Retry(delay=delay)


def snooze(task: TaskInfo) -> None:
    raise Snooze(3600)


def be_rate_limited(task: TaskInfo) -> None:
    raise RateLimited(retry_after=3600)


def skip(task: TaskInfo) -> None:
    raise SkipRetry("never")


def wait_for(task: TaskInfo) -> str:
    """Write the process id to the file `pid` in the folder that the payload names, then wait until
    the file `go` exists."""
    folder = Path(task.payload.decode())
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "pid")
    while not (folder / "go").exists():
        time.sleep(0.01)
    return "waited"


def _shout(text: str) -> str:
    return text + "!"


def _arguments(task: TaskInfo) -> tuple[tuple[str], dict[str, object]]:
    if task.id == "unfit":
        raise InvalidTask("payload: does not fit")
    return (task.payload.decode(),), {}


class _Decorated:
    handler = Handler("t", _shout, "process", arguments=_arguments)


decorated = _Decorated()


def retry_after_nonsense(task: TaskInfo) -> None:
    delays = {"-1": -1, "nan": float("nan"), "inf": float("inf"), "'soon'": "soon"}
    delay: Any = delays.get(task.value(str), timedelta(days=-1))
    raise Retry(delay=delay)


def stamp(task: TaskInfo) -> None:
    """Write the time to a file, named after the task, in the folder that the payload names."""
    (Path(task.payload.decode()) / task.id).write_text(str(time.time()))


def hold(task: TaskInfo) -> None:
    """Create a file, named after the task, in the folder that the payload names, and wait until the
    file `go` exists there."""
    folder = Path(task.payload.decode())
    (folder / task.id).touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
