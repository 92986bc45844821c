"""An asyncio protocol that hands the store's replies directly to the waiting caller.

redis-py opens the connection, sets up TLS, logs in, selects the database, and closes the
connection. In between, a `RedisConnection` replaces redis-py's streams, because they are the most
expensive part of an exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, cast

import hiredis
import redis.exceptions as failures

from qsync.broker import redis_internals
from qsync.broker.base import LOOP_BLOCKED_S, noop

_MORE: Final = object()
"""Value that the parser returns while a reply is incomplete."""

TIMER_S: Final = 0.001
"""How much a timer may be early, in seconds. Event loops round times to milliseconds."""

PACKET: Final = 16 * 1024
"""Minimum size of a packet, in bytes; a full packet is sent immediately, so that the store can
begin."""


def pack_command(command: tuple[Any, ...]) -> bytes:
    """Encode a command; for EVALSHA, the part up to the keys comes from a cache."""
    if command[0] == "EVALSHA":
        start = 3 + command[2]
        if (count := len(command) - start) > 0:
            head, skipped = _evalsha_head(command[:start], count)
            args: bytes = hiredis.pack_command(command[start:])
            return head + args[skipped:]
    packed: bytes = hiredis.pack_command(command)
    return packed


@lru_cache(maxsize=1024)
def _evalsha_head(begin: tuple[Any, ...], count: int) -> tuple[bytes, int]:
    """Return the bytes of an EVALSHA before its `count` arguments, and the number of bytes to skip
    when the arguments are encoded as a command."""
    return pack_begin(begin, count), len(b"*%d\r\n" % count)


def pack_begin(begin: tuple[Any, ...], count: int) -> bytes:
    """Encode the part of a command that precedes its last `count` arguments."""
    start: bytes = hiredis.pack_command(begin)
    _, rest = start.split(b"\r\n", 1)
    return b"*%d\r\n%b" % (len(begin) + count, rest)


def pack_commands(commands: Sequence[tuple[Any, ...] | bytes]) -> Iterable[bytes]:
    """Encode commands into packets of at least PACKET bytes, except for the last one.

    An item of type bytes is a command that is already encoded.
    """
    if len(commands) == 1:
        command = commands[0]
        return (command if isinstance(command, bytes) else pack_command(command),)
    return _pack(commands)


def _pack(commands: Sequence[tuple[Any, ...] | bytes]) -> Iterator[bytes]:
    packed: list[bytes] = []
    size = 0
    for command in commands:
        data = command if isinstance(command, bytes) else pack_command(command)
        packed.append(data)
        size += len(data)
        if size >= PACKET:
            yield b"".join(packed)
            packed, size = [], 0
    if packed:
        yield b"".join(packed)


def wrap_connection(connection: Any) -> RedisConnection | PlainConnection:
    """Wrap an open redis-py connection in the fastest class that this redis-py release supports."""
    try:
        return RedisConnection(connection)
    except (AttributeError, LookupError, TypeError):  # unknown internals
        return PlainConnection(connection)


class RedisConnection(asyncio.Protocol):
    """A connection of redis-py that serves one exchange at a time."""

    takes_packets: Literal[True] = True
    """Whether `request` accepts encoded commands and a `usual_reply`."""

    def __init__(self, connection: Any) -> None:
        self.raw = connection
        self.error: Exception | None = None
        """Error that made the connection unusable, or None. Once this error is set, the caller must
        close the connection."""
        self.used: bool = False
        """Whether the connection has been used. A used connection may have died while it was
        idle."""
        self._loop = asyncio.get_running_loop()
        internals = redis_internals.streams(connection)
        if internals is None:
            raise LookupError("the connection's streams")
        self._transport, streams, parse_error = internals
        self._streams = cast("asyncio.Protocol", streams)
        self._parser = hiredis.Reader(
            protocolError=failures.InvalidResponse, replyError=parse_error, notEnoughData=_MORE
        )
        self._replies: list[Any] = []
        self._expected = 0
        self._usual_reply: bytes | None = None
        """Encoded reply that most exchanges of this kind receive. An equal reply is returned
        without being parsed."""
        self._answer: asyncio.Future[None] | None = None
        self._due = 0.0
        """Time at which the exchange in flight times out, by the loop's clock."""
        self._is_late = False
        """Whether the deadline was extended because the event loop was blocked."""
        self._timer: asyncio.TimerHandle | None = None
        """Timer that is due no later than the exchange in flight. The timer may belong to an
        earlier exchange, because creating and cancelling a timer for each exchange costs more than
        a needless check every few seconds."""
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Return whether the connection can serve another exchange, as far as this process
        knows."""
        return self.error is None and not self._transport.is_closing()

    async def request(
        self,
        commands: Sequence[tuple[Any, ...] | bytes],
        seconds: float,
        overlap: Callable[[], None] = noop,
        usual_reply: bytes | None = None,
    ) -> list[Any]:
        """Send the commands; return one reply per command, including the store's error replies.

        `overlap` is called once the commands are sent. If the connection breaks or the exchange
        takes longer than `seconds`, `error` is set, and the same error replaces each missing reply.
        A cancellation also sets `error`. A reply that equals `usual_reply` is returned encoded,
        which saves parsing it.
        """
        self._replies, self._expected = [], len(commands)
        self._usual_reply = usual_reply
        if self.is_open:
            self._answer = self._loop.create_future()
            self._limit(seconds)
            try:
                for packet in pack_commands(commands):
                    self._transport.write(packet)
                if overlap is not noop:
                    await asyncio.sleep(0)  # let loops send that write at the end of an iteration
                    overlap()
                await self._answer
            except RuntimeError as error:  # uvloop: the connection has just been reset
                self._break(error)
            except BaseException:
                self._break(failures.ConnectionError("abandoned during an exchange"))
                raise
            finally:
                self._answer = None
        replies, missing = self._replies, self._expected - len(self._replies)
        if missing:
            self.error = self.error or failures.ConnectionError("the connection is closed")
            replies += [self.error] * missing
        self._replies, self._expected = [], 0
        self.used = True
        return replies

    # Callbacks of asyncio.

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes; wake the caller once all its replies have arrived."""
        usual, self._usual_reply = self._usual_reply, None
        if usual is not None and usual == data:
            self._replies.append(data)
            self._wake()
            return
        self._parser.feed(data)
        replies = self._replies
        try:
            while (reply := self._parser.gets()) is not _MORE:
                if isinstance(reply, failures.ConnectionError):  # e.g. the store is loading
                    self._break(reply)
                    return
                replies.append(reply)
        except failures.InvalidResponse as error:
            self._break(error)
            return
        if len(replies) > self._expected:  # replies can no longer be matched to commands
            replies.clear()
            self._break(failures.InvalidResponse("an unexpected reply"))
        elif len(replies) == self._expected:
            self._wake()

    def eof_received(self) -> bool | None:
        """Break the exchange, because the store closed its side of the connection."""
        self._break(failures.ConnectionError("Connection closed by server."))
        return self._streams.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Break the exchange, because the connection is closed."""
        self._break(failures.ConnectionError(f"Connection closed: {exc or 'by server'}"))
        self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """Forward the event; an exchange needs no flow control, since it waits for the replies."""
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        """Forward the event."""
        self._streams.resume_writing()

    def _limit(self, seconds: float) -> None:
        """Set the timeout of the exchange that begins now."""
        due = self._due = self._loop.time() + seconds
        self._is_late = False
        if self._timer is None or self._timer.when() > due:
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._time_out)

    def _time_out(self) -> None:
        """End the exchange as timed out; if the loop was blocked, first read what has arrived."""
        self._timer = None
        if self._answer is None or self._answer.done():
            return
        now = self._loop.time()
        if self._due - now > TIMER_S:  # the timer belonged to an earlier exchange
            self._set_timer(self._due)
        elif now - self._due > LOOP_BLOCKED_S and not self._is_late:
            self._is_late, self._due = True, now + LOOP_BLOCKED_S / 2
            self._set_timer(self._due)
        else:
            self._break(TimeoutError())

    def _break(self, error: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.error is None:
            self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


class PlainConnection:
    """A slower `RedisConnection` that uses only redis-py's public methods, for releases of redis-py
    whose internals qsync does not know."""

    takes_packets: Literal[False] = False
    """Whether `request` accepts encoded commands and a `usual_reply`."""

    def __init__(self, connection: Any) -> None:
        self.raw = connection
        self.error: Exception | None = None
        """Error that made the connection unusable, or None. Once this error is set, the caller must
        close the connection."""
        self.used: bool = False
        """Whether the connection has been used. A used connection may have died while it was
        idle."""

    @property
    def is_open(self) -> bool:
        """Return whether the connection can serve another exchange, as far as this process
        knows."""
        return self.error is None and bool(self.raw.is_connected)

    async def request(
        self,
        commands: Sequence[tuple[Any, ...]],
        seconds: float,
        overlap: Callable[[], None] = noop,
    ) -> list[Any]:
        """Send the commands; return one reply per command, including the store's error replies."""
        replies: list[Any] = []
        try:
            async with asyncio.timeout(seconds):
                packed = list(pack_commands(commands))
                await self.raw.send_packed_command(packed, check_health=False)
                overlap()
                while len(replies) < len(commands):
                    replies.append(await self._read())
        except (failures.RedisError, OSError, RuntimeError) as error:
            self.error = error
        except BaseException:
            self.error = failures.ConnectionError("abandoned during an exchange")
            raise
        self.used = True
        return replies + [self.error] * (len(commands) - len(replies))

    async def _read(self) -> Any:
        try:
            return await self.raw.read_response(disconnect_on_error=False)
        except failures.ResponseError as error:
            return error
