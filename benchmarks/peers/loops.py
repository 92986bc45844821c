"""Installs uvloop in servers and producers that would otherwise use asyncio's own event loop."""

import asyncio

import uvloop


def use_uvloop() -> None:
    """Make all new event loops use uvloop."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
