"""A shop with Litestar. Run each command in a separate terminal, in this folder:

qsync worker litestar_shop:queue
uvicorn litestar_shop:site
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, MediaType, asgi, get, post
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.response import Redirect
from litestar.types import Receive, Scope, Send
from starlette.requests import Request

from qsync import AsyncClient, InvalidTask, Qsync, TaskNotFound
from qsync.web import create_app

# Without QSYNC_URL, the store is a private Valkey in the folder .qsync.
queue = Qsync(os.environ.get("QSYNC_URL") or "embedded://", prefix="litestar-shop")


@queue.task(retry=5, timeout=30, retention=3600)
async def pack(product: str) -> str:
    return f"One {product} is on its way."


@asynccontextmanager
async def lifespan(site: Litestar) -> AsyncIterator[None]:
    async with (
        queue,
        queue.async_client() as site.state.client,
        queue.inspector() as inspector,
        create_app(inspector, auth=staff) as site.state.dashboard,
    ):
        yield


async def staff(request: Request) -> bool:
    return request.headers.get("x-user") == "ann"  # check your sessions here


async def client(state: State) -> AsyncClient:
    opened: AsyncClient = state.client
    return opened


@post("/orders/{product:str}")
async def buy(product: str, client: AsyncClient) -> Redirect:
    handle = await client.enqueue(pack.build(product))
    return Redirect(f"/orders/{handle.id}", status_code=303)


@get("/orders/{order:str}", media_type=MediaType.TEXT)
async def status(order: str, client: AsyncClient) -> str:
    try:
        handle = client.handle(order, type=str)
        task = await handle.info()
    except (InvalidTask, TaskNotFound):
        raise NotFoundException("There is no such order.") from None
    return await handle.result() if task.state == "completed" else f"Your order is {task.state}."


@asgi("/ops", is_mount=True)
async def operate(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"].rstrip("/") or "/"  # Litestar adds a trailing slash
    inside = {**scope, "root_path": "/ops", "path": f"/ops{path}"}
    await scope["app"].state.dashboard(inside, receive, send)


site = Litestar([buy, status, operate], lifespan=[lifespan], dependencies={"client": client})
