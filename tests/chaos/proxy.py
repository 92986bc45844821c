"""A TCP proxy in front of the store, whose faults can be switched on and off while it runs. The
proxy splits the streams into commands and replies, so it can answer a command itself, lose one
reply or fall silent. No reply ever reaches the wrong command.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from tests.chaos.resp import Frames, command_name
from tests.support.stores import HOST, free_port

RESET: Final = struct.pack("ii", 1, 0)
"""Value of SO_LINGER that makes the closing of a connection send RST."""

STREAMS: Final = (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR", b"SYNC", b"PSYNC")
"""Commands after which the store's messages are no longer replies to commands."""


@dataclass
class Direction:
    """The faults in one direction. Probabilities apply to each command or reply.

    delay, jitter  delay in seconds, and the maximum of a random addition
    hole           hold all data back; Proxy.forget decides whether it is delivered later
    swallow        probability that the connection becomes silent for good
    cut            probability that the connection is reset instead
    """

    delay: float = 0.0
    jitter: float = 0.0
    hole: bool = False
    swallow: float = 0.0
    cut: float = 0.0


@dataclass(eq=False)
class Answer:
    """An error that the proxy returns instead of passing the command on."""

    text: str
    left: float
    share: float
    only: bytes
    given: int = 0


@dataclass(eq=False)
class Link:
    """A client's connection, and the proxy's own connection to the store for it."""

    client: asyncio.StreamWriter
    store: asyncio.StreamWriter
    owed: deque[bytes | None] = field(default_factory=deque)
    """For each unanswered command, the proxy's own answer; None if the store answers it."""
    streaming: bool = False
    silent: set[str] = field(default_factory=set)
    """Directions in which no data passes."""


class Proxy:
    """Listens on a port in a thread, and forwards to the store's port."""

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self.target = port
        self.port = free_port()
        self.up, self.down = Direction(), Direction()
        self.forget = True
        """True if a connection that was in a black hole stays dead; False if its data is delivered
        late."""
        self.accepted = 0
        self.commands = 0
        self._answers: list[Answer] = []
        self._forbidden: dict[bytes, bytes] = {}
        self._chance = random.Random(seed)
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.refuse(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # The switches.

    def refuse(self, on: bool = True) -> None:
        """Refuse connections, like a host on which no store runs."""
        self._do(self._listen, not on)

    def reset(self) -> int:
        """End all connections with RST; return their number."""
        return int(self._do(self._reset))

    def half_close(self) -> int:
        """Half-close the connections: clients read the end of the stream but can still send
        commands."""
        return int(self._do(self._half_close))

    def answer(
        self, text: str, *, count: float = float("inf"), share: float = 1.0, only: bytes = b""
    ) -> Answer:
        """Answer commands with this error instead of passing them on.

        Applies to commands that contain `only`: to a random `share` of them, until `count` are
        answered.
        """
        answer = Answer(text, count, share, only)
        self._answers.append(answer)
        return answer

    def withdraw(self, answer: Answer) -> None:
        """Stop answering commands with this error."""
        if answer in self._answers:
            self._answers.remove(answer)

    def forbid(self, text: str, *names: str) -> None:
        """Return an error for commands with these names; `{}` in the text stands for the name."""
        for name in names:
            self._forbidden[name.encode()] = b"-" + text.format(name).encode() + b"\r\n"

    def heal(self) -> None:
        """Remove all faults, so that data passes again. Dead connections stay dead until their
        owner closes them."""
        self._answers.clear()
        self._forbidden.clear()
        self.up, self.down = Direction(), Direction()
        if self._server is None:
            self.refuse(False)

    @property
    def open(self) -> int:
        """Number of open connections."""
        return len(self._links)

    # These methods run the proxy, in its thread.

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        async def call() -> Any:
            answer = function(*args)
            return await answer if asyncio.iscoroutine(answer) else answer

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _listen(self, on: bool) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if on:
            self._server = await asyncio.start_server(self._accept, HOST, self.port)

    async def _close(self) -> None:
        await self._listen(False)
        await _turns(5)  # wait until connections in the backlog are accepted
        self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _turns(5)  # let the event loop close the connections

    def _reset(self) -> int:
        links = list(self._links)
        for link in links:
            self._abort(link)
        return len(links)

    def _abort(self, link: Link) -> None:
        raw: socket.socket | None = link.client.get_extra_info("socket")
        if raw is not None and not link.client.transport.is_closing():
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        link.client.transport.abort()
        link.store.transport.abort()

    def _half_close(self) -> int:
        links = list(self._links)
        for link in links:
            link.silent.add("down")
            with contextlib.suppress(OSError):
                link.client.write_eof()
        return len(links)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)

        def over(_: object) -> None:  # also called if `_join` never started
            writer.transport.abort()
            self._tasks.discard(task)

        task.add_done_callback(over)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            store_reader, store = await asyncio.open_connection(HOST, self.target)
            await self._serve(Link(writer, store), reader, store_reader)

    async def _serve(
        self, link: Link, client: asyncio.StreamReader, store: asyncio.StreamReader
    ) -> None:
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._pump("up", link, client, self._pass_up)),
            asyncio.ensure_future(self._pump("down", link, store, self._pass_down)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.store.transport.abort()
            self._links.discard(link)

    async def _pump(
        self,
        way: str,
        link: Link,
        reader: asyncio.StreamReader,
        pass_on: Callable[[Link, Frames, bytes], None],
    ) -> None:
        frames = Frames()
        try:
            while data := await reader.read(1 << 16):
                await self._hold(way, link)
                if way not in link.silent:
                    pass_on(link, frames, data)
                    await (link.store if way == "up" else link.client).drain()
            await self._hold(way, link)
        except OSError:
            return

    async def _hold(self, way: str, link: Link) -> None:
        """Wait for the delay of this direction, and for as long as its data is held back."""
        begun = getattr(self, way)
        if begun.delay or begun.jitter:
            await asyncio.sleep(begun.delay + self._chance.uniform(0, begun.jitter))
        while getattr(self, way).hole:
            if self.forget:
                link.silent |= {"up", "down"}
            await asyncio.sleep(0.02)

    def _happens(self, way: str, link: Link) -> bool:
        """Return whether this command or reply is lost, along with everything after it."""
        direction: Direction = getattr(self, way)
        if direction.cut and self._chance.random() < direction.cut:
            link.silent |= {"up", "down"}
            self._abort(link)
        elif direction.swallow and self._chance.random() < direction.swallow:
            link.silent.add(way)
        return way in link.silent

    def _pass_up(self, link: Link, frames: Frames, data: bytes) -> None:
        if link.streaming:
            link.store.write(data)
            return
        for frame in frames.feed(data):
            if self._happens("up", link):
                return
            self.commands += 1
            answer = self._answer_to(frame)
            if answer is not None:
                link.owed.append(answer)
                self._pay(link)
                continue
            link.store.write(frame)
            if command_name(frame) in STREAMS:
                link.streaming = True
                link.store.write(frames.rest())
                return
            link.owed.append(None)

    def _answer_to(self, frame: bytes) -> bytes | None:
        if (refusal := self._forbidden.get(command_name(frame))) is not None:
            return refusal
        for answer in list(self._answers):
            if answer.only in frame and self._chance.random() < answer.share:
                answer.left -= 1
                answer.given += 1
                if answer.left <= 0:
                    self.withdraw(answer)
                return b"-" + answer.text.encode() + b"\r\n"
        return None

    def _pay(self, link: Link) -> None:
        """Send the proxy's own answers that are next in order."""
        while link.owed and link.owed[0] is not None:
            if "down" not in link.silent:
                link.client.write(link.owed[0])
            link.owed.popleft()

    def _pass_down(self, link: Link, frames: Frames, data: bytes) -> None:
        if link.streaming and not link.owed:
            link.client.write(frames.rest() + data)
            return
        for frame in frames.feed(data):
            if self._happens("down", link):
                return
            if link.owed:
                link.owed.popleft()
            link.client.write(frame)
            self._pay(link)
        if link.streaming and not link.owed:
            link.client.write(frames.rest())


async def _turns(count: int) -> None:
    """Let the event loop run for this many iterations."""
    for _ in range(count):
        await asyncio.sleep(0)
