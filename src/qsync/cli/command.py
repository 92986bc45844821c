"""Commands and groups of commands, with exit codes and options that several commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, NoReturn, get_type_hints

import typer
from typer.core import TyperCommand

from qsync.url_masking import hide_credentials
from qsync.worker.logs import escape

NOT_DONE: Final = 1
USAGE: Final = 2
STORE_DOWN: Final = 3
DENIED: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit codes: 0 ok, 1 not found or conflict, 2 usage, 3 store down, 4 access denied."
)

MAX_MESSAGE: Final = 2000
"""Maximum length of an error message, in characters; longer ones are cut."""

UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""Base class of the parser's argument errors; typer exports only its subclasses."""


def option(*names: str, **settings: Any) -> Any:
    """Return an option whose help text states its default."""
    return typer.Option(*names, show_default=False, show_envvar=False, **settings)


def argument(**settings: Any) -> Any:
    """Return an argument whose help text states its default."""
    return typer.Argument(show_default=False, show_envvar=False, **settings)


_path: ContextVar[str] = ContextVar("path", default="qsync")


def command_path() -> str:
    """Return the running command as it is typed, e.g. `qsync task show`."""
    return _path.get()


def set_command_path(path: str) -> None:
    """Set the path that `command_path` returns and that error messages begin with."""
    _path.set(path)


def exit_with(message: str, code: int = NOT_DONE) -> NoReturn:
    """Print one line that says what went wrong and what to do, and exit."""
    print_problem(message)
    raise typer.Exit(code)


def print_problem(message: str) -> None:
    """Print one line that says what went wrong and what to do."""
    shown = hide_credentials(message[: 4 * MAX_MESSAGE])
    if len(shown) > MAX_MESSAGE:
        shown = f"{shown[:MAX_MESSAGE]}…"
    typer.echo(f"{command_path()}: {escape(shown)}", err=True)


@contextlib.contextmanager
def usage_in_one_line() -> Iterator[None]:
    """Print the problem with the arguments as one line, and exit with USAGE."""
    try:
        yield
    except UsageError as error:
        context: Any = getattr(error, "ctx", None)
        text = error.format_message()  # type: ignore[attr-defined]
        if not text or (context is not None and text == context.get_help()):
            raise  # a group was called without a command: typer prints its help
        message = _message_of(error)
        if context is not None:  # an error without a context keeps the path that parse_args set
            set_command_path(context.command_path)
        path = command_path()
        asks = message.endswith("?")  # a "Did you mean" hint
        exit_with(message if asks else f"{message.rstrip('.')}; see {path} --help", USAGE)


_REFUSALS: Final = {
    "int_parsing": "%(input)r is not a whole number",
    "int_from_float": "%(input)r is not a whole number",
    "float_parsing": "%(input)r is not a number",
    "finite_number": "%(input)s is not a number",
    "greater_than_equal": "%(input)s is less than %(ge)s",
    "greater_than": "%(input)s is not greater than %(gt)s",
    "less_than_equal": "%(input)s is greater than %(le)s",
    "less_than": "%(input)s is not less than %(lt)s",
}
"""Messages about invalid values, by pydantic error type; typer validates with pydantic."""


def _message_of(error: Exception) -> str:
    """Return the problem with the arguments as one line, with the invalid value."""
    cause: Any = error.__cause__
    if hasattr(cause, "errors"):
        [first, *_] = cause.errors()
        value = first["input"]
        kind = "finite_number" if str(value).lower() == "nan" else first["type"]
        if kind in _REFUSALS:
            bounds = {
                name: str(bound).removesuffix(".0") for name, bound in first.get("ctx", {}).items()
            }
            error.message = _REFUSALS[kind] % {"input": value, **bounds}  # type: ignore[attr-defined]
    message: str = error.format_message()  # type: ignore[attr-defined]
    return " ".join(message.replace("Value error, ", "").split())


def runs_alone(context: typer.Context) -> bool:
    """Return whether the user called a group without naming one of its commands.

    Exit if options come before the name of a command, because they must come after it.
    """
    set_command_path(context.command_path)
    if context.invoked_subcommand is None:
        return True
    sources = map(context.get_parameter_source, context.params)
    if any(source is not None and source.name == "COMMANDLINE" for source in sources):
        command = f"{context.command_path} {context.invoked_subcommand} ..."
        exit_with(f"put the options after the command: {command}", USAGE)
    return False


def lists_alone(group: typer.Typer, listing: Callable[..., Any], text: str) -> None:
    """Make a group that is called without a command run its `list` command."""
    call: Any = with_options(listing)

    def alone(*, ctx: typer.Context, **options: Any) -> None:
        if runs_alone(ctx):
            call(**options)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *inspect.signature(call).parameters.values()]
    _declare(alone, parameters)
    group.callback(help=text)(alone)


class QsyncCommand(TyperCommand):
    """A command that sets the command path when it runs, and shows its arguments by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; set the command path first, because errors show it."""
        set_command_path(ctx.command_path)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: the options, then the arguments by name."""
        arguments = [each for each in self.get_params(ctx) if each.param_type_name == "argument"]
        return [self.options_metavar or "", *map(_argument_in_usage, arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the help for arguments and options, without the Python types of arguments."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            if parameter.param_type_name == "argument":
                sections["Arguments"].append((_argument_name(parameter), record[1]))
            else:
                sections["Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _argument_name(argument: Any) -> str:
    name: str = argument.metavar or argument.name.upper()
    return name if argument.nargs == 1 or name.endswith("...") else f"{name}..."


def _argument_in_usage(argument: Any) -> str:
    name = _argument_name(argument)
    return name if argument.required else f"[{name}]"


class CommandGroup(typer.Typer):
    """A group of commands; a parameter of a command may be a dataclass of shared options."""

    def command(  # type: ignore[override]  # a group's commands differ only in these
        self,
        name: str | None = None,
        *,
        epilog: str | None = EXIT_CODES,
        short_help: str | None = None,
        hidden: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function as a command."""
        register = super().command(
            name, cls=QsyncCommand, epilog=epilog, short_help=short_help, hidden=hidden
        )

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            register(with_options(function))
            return function

        return add


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with each parameter that is a dataclass replaced by its fields.

    Each field is an option of the command, declared with `Annotated`, and has a default.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
            continue
        groups[name] = kind
        fields = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY,
                default=field.default, annotation=fields[field.name],
            )
            for field in dataclasses.fields(kind)
        ]  # fmt: skip

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        for name, kind in groups.items():
            names = [field.name for field in dataclasses.fields(kind)]
            arguments[name] = kind(**{field: arguments.pop(field) for field in names})
        return function(**arguments)

    _declare(call, parameters)
    return call


def _declare(function: Any, parameters: list[inspect.Parameter]) -> None:
    """Set the signature and annotations that typer reads from a function."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
