"""python -m tools.cli_reference: write the reference of commands and options into docs/cli.md.

The reference is built from the commands themselves. `--check` reports whether the page is up to
date and writes nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import typer

from qsync.cli.main import app
from tools.generated_page import replaced, write_or_check

PAGE: Final = Path(__file__).parents[1] / "docs" / "cli.md"
MARK: Final = "<!-- from here on written by python -m tools.cli_reference -->"


def commands(command: Any = None, path: str = "qsync") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the object of each command; groups come before their commands."""
    command = typer.main.get_command(app) if command is None else command
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        if inner.hidden:
            continue
        yield from commands(inner, f"{path} {name}")


def reference() -> str:
    """Return the generated part of the page."""
    return "\n".join(line for path, command in commands() for line in _section(path, command))


def parameters(command: Any) -> list[Any]:
    """Return the parameters of a command, arguments first."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    return arguments + [one for one in command.params if one.param_type_name == "option"]


def _section(path: str, command: Any) -> Iterator[str]:
    group = hasattr(command, "commands")
    if path == "qsync":
        names = ", ".join(
            f"[{name}](#qsync-{name})" for name, one in command.commands.items() if not one.hidden
        )
        yield f"\nCommands: {names}.\n"
        return
    yield f"\n{'##' if path.count(' ') == 1 else '###'} {path}\n"
    usage = [path, *(_argument(one) for one in parameters(command) if not _is_option(one))]
    options = any(_is_option(one) for one in parameters(command))
    if not group or command.invoke_without_command:
        line = f"{' '.join(usage)}{' [OPTIONS]' if options else ''}"
        yield "`{}`\n".format(line.replace("\\|", "|"))
    yield _paragraphs(command.help or "")
    if group and not command.invoke_without_command:
        return
    rows = [row for one in parameters(command) if (row := _row(one))]
    if rows:
        yield "\n| | |\n|---|---|"
        yield from rows


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _argument(parameter: Any) -> str:
    shown = f"{_value(parameter)}{'...' if parameter.nargs == -1 else ''}"
    return shown if parameter.required else f"[{shown}]"


def _paragraphs(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(re.sub(r"^For example: (.*)$", r"For example: `\1`", one) for one in parts)


def _row(parameter: Any) -> str:
    name = _argument(parameter) if not _is_option(parameter) else _option(parameter)
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if (
        parameter.show_default
        and default not in (None, False, "", [], ())
        and not callable(default)
    ):
        text += f" [default: {default}]"
    if _is_option(parameter) and parameter.required:
        text += " [required]"
    return f"| `{name}` | {text} |".replace("[[", "[").replace("]]", "]")


def _option(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        return f"{names}, {', '.join(parameter.secondary_opts)}"
    return names if parameter.is_flag else f"{names} {_value(parameter)}"


def _value(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    return "\\|".join(_choices(parameter)) or str(parameter.name.upper())


def _choices(parameter: Any) -> list[str]:
    """Return the possible values of a Literal. Before typer 0.29, the parameter's type holds these
    values."""
    described = getattr(parameter, "type_descriptor", None)
    if described is None:
        return [str(choice) for choice in getattr(parameter.type, "choices", ())]
    return [str(choice) for choice in get_args(described.annotation) if isinstance(choice, str)]


def generated(page: str) -> str:
    """Return the page with its generated part updated."""
    return replaced(page, MARK, reference())


def main() -> int:
    return write_or_check("python -m tools.cli_reference", PAGE, MARK, reference())


if __name__ == "__main__":
    sys.exit(main())
