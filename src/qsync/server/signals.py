"""Delivers SIGTERM and SIGINT to every server of an event loop, and to the program around them.

A loop has one handler per signal, which all servers of the loop share. This handler also calls the
previous one (e.g. uvicorn's), which is restored when the last server ends. asyncio keeps the
handlers of a loop in private attributes. If these are not accessible, a previous handler of the
loop is not restored.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from qsync.server.asyncio_internals import callback_of

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

SAME_SIGNAL_S: Final = 0.1
"""Time within which repeated signals count as one, in seconds, since both systemd and the parent
process may signal a child."""

React = Callable[[int], None]
"""Callback on the loop that is called with 1 for the first signal, 2 for the second, and so on."""


class _Counter:
    """Counts the signals that one server gets."""

    def __init__(self, react: React) -> None:
        self._react = react
        self._seen, self._last = 0, -math.inf

    def count(self) -> None:
        now = asyncio.get_running_loop().time()
        before, self._last = self._last, now
        if now - before >= SAME_SIGNAL_S:
            self._seen += 1
            self._react(self._seen)


class _Handler:
    """The handler of one signal in one loop, shared by the servers that run there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
        self._loop = loop
        self._number = number
        self.counters: list[_Counter] = []
        self._before: Any = signal.getsignal(number)
        self._of_loop = callback_of(loop, number)
        loop.add_signal_handler(number, self._hear)
        self._installed = signal.getsignal(number)

    @property
    def installed(self) -> bool:
        """Return whether this handler is installed: no later handler has replaced it, and the
        signal reaches its loop."""
        current = signal.getsignal(self._number)
        return current is self._installed and (current is not self._before or _is_of_loop(current))

    def _hear(self) -> None:
        for counter in list(self.counters):
            counter.count()
        if self._of_loop is not None:
            callback, args = self._of_loop
            callback(*args)
        elif _passes_on(self._before):
            self._before(self._number, None)

    def restore(self) -> None:
        """Restore the previous handler, unless another handler has replaced this one."""
        if signal.getsignal(self._number) is not self._installed:
            return
        handle = callback_of(self._loop, self._number)
        if handle is not None and handle[0] != self._hear:
            return
        self._loop.remove_signal_handler(self._number)
        if self._of_loop is not None:
            callback, args = self._of_loop
            self._loop.add_signal_handler(self._number, callback, *args)
        elif self._before is not None:  # None if it was not set from Python
            signal.signal(self._number, self._before)


_handlers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[signal.Signals, _Handler]] = (
    WeakKeyDictionary()
)


@contextlib.contextmanager
def signals(react: React) -> Iterator[None]:
    """Call `react` for SIGTERM and SIGINT inside the `with` block; do nothing outside the main
    thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    counter = _Counter(react)
    mine: list[_Handler] = []
    for number in SIGNALS:
        shared = _handlers.setdefault(loop, {})
        handler = shared.get(number)
        if handler is None or not handler.installed:
            handler = shared[number] = _Handler(loop, number)
        handler.counters.append(counter)
        mine.append(handler)
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, mine, strict=True):
            handler.counters.remove(counter)
            if not handler.counters:
                handler.restore()
                if _handlers.get(loop, {}).get(number) is handler:
                    del _handlers[loop][number]


def _passes_on(handler: Any) -> bool:
    """Return whether the program itself installed a handler, rather than Python or an event
    loop."""
    return (
        callable(handler) and handler is not signal.default_int_handler and not _is_of_loop(handler)
    )


def _is_of_loop(handler: Any) -> bool:
    """Return whether asyncio or uvloop installed a handler."""
    function = handler.func if isinstance(handler, partial) else handler
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or ""
    return isinstance(owner, asyncio.Runner | asyncio.AbstractEventLoop) or module.partition(".")[
        0
    ] in ("asyncio", "uvloop")
