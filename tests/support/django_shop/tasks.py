"""The tasks of the app, which the project finds by itself."""

from __future__ import annotations

from qsync.contrib.django import app
from tests.support.django_shop.models import Order


@app.task
def pack(product: str) -> str:
    return f"one {product}"


@app.task(retention=60)
async def weigh(product: str) -> int:
    return len(product)


@app.task(unique=True)
def count() -> int:
    return Order.objects.count()
