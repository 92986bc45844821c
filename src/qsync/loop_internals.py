"""All uses, outside the server, of undocumented names of event loops, with their fallbacks.

The server's uses are in server/asyncio_internals.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


running_loop: Callable[[], asyncio.AbstractEventLoop | None] = getattr(
    asyncio, "_get_running_loop", _running_loop
)
"""Return the event loop that runs in this thread, or None.

Unlike `asyncio.get_running_loop`, the function raises no exception, which would take six times as
long.
"""


def is_quiet(loop: asyncio.AbstractEventLoop) -> bool | None:
    """Return whether no callback but the running one is ready to run; None if the loop does not
    reveal this, as with uvloop.
    """
    ready = getattr(loop, "_ready", None)
    return None if ready is None else not ready
