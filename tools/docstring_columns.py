"""Parses docstrings that have aligned columns, for the pages that are generated from docstrings.

A paragraph of a docstring such as

    queue   name of the queue
    retry   how many attempts may follow the first one,
            when attempts fail

is a list of names, each with a description. mkdocstrings loads this file as an extension of Griffe,
and `tools/settings_reference.py` uses it to read the options in the code.
"""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

ROW: Final = re.compile(r"(\w+(?:, \w+)* {2,})\S.*")
NAMES: Final = re.compile(r"\w+(?:, \w+)*")


def rows(paragraph: str) -> list[tuple[str, str]]:
    """Return the names and descriptions in a paragraph, or an empty list if it has no columns."""
    lines = paragraph.splitlines()
    columns = [len(row[1]) for line in lines if (row := ROW.fullmatch(line))]
    if not columns:
        return []
    found: list[tuple[str, str]] = []
    for line in lines:
        name, text = line[: columns[0]], line[columns[0] :].strip()
        if NAMES.fullmatch(line):
            # The name is too long for its column, so the text is on the next line.
            found.append((line, ""))
        elif not name.strip() and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {text}".strip())
        elif name.endswith(" ") and NAMES.fullmatch(name.strip()):
            found.append((name.strip(), text))
        else:
            return []
    return found


def all_rows(docstring: str) -> dict[str, str]:
    """Return the names and descriptions in the two-column paragraphs of a docstring."""
    return {name: text for part in docstring.split("\n\n") for name, text in rows(part)}


def to_markdown(docstring: str) -> str:
    """Return the docstring with columns as lists and trees as code blocks."""
    return "\n\n".join(
        f"```text\n{part}\n```"
        if "\n├── " in part
        else "\n".join(f"* `{name}`: {text}" for name, text in rows(part)) or part
        for part in docstring.split("\n\n")
    )


class Columns(griffe.Extension):
    """Turns the columns of all docstrings into lists."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a loaded object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
