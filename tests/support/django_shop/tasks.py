"""The tasks of this Django app. Projects that install the app import this module automatically."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connection

from qsync import current
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


@app.task
def stamp(key: UUID, when: datetime, prices: list[Decimal]) -> None: ...


class OutOfStock(Exception):
    """Raised if a product does not exist."""


def connection_number() -> int:
    """Return the process id of the PostgreSQL backend that serves the connection of this thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [number] = cursor.fetchone()
        return int(number)


@app.task(retry=0, retention=60)
def number_in_thread() -> int:
    return connection_number()


@app.task(retry=0, retention=60)
async def number_on_loop() -> int:
    return await sync_to_async(connection_number)()


@app.task(retry=0, retention=60, executor="process")
def number_in_process() -> int:
    return connection_number()


@task(queue_name="mail", retry=1, retry_delay=0, timeout=30)
def send(address: str, *, copies: int = 1) -> dict[str, Any]:
    if address == "nobody":
        raise OutOfStock(f"{copies} for {address}")
    return {"to": address, "copies": copies}


app.limit("customer", concurrency=100)


@task(limits=["customer:{customer_id}-{region}"])
def bill(customer_id: Any, region: str = "eu") -> None: ...


@task(takes_context=True)
async def describe(context: Any, *words: str) -> list[Any]:
    result = context.task_result
    return [result.id, context.attempt, str(result.status), list(words)]


@task(retry=0)
def return_object() -> object:
    return object()


@task(retry=1, retry_delay=0, timeout=0.1)
async def hang() -> None:
    await asyncio.Event().wait()


@task(retry=3)
async def wait_long() -> None:
    await asyncio.Event().wait()


@task(retry=0, timeout=0.1)
def hang_in_thread() -> None:
    while not current().cancelled:
        time.sleep(0.01)


@task(retry=0)
async def cancel_itself() -> None:
    raise asyncio.CancelledError


@task(unique=True)
def tidy() -> None:
    pass


@task(unique_key="restock", unique=True, on_duplicate="skip")
def restock(product: str) -> None:
    pass


@task(unique_key="index", debounce=5)
def index(product: str) -> None:
    pass
