"""A connection to the store with nothing between what arrives and who waits for it.

redis-py opens and closes it, with all that belongs to that: TLS, credentials, the database. In
between a `RedisConnection` takes the place of its streams, which cost more than all else in an
exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import hiredis
import redis.exceptions as failures

from qsync.broker import redis_internals

_MORE: Final = object()
"""What the parser says when a reply is not there as a whole."""


LATE_S: Final = 0.1
"""A timer that is so late fires after the loop was blocked, seconds."""

PACKET: Final = 16 * 1024
"""So many bytes are worth a packet of their own: the store can begin with them."""


def nothing() -> None:
    """What is done while the store works, if nobody has anything to do."""


def packets(commands: Sequence[tuple[Any, ...]]) -> Iterator[bytes]:
    """Commands as they are sent: small ones together, and large ones as soon as they are made."""
    packed: list[bytes] = []
    size = 0
    for command in commands:
        one: bytes = hiredis.pack_command(command)
        packed.append(one)
        size += len(one)
        if size >= PACKET:
            yield b"".join(packed)
            packed, size = [], 0
    if packed:
        yield b"".join(packed)


def wire_of(connection: Any) -> RedisConnection | PlainConnection:
    """What makes exchanges on an open connection of redis-py, the fastest way that there is."""
    try:
        return RedisConnection(connection)
    except (AttributeError, LookupError, TypeError):  # a redis-py with other internals
        return PlainConnection(connection)


class RedisConnection(asyncio.Protocol):
    """One connection of redis-py, for one exchange at a time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.broken: Exception | None = None
        """Why it is of no more use: close the connection."""
        self.used = False
        """Whether it has served an exchange: it may have died since."""
        self._loop = asyncio.get_running_loop()
        found = redis_internals.streams(connection)
        if found is None:
            raise LookupError("the connection's streams")
        self._transport, streams, parse_error = found
        self._streams = cast("asyncio.Protocol", streams)
        self._parser = hiredis.Reader(
            protocolError=failures.InvalidResponse, replyError=parse_error, notEnoughData=_MORE
        )
        self._replies: list[Any] = []
        self._wanted = 0
        self._answer: asyncio.Future[None] | None = None
        self._limit: asyncio.TimerHandle
        """Of the exchange that is under way."""
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether it may serve another exchange, as far as is known here."""
        return self.broken is None and not self._transport.is_closing()

    async def exchange(
        self,
        commands: Sequence[tuple[Any, ...]],
        seconds: float,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        """One reply a command, an error that the store answered among them.

        `meanwhile` is called once the commands are on their way. When the connection breaks, or
        not all have come in time, that error is in the place of each that is missing, and it is
        `broken`. So it is when this is cancelled.
        """
        self._replies, self._wanted = [], len(commands)
        if self.is_open:
            self._answer = self._loop.create_future()
            due = self._loop.time() + seconds
            self._limit = self._loop.call_at(due, self._time_out, due)
            try:
                for packet in packets(commands):
                    self._transport.write(packet)
                if meanwhile is not nothing:
                    await asyncio.sleep(0)  # now they are: some loops write at the end of a turn
                    meanwhile()
                await self._answer
            except RuntimeError as error:  # how uvloop says that it was reset a moment ago
                self._break(error)
            except BaseException:
                self._break(failures.ConnectionError("given up in the midst of an exchange"))
                raise
            finally:
                self._limit.cancel()
                self._answer = None
        replies, missing = self._replies, self._wanted - len(self._replies)
        if missing:
            self.broken = self.broken or failures.ConnectionError("the connection is closed")
            replies += [self.broken] * missing
        self._replies, self._wanted = [], 0
        self.used = True
        return replies

    def release(self) -> None:
        """Give the connection back as redis-py knows it."""
        self._transport.set_protocol(self._streams)

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        """Something came from the store."""
        self._parser.feed(data)
        replies = self._replies
        try:
            while (reply := self._parser.gets()) is not _MORE:
                if isinstance(reply, failures.ConnectionError):  # it is loading, say
                    self._break(reply)
                    return
                replies.append(reply)
        except failures.InvalidResponse as error:
            self._break(error)
            return
        if len(replies) > self._wanted:  # and then nobody knows which belongs to what
            replies.clear()
            self._break(failures.InvalidResponse("a reply that nobody waits for"))
        elif len(replies) == self._wanted:
            self._wake()

    def eof_received(self) -> bool | None:
        """The other side says no more."""
        self._break(failures.ConnectionError("Connection closed by server."))
        return self._streams.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        self._break(failures.ConnectionError(f"Connection closed: {exc or 'by server'}"))
        self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """The other side reads more slowly than is written: an exchange waits for it anyway."""
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._streams.resume_writing()

    def _time_out(self, due: float) -> None:
        """End the exchange; if the loop was blocked, first see what came meanwhile."""
        if self._answer is None or self._answer.done():
            return
        if self._loop.time() - due > LATE_S:
            self._limit = self._loop.call_later(LATE_S / 2, self._break, TimeoutError())
        else:
            self._break(TimeoutError())

    def _break(self, error: Exception) -> None:
        if self.broken is None:
            self.broken = error
        self._wake()

    def _wake(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


class PlainConnection:
    """As `RedisConnection`, by public methods of redis-py, for releases with other internals."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.broken: Exception | None = None
        """Why it is of no more use: close the connection."""
        self.used = False
        """Whether it has served an exchange: it may have died since."""

    @property
    def is_open(self) -> bool:
        """Whether it may serve another exchange, as far as is known here."""
        return self.broken is None and bool(self.connection.is_connected)

    async def exchange(
        self,
        commands: Sequence[tuple[Any, ...]],
        seconds: float,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[Any]:
        """Send the commands; returns one reply for each, errors of the store among them."""
        replies: list[Any] = []
        try:
            async with asyncio.timeout(seconds):
                packed = list(packets(commands))
                await self.connection.send_packed_command(packed, check_health=False)
                meanwhile()
                while len(replies) < len(commands):
                    replies.append(await self._read())
        except (failures.RedisError, OSError, RuntimeError) as error:
            self.broken = error
        except BaseException:
            self.broken = failures.ConnectionError("given up in the midst of an exchange")
            raise
        self.used = True
        return replies + [self.broken] * (len(commands) - len(replies))

    async def _read(self) -> Any:
        try:
            return await self.connection.read_response(disconnect_on_error=False)
        except failures.ResponseError as error:
            return error

    def release(self) -> None:
        """Give the connection back as redis-py knows it, which it always does here."""
