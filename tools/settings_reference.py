"""python -m tools.settings_reference: write the options reference to docs/reference/settings.md.

The options are read from the code: names and defaults from signatures, descriptions from
docstrings. `--check` reports whether the page is up to date and writes nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from qsync import ExponentialBackoff, Qsync, Task
from qsync.server.config import Config
from qsync.web import create_app
from tools import cli_reference
from tools.docstring_columns import all_rows
from tools.generated_page import replaced, write_or_check

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
MARK: Final = "<!-- from here on written by python -m tools.settings_reference -->"

TITLES: Final = {
    "The app": (Qsync, "`Qsync(url, prefix=..., ...)`. It also accepts all options of a server."),
    "Tasks": (
        Task,
        "`Task(type, payload, ...)`, `@app.task(...)`, `fn.options(...)` and `@app.periodic(...)`.",
    ),
    "Schedules": (
        Qsync.periodic,
        "`@app.periodic(...)`, in addition to the options of tasks. It needs `cron` or `every`.",
    ),
    "Batches": (
        Qsync.batch,
        "`@app.batch(...)` and `@mux.batch(...)`, in addition to the options of tasks; see "
        "docs/batches.md.",
    ),
    "Bounds of queues": (Qsync.queue, "`app.queue(name, ...)`; see docs/bounds.md."),
    "Back-off": (ExponentialBackoff, "`retry_delay=ExponentialBackoff(...)`."),
    "The dashboard": (create_app, "`qsync.web.create_app(inspector, ...)`."),
}
"""Headings of the sections about functions, each with its function and where its options apply."""


def worker_options() -> set[str]:
    """Return the long options of `qsync worker`."""
    [worker] = [one for path, one in cli_reference.commands() if path == "qsync worker"]
    return {name for one in worker.params for name in one.opts if name.startswith("--")}


def shown(value: Any) -> str:
    """Return a default as the text of a table cell."""
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, timedelta):
        return f"`timedelta(days={value.days})`"
    return f"`{value!r}`"


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Return the default and the description of each parameter that the docstring lists in
    columns."""
    known = inspect.signature(function).parameters
    described = all_rows(inspect.getdoc(function) or "")
    return {name: (known[name].default, text) for name, text in described.items()}


def server_options() -> dict[str, tuple[Any, str]]:
    """Return the default and the description of each server option."""
    described = all_rows(inspect.getdoc(Config) or "")
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(Config)
    }
    return {name: (defaults[name], described[name]) for name in defaults}


def reference() -> str:
    """Return the generated part of the page."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    yield from _section("The app", *TITLES["The app"])
    yield "\n## Servers\n"
    yield (
        "These options of `Config` are keyword arguments of `app.server(...)`, and of `Qsync(...)` "
        "for the defaults of all its servers. The table also names the options of `qsync worker`. "
        "Durations are seconds or a `timedelta`.\n"
    )
    yield from _table(server_options(), _worker_names())
    for title in list(TITLES)[1:]:
        yield from _section(title, *TITLES[title])


def _section(title: str, function: Callable[..., Any], where: str) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield f"{where}\n"
    yield from _table(parameters(function))


def _worker_names() -> dict[str, str]:
    """Return the server options that `qsync worker` also has, each with the name of the command's
    option."""
    names = {"processes": "--task-processes"}
    taken = worker_options()
    options = {
        one.name: names.get(one.name, f"--{one.name.replace('_', '-')}") for one in fields(Config)
    }
    return {name: option for name, option in options.items() if option in taken}


def _table(
    options: Mapping[str, tuple[Any, str]], worker: Mapping[str, str] | None = None
) -> Iterator[str]:
    yield f"| option | default | |{'' if worker is None else ' `qsync worker` |'}"
    yield f"|---|---|---|{'' if worker is None else '---|'}"
    for name, (default, text) in options.items():
        cells = [f"`{name}`", shown(default), _sentence(text)]
        if worker is not None:
            cells.append(f"`{worker[name]}`" if name in worker else "")
        yield f"| {' | '.join(cells)} |"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].replace("|", "\\|").rstrip(".") + "."


def generated(page: str) -> str:
    """Return the page with its generated part updated."""
    return replaced(page, MARK, reference())


def main() -> int:
    return write_or_check("python -m tools.settings_reference", PAGE, MARK, reference())


if __name__ == "__main__":
    sys.exit(main())
