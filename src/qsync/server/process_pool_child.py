"""The code in the processes of a ProcessPool, to which only import paths and bytes are sent."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from importlib import import_module
from multiprocessing import connection, parent_process
from operator import attrgetter
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.errors import InvalidTask, RateLimited, Retry, SkipRetry, Snooze
from qsync.message import ERROR_LIMIT
from qsync.mux import Handler
from qsync.server import fork_guard
from qsync.server.child_context import ChildContext, ChildServer, ChildSetup
from qsync.server.current import running
from qsync.server.error_text import DEPTH_LIMIT, STACK_LIMIT, stack_text
from qsync.task import TaskInfo
from qsync.value_text import class_name, shorten

TRACEBACK_LIMIT: Final = 16 * 1024
"""Maximum length of a traceback in a reply, in characters."""

GROUP_LIMIT: Final = 20
"""Maximum number of exceptions of an exception group in a reply."""

GROUP_DEPTH: Final = 3
"""Number of levels of nested exception groups in a reply."""


at_start: Final[list[Callable[[], None]]] = []
"""Functions that a new process calls first. These functions are pickled, so they must be importable
by name."""

NOTE: Final = 1 << 31
"""Flag in a message's size: the message is a progress report of the running task, not a reply."""

STACK: Final = 1 << 30
"""Flag in a message's size: the message is the stack of the running handler, not a reply."""

around: Final[list[Callable[[TaskInfo], contextlib.AbstractContextManager[None]]]] = []
"""Context managers around every handler call in this process. Modules can append to this list when
a handler's module imports them."""


class Value(msgspec.Struct, tag=True):
    """The handler returned; `encoded` is the value in msgpack."""

    encoded: bytes


class Unencodable(msgspec.Struct, tag=True):
    """The handler returned a value of the type `name`, which cannot be encoded in msgpack."""

    name: str


class Raised(msgspec.Struct, tag=True):
    """The handler raised an exception or cannot be imported."""

    name: str
    text: str
    traceback: str
    classes: list[tuple[str, str]] = []
    """Module and qualified name of the exception's class and of its base classes, the nearest
    first."""
    args: list[Any] = []
    """Arguments of the exception if all of them are plain values, else only its message."""
    attributes: dict[str, Any] = {}
    """Attributes of the exception that are plain values."""
    exceptions: list[Raised] = []
    """The first GROUP_LIMIT exceptions of an exception group, without their tracebacks."""


class AskedRetry(msgspec.Struct, tag=True):
    """The handler raised Retry."""

    text: str
    delay_s: float | None


class AskedSkipRetry(msgspec.Struct, tag=True):
    """The handler raised SkipRetry."""

    text: str


class AskedSnooze(msgspec.Struct, tag=True):
    """The handler raised Snooze, or RateLimited for a limit."""

    text: str
    delay_s: float
    is_rate_limited: bool
    limit: str | None


class PayloadMismatch(msgspec.Struct, tag=True):
    """The payload does not match the handler's arguments."""

    text: str


Reply = Value | Unencodable | Raised | AskedRetry | AskedSkipRetry | AskedSnooze | PayloadMismatch


def begin(
    *first: Callable[[], None],
    asks: socket.socket | None = None,
    answer: Callable[[], None] | None = None,
) -> None:
    """Make this process ignore SIGINT and SIGTERM, and end when its parent ends; then call `first`.

    Ctrl-C and a service manager's SIGTERM reach the whole process group. Only the parent handles
    these signals: it lets handlers run for a while, and then kills their processes. A thread calls
    `answer` for each byte that arrives at `asks`.
    """
    # Not SIG_IGN, which programs that a handler starts would inherit.
    signal.signal(signal.SIGINT, _do_nothing)
    signal.signal(signal.SIGTERM, _do_nothing)
    with contextlib.suppress(OSError):
        os.setsid()  # so that programs that handlers start can be killed with this process
    threading.Thread(
        target=_watch_parent, args=(asks, answer), name="qsync-parent", daemon=True
    ).start()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # so that a killed process loses no lines
            stream.reconfigure(line_buffering=True)
    for function in first:
        function()


def serve(
    link: socket.socket,
    tickets: socket.socket,
    asks: socket.socket,
    setup: ChildSetup | None,
    *first: Callable[[], None],
) -> None:
    """Run handlers, one request after another, until the server closes the sockets.

    A request begins once this process has taken its ticket. The server may take back the tickets of
    requests that have not begun; this process then skips those requests. A byte at `asks` requests
    the stack of the handler.
    """
    sending, main = threading.Lock(), threading.get_ident()

    def send(message: bytes, flag: int = 0) -> None:
        with sending:
            link.sendall(struct.pack(">I", flag | len(message)) + message)

    begin(*first, asks=asks, answer=lambda: send(_stack(main).encode(), STACK))
    generation = fork_guard.generation
    server = ChildServer(setup, lambda report: send(report, NOTE), _find)
    with link, tickets, link.makefile("rb") as requests, contextlib.closing(server):
        while len(ticket := tickets.recv(4)) == 4:
            path, info = _read(requests, ticket)
            reply = b""
            if info:
                reply = run_in_child(path, info, server)
            else:
                prepare(path)
            if fork_guard.generation != generation:
                fork_guard.end()
            send(reply)


def _stack(thread: int) -> str:
    """Return the stack of the handler that a thread is running; empty between two calls."""
    frame = sys._current_frames().get(thread)
    frames = [] if frame is None else list(traceback.extract_stack(frame))
    ours = [index for index, line in enumerate(frames) if line.filename == __file__]
    called = frames[max(ours, default=len(frames)) + 1 :]
    return _valid(stack_text(called[-DEPTH_LIMIT:], STACK_LIMIT))


def _read(requests: io.BufferedReader, expected: bytes) -> tuple[str, bytes]:
    """Return the import path and the task of the request with this ticket; skip earlier
    requests."""
    while True:
        head = requests.read(10)
        if len(head) < 10:
            raise SystemExit  # the server has closed the socket
        size, length, ticket = struct.unpack(">IH4s", head)
        body = requests.read(size)
        if ticket == expected:
            return body[:length].decode(), body[length:]


def prepare(path: str) -> None:
    """Import a handler, which may take a long time; the first call of the handler reports an import
    error."""
    with contextlib.suppress(BaseException):
        _find(path)


def run_in_child(path: str, info: bytes, server: ChildServer) -> bytes:
    """Run the handler at `module:name` with a task; return a Reply in msgpack even if it raises."""
    try:
        reply = _call(path, codec.decode(info, TaskInfo), server)
    except BaseException as error:
        reply = _described(error)
    return codec.encode(reply)


def _call(path: str, task: TaskInfo, server: ChildServer) -> Reply:
    target = _find(path)
    connections = getattr(target, "_connections", None)
    if connections is not None:
        server.adopt(connections)
    handler = getattr(target, "handler", None)
    carry = None
    if isinstance(handler, Handler):
        function: Callable[..., Any] = handler.function
        carry = handler.carry_result
        try:
            args, kwargs = handler.arguments(task)
        except InvalidTask as error:
            return PayloadMismatch(_text(error))
    else:
        function, args, kwargs = target, (task,), {}
    token = running.set(ChildContext(task, server, connections))
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


@cache
def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))


def _described(error: BaseException) -> Reply:
    if isinstance(error, SkipRetry):
        return AskedSkipRetry(_text(error))
    if isinstance(error, Snooze):
        is_rate_limited = isinstance(error, RateLimited)
        limit = error.limit if isinstance(error, RateLimited) else None
        return AskedSnooze(_text(error), error.delay_us / 1_000_000, is_rate_limited, limit)
    if isinstance(error, Retry):
        delay = error.delay
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if seconds is None or isinstance(seconds, int | float):
            return AskedRetry(_text(error), seconds)
        error = TypeError(f"Retry: delay {shorten(delay)} is neither seconds nor a timedelta")
    return _raised(error)


def _raised(error: BaseException, depth: int = 0) -> Raised:
    """Describe an exception; `depth` is the number of groups that contain it."""
    text = _text(error)
    raised = Raised(class_name(error), text, "" if depth else _trace(error))
    with contextlib.suppress(BaseException):
        raised.classes = [(cls.__module__, cls.__qualname__) for cls in type(error).__mro__]
        args = list(error.args)
        raised.args = args if all(map(_is_plain, args)) else [text]
        if isinstance(error, BaseExceptionGroup) and depth < GROUP_DEPTH:
            raised.args = [_valid(error.message[:ERROR_LIMIT])]
            raised.exceptions = [
                _raised(part, depth + 1) for part in error.exceptions[:GROUP_LIMIT]
            ]
        attributes = {name: value for name, value in vars(error).items() if _is_plain(value)}
        raised.attributes = {name: attributes[name] for name in attributes if name[:2] != "__"}
        codec.encode(raised)
        return raised
    return Raised(raised.name, raised.text, raised.traceback)


def _trace(error: BaseException) -> str:
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:  # e.g. from a __str__ that raises
        trace = "".join(traceback.format_tb(error.__traceback__))
    return _valid(trace[-TRACEBACK_LIMIT:])


def _is_plain(value: object) -> bool:
    if isinstance(value, str | bytes):
        return type(value) in (str, bytes) and len(value) <= ERROR_LIMIT
    if type(value) is int:
        return -(2**63) <= value < 2**64
    return value is None or type(value) in (float, bool)


def _text(error: BaseException) -> str:
    try:
        return _valid(str(error)[:ERROR_LIMIT])
    except BaseException as broken:
        return f"<its text raised {class_name(broken)}>"


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _do_nothing(*_: object) -> None:
    pass


def _watch_parent(asks: socket.socket | None, answer: Callable[[], None] | None) -> None:
    parent = parent_process()
    if parent is None:
        return
    watched: list[Any] = [parent.sentinel, *([asks] if asks is not None else [])]
    while parent.sentinel not in (ready := connection.wait(watched)):
        with contextlib.suppress(OSError):
            if ready and asks is not None and asks.recv(1) and answer is not None:
                answer()
                continue
        watched.remove(asks)  # the parent has closed the socket, and is ending this process
    with contextlib.suppress(OSError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
