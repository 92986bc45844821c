"""Commands that messages suggest can be pasted into a shell."""

from __future__ import annotations

import shlex

import pytest

from qsync.cli.shell_words import shell_command


@pytest.mark.parametrize(
    ("argument", "queue", "command"),
    [
        ("id", "mail", "qsync task show id --queue mail"),
        ("id", "-mail", "qsync task show id --queue=-mail"),
        ("-id", "mail", "qsync task show --queue mail -- -id"),
        ("it's", "a b", """qsync task show 'it'"'"'s' --queue 'a b'"""),
    ],
)
def test_values_with_a_hyphen_or_a_space_stay_whole(
    argument: str, queue: str, command: str
) -> None:
    made = shell_command("task show", argument, queue=queue)
    assert made == command
    assert argument in shlex.split(made)
