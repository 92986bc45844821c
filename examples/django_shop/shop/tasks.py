"""The tasks, which `manage.py qsync_worker` discovers."""

import time

from qsync.contrib.django import app, task
from shop.models import Order


@app.task(retry=5, timeout=30, retention=3600)
def pack(order: int) -> str:
    time.sleep(1)  # the work
    packed = Order.objects.get(pk=order)
    packed.packed = True
    packed.save()
    send_receipt.enqueue(order)
    return f"One {packed.product} is on its way."


@task(queue_name="mail", retry=5)
def send_receipt(order: int) -> str:
    return f"The receipt for order {order} is in the mail."
