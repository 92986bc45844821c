"""The dashboard: an ASGI app to run by itself (`qsync dashboard`) or to mount in another.

    dashboard = create_app(queue.inspector(), auth=is_admin)     # whoever your app lets in
    host = Starlette(routes=[Mount("/qsync", dashboard)])

It needs the extra `web`, reaches the store through the Inspector alone, and lets nobody in unless
told whom. docs/dashboard.md tells how to run, mount and secure it.
"""

from __future__ import annotations

from qsync.instrumentation import missing

try:
    from qsync.web.app import Dashboard, create_app
except ModuleNotFoundError as error:
    raise missing(error, "web") from None

__all__ = ["Dashboard", "create_app"]
