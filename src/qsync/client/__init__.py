"""Enqueue tasks and get their results: `Client` blocks, and `AsyncClient` is for asyncio.

Both classes have the same methods and docstrings; change them together.
"""

from qsync.client.aio import AsyncClient
from qsync.client.blocking import Client
from qsync.handle import AsyncHandle, Handle

__all__ = ["AsyncClient", "AsyncHandle", "Client", "Handle"]
