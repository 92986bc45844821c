"""The table of the outbox, which ENQUEUE = "outbox" uses, and the model of the admin's
schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models

from qsync.contrib.outbox.rows import ID_LENGTH, QUEUE_LENGTH


class OutboxRow(models.Model):
    """A task that a transaction wrote and that has not yet been sent to the store."""

    id: models.CharField[str, str] = models.CharField(max_length=ID_LENGTH, primary_key=True)
    queue: models.CharField[str, str] = models.CharField(max_length=QUEUE_LENGTH)
    message: models.BinaryField[bytes, bytes] = models.BinaryField()
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField(db_index=True)

    class Meta:
        """The table's name."""

        db_table = "qsync_outbox"
        verbose_name = "row of the outbox"
        verbose_name_plural = "rows of the outbox"

    def __str__(self) -> str:
        return f"{self.id} for {self.queue}"


class _NoRows(models.Manager[Any]):
    """A manager without rows, so that commands such as dumpdata do not look for a table."""

    def get_queryset(self) -> Any:
        """Return an empty query set."""
        return super().get_queryset().none()


class Schedule(models.Model):
    """A schedule in the store, as the admin shows it. The model has permissions but no table.

    The id consists of queue and name, e.g. `mail:report-42`, because programs may have periodic
    tasks with the same name in several queues.
    """

    id: models.CharField[str, str] = models.CharField(
        max_length=257, primary_key=True, editable=False
    )
    name: models.CharField[str, str] = models.CharField(
        max_length=128, help_text="Up to 128 of A-Z a-z 0-9 _ . : -, e.g. report-42."
    )
    task: models.CharField[str, str] = models.CharField(max_length=256)
    queue: models.CharField[str, str] = models.CharField(
        max_length=128, blank=True, help_text="Leave empty for the queue of the task."
    )
    arguments: models.TextField[str, str] = models.TextField(
        blank=True, help_text='JSON: a list, or an object of names and values: {"customer": 42}.'
    )
    cron: models.CharField[str, str] = models.CharField(
        "cron expression", max_length=1000, blank=True,
        help_text="Five fields, or six with seconds first: 0 9 * * 1-5.",
    )  # fmt: skip
    tz: models.CharField[str, str] = models.CharField(
        "time zone", max_length=100, blank=True,
        help_text="Time zone of the cron expression, e.g. Asia/Tokyo. Leave empty for UTC.",
    )  # fmt: skip
    every: models.FloatField[float | None, float | None] = models.FloatField(
        "interval in seconds", blank=True, null=True,
        help_text="In place of a cron expression; at least 0.1.",
    )  # fmt: skip
    missed: models.CharField[str, str] = models.CharField(
        "missed runs", max_length=4, default="skip",
        choices=[
            ("skip", "Skip them"), ("once", "One task for all of them"),
            ("all", "One task for each"),
        ],
        help_text="What to do about runs that are over 30 s late because no worker was running.",
    )  # fmt: skip

    objects: models.Manager[Any] = _NoRows()

    class Meta:
        """Options for a model without a table; dumpdata uses one of the two managers, depending on
        --all."""

        managed = False
        base_manager_name = "objects"
        default_manager_name = "objects"

    def __str__(self) -> str:
        return self.name
