"""Models whose rows the tests write in transactions."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order for one product."""

    product = models.CharField(max_length=40)
