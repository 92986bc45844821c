"""Endpoints for other programs: Prometheus metrics, and the health of the store."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from qsync.errors import QsyncError
from qsync.formatting import install_command
from qsync.web.pages import Site
from qsync.web.translation import _

STORE_TIMEOUT_S: Final = 3.0


async def metrics(site: Site, request: Request) -> Response:
    """Return the metrics of all queues, from the store."""
    if importlib.util.find_spec("prometheus_client") is None:
        text = _("Metrics need prometheus-client: %(how)s", how=install_command("prometheus"))
        return PlainTextResponse(f"{text}\n", 404)
    from qsync.contrib.prometheus import CONTENT_TYPE

    return Response(await site.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def health(site: Site, request: Request) -> Response:
    """Return whether the store answers, and how fast."""
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            ping_s = await site.inspector.ping()
            queues = await site.inspector.queue_names()
            servers = await site.inspector.servers(tasks=False)
    except (QsyncError, TimeoutError) as error:
        return JSONResponse({"ok": False, "reason": type(error).__name__}, 503)
    return JSONResponse({
        "ok": True,
        "ping_ms": round(1000 * ping_s, 2),
        "queues": len(queues),
        "servers": len(servers),
    })  # fmt: skip
