"""Creates the permissions for schedules, which are in the store and have no table."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """The permissions for the admin."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("qsync", "0001_outbox")]
    operations: ClassVar[list[object]] = [
        migrations.CreateModel(
            name="Schedule",
            fields=[
                (
                    "id",
                    models.CharField(
                        editable=False, max_length=257, primary_key=True, serialize=False
                    ),
                ),
            ],
            options={
                "managed": False,
                "base_manager_name": "objects",
                "default_manager_name": "objects",
            },
        ),
    ]
