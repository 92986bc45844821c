"""The tasks of the shop; `qsync worker shop.tasks:app` runs them."""

import asyncio
import os

from qsync import Qsync

# Without QSYNC_URL, the store is a private Valkey in the folder .qsync.
app = Qsync(os.environ.get("QSYNC_URL") or "embedded://", prefix="fastapi-shop", patience=3)


@app.task(retry=5, timeout=30, retention=3600)
async def pack(product: str) -> str:
    await asyncio.sleep(1)  # the work
    return f"One {product} is on its way."
