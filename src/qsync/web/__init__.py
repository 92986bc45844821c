"""The dashboard: an ASGI app, to run on its own (`qsync dashboard`) or to mount in another app.

    dashboard = create_app(queue.inspector(), auth=is_admin)     # for users that your app admits
    host = Starlette(routes=[Mount("/qsync", dashboard)])

The dashboard needs the extra `web`, and uses the store only through the Inspector. All access is
denied until you configure `token` or `auth`. docs/dashboard.md describes how to run, mount and
secure the dashboard.
"""

from __future__ import annotations

from qsync.instrumentation import missing

try:
    from qsync.web.app import Dashboard, create_app
except ModuleNotFoundError as _error:
    raise missing(_error, "web") from None

__all__ = ["Dashboard", "create_app"]
