"""Creates the table for orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first migration."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("product", models.CharField(max_length=40)),
                ("packed", models.BooleanField(default=False)),
                ("task", models.CharField(default="", max_length=128)),
            ],
        ),
    ]
