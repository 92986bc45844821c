"""Parses a script for tests: its header, tokens and calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Final

from qsync.broker.script import has_variants, plain_of, variant

FOLDER: Final = files("qsync.broker") / "lua"
SCRIPTS: Final = tuple(
    sorted(
        entry.name.removesuffix(".lua") for entry in FOLDER.iterdir() if entry.name.endswith(".lua")
    )
)
INCLUDES: Final = tuple(
    sorted(entry.name.removesuffix(".lua") for entry in (FOLDER / "include").iterdir())
)
VARIANTS: Final = SCRIPTS + tuple(f"{name}/flow" for name in SCRIPTS if has_variants(name))
"""Names of all scripts, followed by `<name>/flow` for each script that has two variants."""

_TOKEN: Final = re.compile(
    r"'(?:\\.|[^'\\])*'"  # text
    r"|\d+(?:\.\d+)?(?:e\d+)?"
    r"|[A-Za-z_]\w*"
    r"|\.\.|==|~=|<=|>=|[^\s\w]"
)
OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Call:
    """A call in a script: the name of the function and the tokens of each argument."""

    name: str
    arguments: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Function:
    """A function that a file defines."""

    name: str
    parameters: tuple[str, ...]
    body: Source


@dataclass(frozen=True)
class Source:
    """The source of a file or of a part of a file."""

    text: str

    @cached_property
    def header(self) -> str:
        lines = self.text.splitlines()
        end = next((at for at, line in enumerate(lines) if not line.startswith(("--", "#"))), 0)
        return "\n".join(lines[:end])

    @cached_property
    def tokens(self) -> list[str]:
        """Tokens of the code, without comments."""
        lines = [
            line for line in self.text.splitlines() if not line.lstrip().startswith(("--", "#!"))
        ]
        return _TOKEN.findall("\n".join(lines))

    @cached_property
    def keys(self) -> list[tuple[int, str]]:
        """Number and name of each KEYS slot in the header, in order."""
        found = re.findall(r"^-- KEYS\[(\d+)\] (\w+)", self.header, re.MULTILINE)
        return [(int(number), name) for number, name in found]

    @cached_property
    def arguments(self) -> list[tuple[int, str]]:
        """Number and name of each single ARGV slot in the header, in order."""
        found = re.findall(r"^-- ARGV\[(\d+)\] (\w+)", self.header, re.MULTILINE)
        return [(int(number), name) for number, name in found]

    @cached_property
    def rest(self) -> tuple[int, str] | None:
        """First index and description of the open-ended ARGV slot in the header; None if there is
        none."""
        found = re.search(r"^-- ARGV\[(\d+)\.\.\.\] (.*)$", self.header, re.MULTILINE)
        return (int(found[1]), found[2]) if found else None

    @cached_property
    def stride(self) -> int:
        """Number of values per task in the open-ended slot; 1 unless the header gives another
        number."""
        words = {"two": 2, "three": 3, "four": 4, "seven": 7}
        return words.get(self.rest[1].split()[0].strip(","), 1) if self.rest else 0

    @cached_property
    def includes(self) -> list[str]:
        lines = re.findall(r"^-- include: (.+)$", self.header, re.MULTILINE)
        return [piece for line in lines for piece in line.split()]

    @cached_property
    def functions(self) -> list[Function]:
        """Functions that are defined at the left margin."""
        found = re.finditer(
            r"^local function (\w+)\(([^)]*)\)\n(.*?)^end$", self.text, re.MULTILINE | re.DOTALL
        )
        return [
            Function(name, tuple(re.findall(r"\w+", parameters)), Source(body))
            for name, parameters, body in (match.groups() for match in found)
        ]

    @cached_property
    def calls(self) -> list[Call]:
        return list(self._calls())

    def uses(self, name: str) -> list[str]:
        """Return the fields `name.x` that the code mentions."""
        tokens = self.tokens
        return [
            tokens[at + 2]
            for at in range(len(tokens) - 2)
            if tokens[at] == name and tokens[at + 1] == "." and tokens[at - 1] != "."
        ]

    def slots(self, name: str) -> list[str]:
        """Return the text between the brackets of each `name[...]`."""
        tokens = self.tokens
        return [
            " ".join(arguments_at(tokens, at + 1)[0])
            for at in range(len(tokens) - 1)
            if tokens[at] == name and tokens[at + 1] == "["
        ]

    def _calls(self) -> Iterator[Call]:
        tokens = self.tokens
        for at in range(1, len(tokens)):
            if tokens[at] == "(" and re.fullmatch(r"[A-Za-z_]\w*", tokens[at - 1]):
                name = tokens[at - 1]
                if tokens[at - 2] == "." and at >= 3:
                    name = f"{tokens[at - 3]}.{name}"
                if tokens[at - 2] != "function":
                    yield Call(name, tuple(map(tuple, arguments_at(tokens, at))))


def arguments_at(tokens: list[str], opening: int) -> list[list[str]]:
    """Return the tokens inside the bracket that opens at a position, split at the commas."""
    found: list[list[str]] = [[]]
    depth = 0
    for part in tokens[opening:]:
        if part in CLOSING:
            depth -= 1
            if depth == 0:
                break
        if depth == 1 and part == ",":
            found.append([])
        elif depth >= 1:
            found[-1].append(part)
        if part in OPENING:
            depth += 1
    return found if found != [[]] else []


def script(name: str) -> Source:
    """Return the source of a script. `<name>/flow` returns the flow variant, as does the name of a
    script that has only that variant."""
    text = (FOLDER / f"{name.partition('/')[0]}.lua").read_text("utf-8")
    return Source(variant(text, flow=is_flow(name)))


def piece(name: str, *, flow: bool) -> Source:
    text = (FOLDER / "include" / f"{name}.lua").read_text("utf-8")
    return Source(variant(text, flow=flow))


def is_flow(name: str) -> bool:
    """Return whether a name in VARIANTS stands for a flow variant."""
    return name.endswith("/flow") or not (has_variants(name) or plain_of(name))
