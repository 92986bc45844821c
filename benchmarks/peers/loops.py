"""uvloop for a server or producer that would take asyncio's own loop."""

import asyncio

import uvloop


def use_uvloop() -> None:
    """Every loop that is made from now on is one of uvloop."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
