"""Checks at the start of a server what its user of the store may do."""

from __future__ import annotations

import logging

from qsync.broker import rights, views
from qsync.broker.shell import AsyncBroker
from qsync.errors import ConfigError
from qsync.keys import QueueKeys

log = logging.getLogger("qsync.server")


async def check_permissions(broker: AsyncBroker, keys: QueueKeys) -> None:
    """Raise ConfigError when the user may not run all commands that a server needs.

    Without the channels a server works, and results are noticed later: that is a warning.
    """
    refused = await broker.run(views.permissions(keys, rights.checkable("server")))
    if not refused:
        return
    text = (
        f"the user of the store at {broker.address} {rights.shortfall(refused, keys.prefix)}; "
        f"`qsync acl server --prefix {keys.prefix}` prints the rights that a server needs"
    )
    if set(refused) - rights.CHANNELS:
        raise ConfigError(text)
    log.warning("%s; until then clients notice results up to 5 s later", text)
