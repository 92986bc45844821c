"""`manage.py qsync_worker`: `qsync worker` for the app of the project, with all its options."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any, Final

import typer
from django.core.management.base import BaseCommand, CommandError, handle_default_options
from typer.core import TyperOption

from qsync.cli.worker import worker

HELP: Final = """Run the tasks of the project until stopped.

For example: manage.py qsync_worker --processes 4 --queues mail=3,default=1

Ctrl-C or SIGTERM stops the worker gracefully: running tasks have the shutdown timeout to end. A
second signal stops the worker immediately. SIGHUP restarts the processes one after another, so that
they load the current code.

Options override the setting QSYNC. --settings, --pythonpath and --skip-checks work as in every
Django command."""

QUEUES: Final = (
    "Queues to serve, e.g. mail=3,default=1. Free slots are shared by weight; the default weight "
    "is 1. Tasks of other queues wait for another worker.  [default: QUEUES of the setting QSYNC, "
    "else `default` and all QUEUES of TASKS]"
)

TARGET: Final = "qsync.contrib.django.worker:app"


class Command(BaseCommand):
    """Passes the command line to `qsync worker`."""

    help = "Runs the tasks of the project until stopped."

    def run_from_argv(self, argv: list[str]) -> None:
        """Handle Django's options, and pass all other options to `qsync worker`."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("--settings", "--pythonpath"):
            parser.add_argument(name)
        for name in ("--skip-checks", "--no-color", "--force-color", "--traceback"):
            parser.add_argument(name, action="store_true")
        options, rest = parser.parse_known_args(argv[2:])
        handle_default_options(options)
        if not options.skip_checks and not {"--help", "-h"} & set(rest):
            try:
                self.check()
            except CommandError as error:
                self.stderr.write(str(error), lambda text: text)
                sys.exit(1)
        # Pass on the import path, so that the worker's processes can import the project.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = self._command()
        command(args=rest, prog_name=f"{os.path.basename(argv[0])} {argv[1]}")  # noqa: PTH119

    def handle(self, *args: Any, **options: Any) -> None:
        """Refuse a call from Python, because the worker takes over the process."""
        raise CommandError("qsync_worker: run it as manage.py qsync_worker, not with call_command")

    @staticmethod
    def _command() -> Any:
        """Return `qsync worker` as a command without its argument MODULE:APP."""
        app = typer.Typer(
            context_settings={"help_option_names": ["-h", "--help"]},
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            add_completion=False,
        )
        app.command()(worker)
        command = typer.main.get_command(app)
        command.help = HELP
        command.params = [parameter for parameter in command.params if parameter.name != "target"]
        for parameter in command.params:
            if isinstance(parameter, TyperOption) and parameter.name == "queues":
                parameter.help = QUEUES
        command.callback = partial(_required(command.callback), target=TARGET)
        return command


def _required(callback: Any) -> Any:
    if callback is None:
        raise CommandError("qsync_worker: typer has made a command without a callback")
    return callback
