"""The web application of the shop; `uvicorn shop.main:api` serves it."""

import html
import os
import secrets
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from qsync import InvalidTask, StoreUnavailable, TaskNotFound
from qsync.contrib.fastapi import QueueClient, lifespan, mount_dashboard
from shop.tasks import app, pack

api = FastAPI(lifespan=lifespan(app))


@api.get("/", response_class=HTMLResponse)
async def products() -> str:
    forms = [
        f'<form method="post" action="/orders/{name}"><button>Buy a {name}</button></form>'
        for name in ("lamp", "chair")
    ]
    return page("Shop", *forms)


@api.post("/orders/{product}")
async def buy(product: str, client: QueueClient) -> RedirectResponse:
    handle = await client.enqueue(pack.build(product))
    return RedirectResponse(f"/orders/{handle.id}", 303)


@api.get("/orders/{order}", response_class=HTMLResponse)
async def status(order: str, client: QueueClient) -> str:
    try:
        handle = client.handle(order, type=str)
        task = await handle.info()
    except (InvalidTask, TaskNotFound):
        raise HTTPException(404, "There is no such order.") from None
    if task.state == "completed":
        return page("Order", f"<p>{html.escape(await handle.result())}</p>")
    return page("Order", f"<p>Your order is {task.state}.</p>", refresh=True)


@api.exception_handler(StoreUnavailable)
async def store_is_away(request: Request, error: StoreUnavailable) -> HTMLResponse:
    text = page("Sorry", "<p>We cannot take orders right now. Please try again.</p>")
    return HTMLResponse(text, 503, {"Retry-After": "5"})


async def staff(
    request: Request, user: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]
) -> None:
    password = os.environ.get("SHOP_STAFF_PASSWORD", "")
    if not password or not secrets.compare_digest(user.password.encode(), password.encode()):
        raise HTTPException(401, "For staff only.", {"WWW-Authenticate": "Basic"})
    request.state.operator = user.username


def operator(request: Any) -> str:
    return str(request.state.operator)


mount_dashboard(api, "/ops", app, dependencies=[Depends(staff)], auth=operator, read_only=False)


def page(title: str, *parts: str, refresh: bool = False) -> str:
    head = '<meta http-equiv="refresh" content="1">' if refresh else ""
    body = "".join(parts)
    return f"<!doctype html><title>{title}</title>{head}<h1>{title}</h1>{body}"
