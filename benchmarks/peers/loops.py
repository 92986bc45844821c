"""uvloop for servers and producers that would use asyncio's own loop."""

import asyncio

import uvloop


def use_uvloop() -> None:
    """Make uvloop the class of all new event loops."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
