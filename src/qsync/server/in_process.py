"""What runs in the processes of a ProcessPool. Only an import path and bytes come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from multiprocessing import connection, parent_process
from operator import attrgetter
from typing import Any, Final, NoReturn

import msgspec

from qsync import codec
from qsync.errors import InvalidTask, QsyncError, Retry, SkipRetry
from qsync.keys import class_name, shorten
from qsync.mux import Handler
from qsync.server.current import running
from qsync.task import ERROR_LIMIT, TaskInfo

TRACEBACK_LIMIT: Final = 16 * 1024
"""Characters of a traceback that cross."""


at_start: Final[list[Callable[[], None]]] = []
"""What a new process does first. They are sent there, so they can be imported by name."""

around: Final[list[Callable[[TaskInfo], contextlib.AbstractContextManager[None]]]] = []
"""What is put around every handler that runs in this process: whoever the import of its module
brings in may add to it."""


class Value(msgspec.Struct, tag=True):
    """The handler returned; `encoded` is its value in msgpack."""

    encoded: bytes


class Unencodable(msgspec.Struct, tag=True):
    """The handler returned a value of a type of this name, which msgpack cannot carry."""

    name: str


class Raised(msgspec.Struct, tag=True):
    """The handler raised; or it cannot be imported."""

    name: str
    text: str
    traceback: str


class AskedRetry(msgspec.Struct, tag=True):
    """The handler raised Retry."""

    text: str
    delay_s: float | None


class AskedSkipRetry(msgspec.Struct, tag=True):
    """The handler raised SkipRetry."""

    text: str


class Unfit(msgspec.Struct, tag=True):
    """The payload does not fit the handler's arguments."""

    text: str


Reply = Value | Unencodable | Raised | AskedRetry | AskedSkipRetry | Unfit


def begin(*first: Callable[[], None]) -> None:
    """Make this process one that ends with its parent and by its word alone; then do these.

    Ctrl-C, and the SIGTERM that a service manager sends to a whole group, are the parent's
    business: it lets handlers go on for a while, and then it kills.
    """
    # Not SIG_IGN, which programs that a handler starts would inherit.
    signal.signal(signal.SIGINT, _do_nothing)
    signal.signal(signal.SIGTERM, _do_nothing)
    threading.Thread(target=_end_with_parent, name="qsync-parent", daemon=True).start()
    for one in first:
        one()


def prepare(path: str) -> None:
    """Import a handler, which may take its time. What is wrong with it, its first call will say."""
    with contextlib.suppress(BaseException):
        _find(path)


def run_in_child(path: str, info: bytes) -> bytes:
    """Run the handler at `module:name` with a task; a Reply in msgpack, whatever it does."""
    try:
        reply = _call(path, codec.decode(info, TaskInfo))
    except BaseException as error:
        reply = _told(error)
    return codec.encode(reply)


def _call(path: str, task: TaskInfo) -> Reply:
    target = _find(path)
    handler = getattr(target, "handler", None)
    carry = None
    if isinstance(handler, Handler):
        function: Callable[..., Any] = handler.function
        carry = handler.carry_result
        try:
            args, kwargs = handler.arguments(task)
        except InvalidTask as error:
            return Unfit(_text(error))
    else:
        function, args, kwargs = target, (task,), {}
    token = running.set(_OnlyTask(task))
    try:
        with contextlib.ExitStack() as entered:
            for surround in around:
                entered.enter_context(surround(task))
            value = function(*args, **kwargs)
    finally:
        running.reset(token)
    try:
        if carry is None:
            return Value(codec.encode_value(value))
        return Value(codec.encode_natural(carry(value)))
    except codec.CodecError:
        return Unencodable(type(value).__name__)


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))


class _OnlyTask:
    """`qsync.current()` where the server is in another process."""

    def __init__(self, task: TaskInfo) -> None:
        self.task = task

    @property
    def client(self) -> Any:
        _not_here("client")

    @property
    def state(self) -> Any:
        _not_here("state")

    @property
    def cancelled(self) -> bool:
        _not_here("cancelled")

    def progress(self, done: float, total: float) -> None:
        _not_here("progress")


def _not_here(name: str) -> NoReturn:
    msg = f"qsync.current().{name} is not there in a handler with executor='process'"
    raise QsyncError(msg)


def _told(error: BaseException) -> Reply:
    if isinstance(error, SkipRetry):
        return AskedSkipRetry(_text(error))
    if isinstance(error, Retry):
        delay = error.delay
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if seconds is None or isinstance(seconds, int | float):
            return AskedRetry(_text(error), seconds)
        error = TypeError(f"Retry: delay {shorten(delay)} is neither seconds nor a timedelta")
    return _raised(error)


def _raised(error: BaseException) -> Raised:
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:  # a hostile __str__, say
        trace = "".join(traceback.format_tb(error.__traceback__))
    return Raised(class_name(error), _text(error), _valid(trace[-TRACEBACK_LIMIT:]))


def _text(error: BaseException) -> str:
    try:
        return _valid(str(error)[:ERROR_LIMIT])
    except BaseException as broken:
        return f"<its text raised {class_name(broken)}>"


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _do_nothing(*_: object) -> None:
    pass


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
