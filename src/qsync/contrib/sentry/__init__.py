"""Sentry: errors of tasks, traces from the enqueue to the handler, and monitors of schedules.

    import sentry_sdk
    from qsync.contrib import sentry

    sentry_sdk.init(dsn=..., traces_sample_rate=0.1)
    sentry.instrument(app)                where the app is created, before its first use

Needs `sentry-sdk`. See docs/sentry.md.
"""

from __future__ import annotations

from qsync.instrumentation import missing

try:
    import sentry_sdk as sentry_sdk
except ModuleNotFoundError as _error:
    raise missing(_error, "sentry") from None

from qsync.contrib.sentry.instrumentation import instrument

__all__ = ["instrument"]
