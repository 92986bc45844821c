"""Checks at the start of a server what its user of the store may do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from qsync.broker import acl, views
from qsync.broker.shell import AsyncBroker, ends_in
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.keys import QueueKeys

log = logging.getLogger("qsync.server")


CHECK_S: Final = 1.0
"""How long a node of a cluster is asked for, seconds."""


async def check_permissions(broker: AsyncBroker, queues: Sequence[QueueKeys]) -> None:
    """Raise ConfigError when the user may not run all commands that a server needs.

    Without the channels a server works, and results are noticed later: that is a warning. The
    rights are those of the first queue, or of another when its node is away; else nobody knows.
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
