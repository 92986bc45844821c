"""`manage.py serve` starts everything that the site needs."""

import os
import signal

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from shop import postgresql


class Command(BaseCommand):
    """Starts the database, creates its tables and a staff user, and serves the site."""

    help = "Serve the shop, to try it out."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add an argument for the address of the site."""
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")

    def handle(self, *, address: str, **options: object) -> None:
        """Serve until Ctrl-C."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops like Ctrl-C
        database = None
        if os.environ.get("SHOP_DATABASE") == "postgresql":
            database = postgresql.start()
        try:
            call_command("migrate", verbosity=0)
            if not User.objects.filter(username="staff").exists():
                User.objects.create_superuser("staff", password="staff")  # noqa: S106
            call_command("runserver", address, use_reloader=False)
        finally:
            if database is not None:
                database.terminate()
                database.wait()
