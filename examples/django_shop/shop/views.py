"""The pages."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from qsync import TaskNotFound
from qsync.contrib.django import app
from shop.models import Order
from shop.tasks import pack


def index(request: HttpRequest) -> HttpResponse:
    """Show the products."""
    return render(request, "shop/index.html", {"products": ["lamp", "chair"]})


@require_POST
@transaction.atomic
def buy(request: HttpRequest, product: str) -> HttpResponse:
    """Save an order, and enqueue its task, which is sent when the transaction commits."""
    order = Order.objects.create(product=product)
    order.task = pack.enqueue_sync(order.pk).id
    order.save()
    return redirect("order", order.pk)


def show(request: HttpRequest, pk: int) -> HttpResponse:
    """Show an order and the result of its task."""
    order = get_object_or_404(Order, pk=pk)
    with app.client() as client:
        handle = client.handle(order.task, type=str)
        try:
            state = str(handle.info().state)
            text = handle.result() if state == "completed" else f"Your order is {state}."
        except TaskNotFound:
            text = "It was sent." if order.packed else "Your order is on its way to the queue."
    return render(request, "shop/order.html", {"order": order, "text": text})
