"""The table of the outbox, which ENQUEUE = "outbox" uses."""

from __future__ import annotations

from datetime import datetime

from django.db import models

from qsync.contrib.outbox.rows import ID_LENGTH, QUEUE_LENGTH


class OutboxRow(models.Model):
    """A task that was written in a transaction, until the store has it."""

    id: models.CharField[str, str] = models.CharField(max_length=ID_LENGTH, primary_key=True)
    queue: models.CharField[str, str] = models.CharField(max_length=QUEUE_LENGTH)
    message: models.BinaryField[bytes, bytes] = models.BinaryField()
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField(db_index=True)

    class Meta:
        """The name of the table."""

        db_table = "qsync_outbox"
        verbose_name = "row of the outbox"
        verbose_name_plural = "rows of the outbox"

    def __str__(self) -> str:
        return f"{self.id} for {self.queue}"
