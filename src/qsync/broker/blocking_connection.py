"""Connections of a blocking broker, which serve one exchange at a time and limit the time of each.

redis-py opens the connection, sets up TLS, logs in, selects the database, and closes the
connection. In between, a `SocketConnection` uses the connection's socket with its own parser, since
reading and writing through redis-py would take more CPU time than the rest of an enqueue.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
import redis.exceptions as failures

from qsync.broker import redis_errors, redis_internals
from qsync.broker.base import noop
from qsync.broker.protocol import pack_command, pack_commands

MIN_TIMEOUT_S: Final = 0.001
"""Shortest timeout of a socket, in seconds, because a timeout of 0 would make it non-blocking."""

WARM_S: Final = 0.02
"""How long after its last reply a connection may be used without a check, in seconds. Checking
whether the store has closed the connection takes a system call."""

KERNEL_WAIT_S: Final = 0.01
"""How long a read waits in the kernel before it polls, in seconds. Most replies arrive within this
time, in which case a read takes one system call. The time is short because a signal restarts the
wait."""

_READ_SIZE: Final = 64 * 1024
_MORE: Final = object()
"""Value that the parser returns while a reply is incomplete."""


def wrap_connection(connection: Any, timeout: float) -> SocketConnection | LibraryConnection:
    """Wrap an open connection of redis-py in the fastest class that its release supports.

    `timeout` limits each write and read, in seconds.
    """
    internals = redis_internals.socket_and_parser(connection)
    if internals is None:
        return LibraryConnection(connection, timeout)
    return SocketConnection(connection, timeout, *internals)


class SocketConnection:
    """A connection that uses the socket of a redis-py connection.

    Writes do not block. Reads first wait in the kernel for KERNEL_WAIT_S, and then poll, because
    each read would take one more system call with Python's socket timeout. If the kernel cannot
    limit how long a read waits, reads poll immediately. A socket that uses TLS or cannot be polled
    has Python's timeout.
    """

    def __init__(
        self, connection: Any, timeout: float, sock: Any, parse_error: Callable[[Any], Exception]
    ) -> None:
        self.raw = connection
        self.error: Exception | None = None
        """Error that made the connection unusable, or None. Once this error is set, the caller must
        close the connection."""
        self.used: bool = False
        """Whether the connection has been used. A used connection may have died while it was
        idle."""
        self.warm_until: float = 0.0
        """Monotonic time until which the connection is used without a check."""
        self._timeout = self._current_timeout = timeout
        self._socket = sock
        self._parser = hiredis.Reader(
            protocolError=failures.InvalidResponse, replyError=parse_error, notEnoughData=_MORE
        )
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        """Function that returns the number of decrypted bytes not read yet; None without TLS."""
        self._poll = _poll_of(sock)
        """Function that waits up to a number of ms; it returns whether the socket has data or was
        closed."""
        self._blocks = self._pending is not None or not hasattr(select, "poll")
        """Whether the socket has Python's timeout."""
        self._kernel_waits = not self._blocks and _limit_reads(sock)
        """Whether a read from the socket waits in the kernel, for up to KERNEL_WAIT_S."""
        self._usual_timeout = timeout if self._blocks else None if self._kernel_waits else 0
        sock.settimeout(self._usual_timeout)

    def is_usable(self) -> bool:
        """Return whether the idle connection is open and no unexpected data have arrived on it."""
        try:
            return not self._poll(0) and (self._pending is None or not self._pending())
        except (OSError, ValueError):
            return False

    def request(
        self,
        commands: Sequence[tuple[Any, ...]],
        until: float | None,
        overlap: Callable[[], None] = noop,
    ) -> list[Any]:
        """Send the commands; return one reply per command, including the store's error replies.

        `overlap` is called once the commands are sent. If the connection breaks or `until` passes,
        `error` is set, and the same error replaces each missing reply. If `until` is None, each
        write and read has the timeout of the connection.
        """
        self.used = True
        replies: list[Any] = []
        count = len(commands)
        try:
            if count == 1:
                self._send(pack_command(commands[0]), until)
            else:
                for packet in pack_commands(commands):
                    self._send(packet, until)
            if overlap is not noop:
                overlap()
            self._read(replies, count, until)
            self.warm_until = time.monotonic() + WARM_S
        except redis_errors.LIBRARY_ERRORS as error:
            self.error = _described(error)
            replies += [self.error] * (count - len(replies))
        return replies

    def converse(self, packet: bytes, expected: bytes) -> bool:
        """Send an encoded command; return whether the encoded reply is `expected`.

        After any other reply, the caller must close the connection, because the bytes may belong to
        no command. When the connection breaks, `error` is set. Each write and read has the timeout
        of the connection.
        """
        self.used = True
        try:
            self._send(packet, None)
            data = self._receive(None)
        except redis_errors.LIBRARY_ERRORS as error:
            self.error = _described(error)
            return False
        self.warm_until = time.monotonic() + WARM_S
        return data == expected

    def _read(self, replies: list[Any], count: int, until: float | None) -> None:
        """Read `count` replies and append them to `replies`."""
        parser = self._parser
        while len(replies) < count:
            parser.feed(self._receive(until))
            while (reply := parser.gets()) is not _MORE:
                if isinstance(reply, failures.ConnectionError):  # e.g. the store is loading
                    raise reply
                replies.append(reply)
        if len(replies) > count:  # replies can no longer be matched to commands
            replies.clear()
            raise failures.InvalidResponse("an unexpected reply")

    def _send(self, packet: bytes, until: float | None) -> None:
        if self._blocks:
            self._limit(until)
            self._socket.sendall(packet)
            return
        try:
            sent = self._socket.send(packet, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(packet):
            # Send the rest in pieces, with one timeout for all of them.
            self._socket.settimeout(self._remaining_s(until))
            self._socket.sendall(memoryview(packet)[sent:])
            self._socket.settimeout(self._usual_timeout)

    def _receive(self, until: float | None) -> bytes:
        """Return the data that have arrived; wait for them if there are none."""
        if self._kernel_waits and (until is None or until - time.monotonic() > 2 * KERNEL_WAIT_S):
            try:
                return self._received(0)
            except BlockingIOError:
                pass  # the reply is slow: wait again, with the exact limit
        while True:
            flags = 0
            if self._blocks:
                self._limit(until)
            elif self._poll(self._remaining_s(until) * 1000):
                flags = socket.MSG_DONTWAIT
            else:
                raise TimeoutError
            try:
                return self._received(flags)
            except BlockingIOError:  # a damaged packet ended the wait: wait again
                continue

    def _received(self, flags: int) -> bytes:
        data: bytes = self._socket.recv(_READ_SIZE, flags)
        if not data:
            raise failures.ConnectionError("Connection closed by server.")
        return data

    def _remaining_s(self, until: float | None) -> float:
        if until is None:
            return self._timeout
        return max(until - time.monotonic(), MIN_TIMEOUT_S)

    def _limit(self, until: float | None) -> None:
        """Set the deadline of the next write and read; None means the connection's timeout."""
        timeout = self._remaining_s(until)
        if timeout != self._current_timeout:
            self._socket.settimeout(timeout)
            self._current_timeout = timeout


class LibraryConnection:
    """A slower `SocketConnection` that uses only redis-py's public methods, for releases of
    redis-py whose internals qsync does not know."""

    def __init__(self, connection: Any, timeout: float) -> None:
        self.raw = connection
        self.error: Exception | None = None
        """Error that made the connection unusable, or None. Once this error is set, the caller must
        close the connection."""
        self.used: bool = False
        """Whether the connection has been used. A used connection may have died while it was
        idle."""
        self._timeout = timeout
        _limit_socket(connection, timeout)

    def is_usable(self) -> bool:
        """Return whether the idle connection is open and no unexpected data have arrived on it."""
        try:
            return not self.raw.can_read()
        except (failures.ConnectionError, failures.TimeoutError, OSError):
            return False

    def request(
        self,
        commands: Sequence[tuple[Any, ...]],
        until: float | None,
        overlap: Callable[[], None] = noop,
    ) -> list[Any]:
        """Send the commands; return one reply per command, including the store's error replies."""
        self.used = True
        replies: list[Any] = []
        try:
            if until is not None:
                _limit_socket(self.raw, until - time.monotonic())
            self.raw.send_packed_command(pack_commands(commands), check_health=False)
            overlap()
            for _ in commands:
                if until is not None:
                    _limit_socket(self.raw, until - time.monotonic())
                try:
                    replies.append(self.raw.read_response())
                except failures.ResponseError as error:
                    replies.append(error)
            if until is not None:
                _limit_socket(self.raw, self._timeout)
        except redis_errors.LIBRARY_ERRORS as error:
            self.error = error
            replies += [error] * (len(commands) - len(replies))
        return replies


def _limit_reads(sock: Any) -> bool:
    """Set the kernel's timeout for reads of a blocking socket; return False if that is impossible.

    A socket of gevent or eventlet must not block in the kernel; it is recognized by its class.
    """
    if sys.platform != "linux" or type(sock) is not socket.socket:
        return False
    limit = struct.pack("@ll", 0, round(KERNEL_WAIT_S * 1_000_000))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    except OSError:
        return False
    return True


def _limit_socket(connection: Any, seconds: float) -> None:
    """Limit each write and read of a connection to `seconds`."""
    redis_internals.limit_socket(connection, max(seconds, MIN_TIMEOUT_S))


def _poll_of(sock: Any) -> Callable[[float], Any]:
    """Return a function that waits up to a number of ms until the socket has data or is closed."""
    if not hasattr(select, "poll"):  # Windows
        return lambda ms: select.select([sock], [], [], ms / 1000)[0]
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return poller.poll


def _described(error: Exception) -> Exception:
    """Return the error that redis-py would raise for this socket error."""
    if isinstance(error, TimeoutError):
        return failures.TimeoutError("no answer in time")
    if isinstance(error, OSError):
        return failures.ConnectionError(f"Connection closed: {error}")
    return error
