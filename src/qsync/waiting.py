"""How the end of a task is waited for.

The end is published on a channel of the queue, and what is published may be lost: it only says
when to look. So a waiter looks, and looks again when it is woken, and every 1 to 5 s besides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from qsync import codec
from qsync.backoff import Backoff
from qsync.broker.shell import AsyncBroker, Broker
from qsync.broker.views import Shown, last_error, message_of, result_of
from qsync.convert import MISFITS, converter_of, misfit
from qsync.errors import InvalidTask, QsyncError, TaskCancelled, TaskFailed, TaskNotFound
from qsync.state import TaskState
from qsync.task import Message, Result

log = logging.getLogger("qsync.client")

LINGER: Final = 1.0
"""How long a subscription stays when nobody waits any more, seconds: somebody may soon again."""

_TICK: Final = 0.25
"""How often a thread that listens looks whether it still should, seconds."""


def ended(id: str, queue: str, shown: Shown | None) -> Result | None:
    """The result record of a task that succeeded; None while the task has not ended.

    Raises what `Handle.result` raises for the other ends.
    """
    where = f"task {id!r} in queue {queue!r}"
    if shown is None:
        raise not_found(id, queue)
    message = message_of(shown)
    if message is not None and _retention(message) is None:
        raise without_retention(id, queue)
    if shown.state is TaskState.DEAD:
        raise TaskFailed(last_error(shown) or f"{where} is dead")
    if shown.state is not TaskState.COMPLETED:
        return None
    if shown.cancel is not None:
        raise TaskCancelled(f"{where} was cancelled")
    record = result_of(shown)
    if record is None or record.error is not None:
        why = "it is missing or cannot be read" if record is None else record.error
        raise QsyncError(f"{where} is done, but its result is not available: {why}")
    return record


def retention_of(shown: Shown) -> int | None:
    """How long the task is kept after success, microseconds; None: not at all, or not known."""
    message = message_of(shown)
    return None if message is None else _retention(message)


def _retention(message: Message) -> int | None:
    return None if message.options is None else message.options.retention_us


def not_found(id: str, queue: str) -> TaskNotFound:
    """The error for who asks after a task that is not in the queue."""
    return TaskNotFound(
        f"task {id!r} is not in queue {queue!r} (any more): it is done and was not kept "
        "(retention=), was deleted, or is in another queue, which client.find(id) finds"
    )


def without_retention(id: str, queue: str) -> InvalidTask:
    """The error for who asks for a result that nobody keeps."""
    return InvalidTask(
        f"retention: task {id!r} in queue {queue!r} has none, so its result is not kept; "
        "give Task(..., retention=seconds)"
    )


def value_of(record: Result) -> Any:
    """What the handler returned: the value, or bytes as they were."""
    if not record.is_value:
        return record.value
    try:
        return codec.decode(record.value)
    except codec.CodecError as error:
        msg = f"the task is done, but its result cannot be read: {error}"
        raise QsyncError(msg) from error


def decoder_of(type: Any) -> Callable[[Result], Any]:
    """What makes results of this type of their records; ConfigError when no result can have it."""
    convert = converter_of(type)

    def decode(record: Result) -> Any:
        if not record.is_value:
            if type is bytes:
                return record.value
            why = "Expected a value, got `bytes`"
        else:
            try:
                return convert(record.value)
            except MISFITS as error:
                why = misfit(error)
        raise QsyncError(f"the task is done, but its result is not of the type asked for: {why}")

    return decode


class Deadline:
    """The end of a wait: so many seconds after this is made, or never."""

    def __init__(self, seconds: float | None) -> None:
        self._ends = math.inf if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 when it is past."""
        return max(0.0, self._ends - time.monotonic())


def pauses() -> Iterator[float]:
    """How long to wait for a message before looking again, seconds."""
    pause = 1.0
    while True:
        yield pause
        pause = min(pause * 1.5, 5.0)


class Watch:
    """Wakes threads that wait for the end of a task of one queue.

    A daemon thread listens while somebody waits. It does not live on in a forked child: there
    another watch has to be made.
    """

    def __init__(self, broker: Broker, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}
        self._listening = False
        self._broken = False
        """Listening failed, and the log says so."""
        self._left = 0.0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextmanager
    def waiting(self, id: str) -> Iterator[threading.Event]:
        """An event that is set whenever it is time to look at the task, first when we listen."""
        woken = threading.Event()
        with self._lock:
            self._waiting.setdefault(id, set()).add(woken)
            if self._listening:
                woken.set()
            if self._thread is None and not self._closed.is_set():
                thread = threading.Thread(
                    target=self._listen, name=f"qsync {self._channel}", daemon=True
                )
                thread.start()
                self._thread = thread
        try:
            yield woken
        finally:
            with self._lock:
                self._waiting[id].discard(woken)
                if not self._waiting[id]:
                    del self._waiting[id]
                self._left = time.monotonic()

    def close(self) -> None:
        """Wake everybody, and stop listening: at once, or when a connect that is under way ends."""
        self._closed.set()
        self._wake_all(listening=False)
        thread = self._thread
        if thread is not None:
            thread.join(timeout=4 * _TICK)

    def _listen(self) -> None:
        backoff = Backoff()
        while self._session(backoff):
            self._closed.wait(backoff.next())

    def _session(self, backoff: Backoff) -> bool:
        """Listen until the connection breaks; False when nobody has needed it for a while."""
        subscription = self._broker.subscribe(self._channel)
        try:
            subscription.open()
            backoff.reset()
            self._broken = False
            self._wake_all(listening=True)
            while (id := subscription.read(_TICK)) != "":
                if id is not None:
                    self._wake(id)
                if self._retire():
                    return False
        except Exception as error:
            if not self._broken or not isinstance(error, QsyncError):
                _tell(self._channel, error)
            self._broken = True
        finally:
            subscription.close()
        with self._lock:
            self._listening = False
        return not self._retire()

    def _retire(self) -> bool:
        """Whether the thread is to end; then it counts as ended, and the next waiter starts one."""
        with self._lock:
            idle = not self._waiting and time.monotonic() - self._left > LINGER
            if not idle and not self._closed.is_set():
                return False
            self._listening = False
            self._thread = None
            return True

    def _wake(self, id: str) -> None:
        with self._lock:
            for woken in self._waiting.get(id, ()):
                woken.set()

    def _wake_all(self, *, listening: bool) -> None:
        with self._lock:
            self._listening = listening
            for events in self._waiting.values():
                for woken in events:
                    woken.set()


class AsyncWatch:
    """Wakes coroutines that wait for the end of a task of one queue.

    An asyncio task listens while somebody waits.
    """

    def __init__(self, broker: AsyncBroker, channel: str) -> None:
        self._broker, self._channel = broker, channel
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._listening = False
        self._broken = False
        """Listening failed, and the log says so."""
        self._listener: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None

    @contextmanager
    def waiting(self, id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever it is time to look at the task, first when we listen."""
        woken = asyncio.Event()
        self._waiting.setdefault(id, set()).add(woken)
        if self._listening:
            woken.set()
        loop = asyncio.get_running_loop()
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._listener is None or self._listener.done():
            self._listener = loop.create_task(self._listen(), name=f"qsync {self._channel}")
        try:
            yield woken
        finally:
            self._waiting[id].discard(woken)
            if not self._waiting[id]:
                del self._waiting[id]
            if not self._waiting and self._listener is not None and not loop.is_closed():
                self._end = loop.call_later(LINGER, self._stop)

    async def aclose(self) -> None:
        """Wake everybody, and stop listening."""
        if self._end is not None:
            self._end.cancel()
        self._wake_all()
        listener = self._listener
        self._stop()
        if listener is not None:
            await asyncio.wait([listener])

    def _stop(self) -> None:
        # Forgotten before it has ended, so that who comes meanwhile starts another.
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()

    async def _listen(self) -> None:
        backoff = Backoff()
        while True:
            await self._session(backoff)
            await asyncio.sleep(backoff.next())

    async def _session(self, backoff: Backoff) -> None:
        """Listen until the connection breaks."""
        subscription = self._broker.subscribe(self._channel)
        try:
            await subscription.open()
            backoff.reset()
            self._broken = False
            self._listening = True
            self._wake_all()
            while (id := await subscription.read()) != "":
                for woken in self._waiting.get(id, ()):
                    woken.set()
        except Exception as error:
            if not self._broken or not isinstance(error, QsyncError):
                _tell(self._channel, error)
            self._broken = True
        finally:
            self._listening = False
            await subscription.aclose()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for woken in events:
                woken.set()


def _tell(channel: str, error: Exception) -> None:
    """Say that listening broke off: results are still seen, but later."""
    log.info(
        "listening on %s: %s; results are looked for every 1 to 5 s until it works again",
        channel, error, exc_info=not isinstance(error, QsyncError),
    )  # fmt: skip
