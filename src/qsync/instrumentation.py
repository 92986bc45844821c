"""The interface by which qsync.contrib extends an app, and the error for a missing extra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsync.client import AsyncClient, Client
from qsync.server.server import Server


def _nothing(server: Server) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """Client classes to use in place of the plain ones, and a hook for each new server.

    `client` and `async_client` take the arguments of Client and AsyncClient.
    """

    client: Callable[..., Client] = Client
    async_client: Callable[..., AsyncClient] = AsyncClient
    server: Callable[[Server], None] = _nothing


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """Return the error for a part of qsync whose extra is not installed, with the pip command."""
    msg = f"{error.name} is not installed: pip install 'qsync-py[{extra}]'"
    return ModuleNotFoundError(msg, name=error.name)
