"""Sets Django up in the processes of handlers with executor="process"."""

from __future__ import annotations


def set_up() -> None:
    """Load the settings and the apps; a new process calls this before it imports a handler."""
    import django

    django.setup()
