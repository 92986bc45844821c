"""Commands that messages suggest, quoted for a shell; does no I/O."""

from __future__ import annotations

from shlex import quote


def shell_command(words: str, *arguments: str, **options: str) -> str:
    """Return a command with arguments and options, e.g. `qsync task explain ID --queue mail`.

    A value that begins with "-" is joined to its option, and an argument that begins with "-"
    follows "--", because the command would read either as another option.
    """
    given = [_option(name, value) for name, value in options.items()]
    quoted = [quote(argument) for argument in arguments]
    if any(argument.startswith("-") for argument in arguments):
        return " ".join(["qsync", words, *given, "--", *quoted])
    return " ".join(["qsync", words, *quoted, *given])


def _option(name: str, value: str) -> str:
    return f"--{name}{'=' if value.startswith('-') else ' '}{quote(value)}"
