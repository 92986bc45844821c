"""Creates the table of the outbox."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first migration."""

    initial: bool = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[object]] = [
        migrations.CreateModel(
            name="OutboxRow",
            fields=[
                ("id", models.CharField(max_length=128, primary_key=True, serialize=False)),
                ("queue", models.CharField(max_length=128)),
                ("message", models.BinaryField()),
                ("created_at", models.DateTimeField(db_index=True)),
            ],
            options={
                "verbose_name": "row of the outbox",
                "verbose_name_plural": "rows of the outbox",
                "db_table": "qsync_outbox",
            },
        ),
    ]
