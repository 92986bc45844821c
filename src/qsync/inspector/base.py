"""What all parts of the inspector have in common: the broker, names, cursors, rates."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.broker import views
from qsync.broker.call import Call
from qsync.broker.shell import AsyncBroker, ends_in
from qsync.broker.views import PageKey
from qsync.errors import InvalidTask, QsyncError
from qsync.keys import GlobalKeys, QueueKeys, shorten
from qsync.state import TaskState

TOGETHER: Final = 100
"""How many calls go in one round trip."""

QUEUES_READ: Final = 1000
"""Names of queues that are read at a time."""

QUEUE_SCANS: Final = 10
"""Most calls to read them."""

RATE_WINDOW_S: Final = 60.0
RATE_LEAST_S: Final = 0.2
"""Two looks at a queue tell a rate when so much is between them, and no more."""

_SCORE: Final = re.compile(r"-?(inf|\d[\d.e+-]{0,40})")


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a part of the tasks in a state ended; `until_us` bounds work on many by their death."""

    score: str
    id: bytes
    until_us: int = 0

    @property
    def place(self) -> PageKey:
        """The place in the state."""
        return self.score, self.id.decode(errors="surrogateescape")

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(codec.encode(self)).decode().rstrip("=")


def cursor_at(place: PageKey, *, until_us: int = 0) -> str:
    """The cursor for what comes after a place."""
    score, id = place
    return str(Cursor(score, id.encode(errors="surrogateescape"), until_us))


def read_cursor(text: str | None) -> Cursor | None:
    """A cursor decoded; InvalidTask when it is none."""
    if text is None:
        return None
    try:
        data = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        cursor: Cursor = codec.decode(data, Cursor)
        good = bool(_SCORE.fullmatch(cursor.score)) and float(cursor.score) is not None
    except (codec.CodecError, binascii.Error, ValueError, AttributeError):
        good = False
    if not good:
        msg = f"cursor: {shorten(text)} is not one that an earlier page gave"
        raise InvalidTask(msg)
    return cursor


def check_state(state: str) -> TaskState:
    """The state of this name; InvalidTask when there is none."""
    try:
        return TaskState(state)
    except ValueError:
        msg = f"state: {shorten(state)} is not one of {', '.join(TaskState)}"
        raise InvalidTask(msg) from None


class Base:
    """The store, as the parts of the inspector reach it."""

    def __init__(self, broker: AsyncBroker, *, prefix: str = "qsync") -> None:
        self._broker = broker
        self._globals = GlobalKeys(prefix)
        self._looks: dict[str, deque[tuple[float, int]]] = {}

    @property
    def prefix(self) -> str:
        """What all keys in the store begin with."""
        return self._globals.prefix

    def _keys(self, queue: str) -> QueueKeys:
        return QueueKeys(self.prefix, queue)

    async def queue_names(self) -> list[str]:
        """The names of the queues in use, sorted; of more than a thousand about a thousand."""
        names, _, _ = await self._queue_page(None)
        return names

    async def _queue_page(self, cursor: str | None) -> tuple[list[str], int, str | None]:
        """About a thousand names, sorted; how many there are; and the cursor of the next page."""
        after, names, total = _check_page(cursor), set[str](), 0
        for _ in range(QUEUE_SCANS):
            page = await self._broker.run(
                views.queues(self._globals, count=QUEUES_READ, cursor=after)
            )
            names, total, after = names | set(page.names), page.total, page.cursor
            if after == "0" or len(names) >= QUEUES_READ:
                break
        found = sorted(name for name in names if _is_name(name))
        return found, total, None if after == "0" else after

    async def queue_pages(self) -> AsyncIterator[list[str]]:
        """The names of all queues in use, about a thousand at a time; some may come twice."""
        cursor: str | None = None
        while True:
            names, _, cursor = await self._queue_page(cursor)
            yield names
            if cursor is None:
                return

    async def _is_queue(self, name: str) -> bool:
        """Whether a queue of this name is in use."""
        return await self._broker.run(views.registered(self._globals, name))

    async def _run_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The answers to all calls, which go together; the first error that stays is raised."""
        answers: list[Any] = []
        for at in range(0, len(calls), TOGETHER):
            part = calls[at : at + TOGETHER]
            ends = ends_in(self._broker.patience)
            replies = await self._broker.run_many(part, ends=ends)
            for call, answer in zip(part, replies, strict=True):
                # What went wrong is tried again for as long as the broker's patience lasts.
                again = isinstance(answer, QsyncError)
                answers.append(await self._broker.run(call, ends=ends) if again else answer)
        return answers

    def _note_rate(self, queue: str, ended: int) -> float | None:
        """Attempts per second that ended lately, now that it is known how many did so far."""
        now, looks = time.monotonic(), self._looks.setdefault(queue, deque(maxlen=120))
        while looks and now - looks[0][0] > RATE_WINDOW_S:
            looks.popleft()
        if looks and ended < looks[0][1]:  # the counters have begun anew
            looks.clear()
        rate = None
        if looks and now - looks[0][0] >= RATE_LEAST_S:
            rate = (ended - looks[0][1]) / (now - looks[0][0])
        if not looks or now - looks[-1][0] >= RATE_LEAST_S:
            looks.append((now, ended))
        return rate

    async def ping(self) -> float:
        """The seconds that a round trip to the store takes; StoreUnavailable without an answer."""
        return await self._broker.ping()

    async def aclose(self) -> None:
        """The connections are closed."""
        await self._broker.aclose()


def _check_page(cursor: str | None) -> str:
    if cursor is None:
        return "0"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 20 and int(cursor) < 2**64):
        msg = f"cursor: {shorten(cursor)} is not one that an earlier page gave"
        raise InvalidTask(msg)
    return cursor


def _is_name(text: str) -> bool:
    """Whether a queue may be called so; whatever else got into the set is none."""
    try:
        QueueKeys("p", text)
    except InvalidTask:
        return False
    return True
