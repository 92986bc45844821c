"""Checks the permissions of the server's store user at the server's start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from qsync.broker import acl, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.keys import QueueKeys

log: Final = logging.getLogger("qsync.server")


CHECK_S: Final = 1.0
"""Time limit for the check on one node, in seconds."""


async def check_permissions(broker: AsyncBroker, queues: Sequence[QueueKeys]) -> None:
    """Raise ConfigError if the user may not run all commands that a server needs.

    Log only a warning if it may not use channels: the server works, but clients notice results
    later. Ask the node of the first queue; if it is unreachable, the second's and the third's.
    Skip the check if none of them answers.
    """
    for keys in queues[:3]:
        call = views.permissions(keys, acl.checkable("server"))
        [refused] = await broker.run_many([call], ends=ends_in(CHECK_S))
        if not isinstance(refused, StoreUnavailable):
            break
    if isinstance(refused, StoreUnavailable) or not refused:
        return
    if isinstance(refused, QsyncError):
        raise refused
    text = (
        f"the user of the store at {broker.address} {acl.shortfall(refused, keys.prefix)}; "
        f"`qsync acl server --prefix {keys.prefix}` prints the rights that a server needs"
    )
    if set(refused) - acl.CHANNELS:
        raise ConfigError(text)
    log.warning("%s; until then clients notice results up to 5 s later", text)
