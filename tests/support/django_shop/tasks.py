"""The tasks of the app, which the project finds by itself."""

from __future__ import annotations

from typing import Any

from qsync.contrib.django import app, task
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


class OutOfStock(Exception):
    """There is no such product."""


@task(queue_name="mail", retry=1, retry_delay=0, timeout=30)
def send(address: str, *, copies: int = 1) -> dict[str, Any]:
    if address == "nobody":
        raise OutOfStock(f"{copies} for {address}")
    return {"to": address, "copies": copies}


@task(takes_context=True)
async def describe(context: Any, *words: str) -> list[Any]:
    result = context.task_result
    return [result.id, context.attempt, str(result.status), list(words)]


@task(retry=0)
def return_object() -> object:
    return object()


@task(unique=True)
def tidy() -> None:
    pass
