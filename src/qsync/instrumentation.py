"""What qsync.contrib adds to an app: clients of its own, and something at each server.

And what qsync.contrib and qsync.web say when what they need is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsync.client import AsyncClient, Client
from qsync.server.server import Server


def _nothing(server: Server) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """Clients to be made in place of the plain ones, and what is done with each new server.

    `client` and `async_client` take the arguments of Client and AsyncClient.
    """

    client: Callable[..., Client] = Client
    async_client: Callable[..., AsyncClient] = AsyncClient
    server: Callable[[Server], None] = _nothing


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error for a part of qsync whose extra is not installed: it says what to install."""
    msg = f"{error.name} is not installed: pip install 'qsync-py[{extra}]'"
    return ModuleNotFoundError(msg, name=error.name)
