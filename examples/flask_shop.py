"""A shop with Flask. Run each command in a separate terminal, in this folder:

qsync worker flask_shop:queue
gunicorn flask_shop:site
"""

import functools
import os

from flask import Flask, abort, redirect, url_for
from werkzeug import Response

from qsync import Client, InvalidTask, Qsync, TaskNotFound

# Without QSYNC_URL, the store is a private Valkey in the folder .qsync.
queue = Qsync(os.environ.get("QSYNC_URL") or "embedded://", prefix="flask-shop")


@queue.task(retry=5, timeout=30, retention=3600)
def pack(product: str) -> str:
    return f"One {product} is on its way."


site = Flask(__name__)


@functools.cache
def client() -> Client:
    return queue.client()


@site.post("/orders/<product>")
def buy(product: str) -> Response:
    handle = pack.enqueue_sync(product)
    return redirect(url_for("status", order=handle.id), 303)


@site.get("/orders/<order>")
def status(order: str) -> str:
    try:
        handle = client().handle(order, type=str)
        task = handle.info()
    except (InvalidTask, TaskNotFound):
        abort(404)
    return handle.result() if task.state == "completed" else f"Your order is {task.state}."
