"""The orders."""

from django.db import models


class Order(models.Model):
    """An order for one product."""

    product = models.CharField(max_length=40)
    packed = models.BooleanField(default=False)
    task = models.CharField(max_length=128, default="")

    def __str__(self) -> str:
        return f"{self.pk}: {self.product}"
