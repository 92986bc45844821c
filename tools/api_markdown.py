"""Replaces the lines `::: name` of a page with docstrings in Markdown.

mkdocstrings adds the docstrings to the HTML of the site. This module adds the docstrings to the
Markdown version of each page, for readers without a browser.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe

from tools.docstring_columns import to_markdown

DIRECTIVE: Final = re.compile(r"^::: (\S+)$(?:\n    .*$)*", re.MULTILINE)
"""A directive of mkdocstrings, with its options."""

LINE_LENGTH: Final = 96
SOURCES: Final = Path(__file__).parents[1] / "src"

PREFIXES: Final = {
    griffe.ParameterKind.var_positional: "*",
    griffe.ParameterKind.var_keyword: "**",
}

Documented = griffe.Object | griffe.Alias


def expanded(page: str) -> str:
    """Return a page in which each directive is replaced with the docstrings of its name."""
    return DIRECTIVE.sub(lambda match: section(match[1]), page)


def section(name: str) -> str:
    """Return the heading, the signature and the docstrings of a name such as `qsync.Task`."""
    documented = _package()[name.partition(".")[2]]
    parts = [f"### {name}", *_described(documented)]
    if documented.is_class:
        for member in _members(documented):
            parts += [f"#### {name.rpartition('.')[2]}.{member.name}", *_described(member)]
    return "\n\n".join(parts)


@functools.cache
def _package() -> griffe.Object:
    package = griffe.load("qsync", search_paths=[SOURCES], resolve_aliases=True)
    if not isinstance(package, griffe.Object):
        raise TypeError("qsync is not a package of this repository")
    return package


def _members(documented: Documented) -> Iterator[Documented]:
    """Yield the public members of a class, including inherited ones, in the order of the source."""
    for name, member in documented.all_members.items():
        if name.startswith("_"):
            continue
        try:
            if member.docstring is not None or member.is_function:
                yield member
        except griffe.AliasResolutionError:  # another library defines the member
            continue


def _described(documented: Documented) -> list[str]:
    """Return the signature, if there is one, and the docstring."""
    texts = [_code(line) for line in (_signature(documented),) if line]
    initial = documented.all_members.get("__init__") if documented.is_class else None
    docstrings = [each.docstring for each in (documented, initial) if each is not None]
    return texts + [to_markdown(text.value) for text in docstrings if text is not None]


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _signature(documented: Documented) -> str:
    if documented.is_class:
        initial = documented.all_members.get("__init__")
        parameters = documented.parameters if initial is None else initial.parameters
        if not [*parameters]:
            return f"class {documented.name}"
        return _call(f"class {documented.name}", parameters, None)
    if documented.is_function:
        prefix = "async def " if "async" in documented.labels else "def "
        overloads = documented.overloads or [documented]
        return "\n".join(
            _call(prefix + documented.name, each.parameters, each.returns) for each in overloads
        )
    if not documented.is_attribute:
        return ""
    note = "" if documented.annotation is None else f": {documented.annotation}"
    has_value = documented.value is not None and "property" not in documented.labels
    return f"{documented.name}{note}" + (f" = {documented.value}" if has_value else "")


def _call(name: str, parameters: griffe.Parameters, returns: object) -> str:
    words: list[str] = []
    keyword_only = False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not keyword_only:
            words.append("*")
        keyword_only |= kind in (
            griffe.ParameterKind.keyword_only,
            griffe.ParameterKind.var_positional,
        )
        words.append(_parameter(parameter))
    end = ")" if returns is None else f") -> {returns}"
    line = f"{name}({', '.join(words)}{end}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + end


def _parameter(parameter: griffe.Parameter) -> str:
    text = PREFIXES.get(parameter.kind, "") if parameter.kind is not None else ""
    text += parameter.name
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and parameter.kind not in PREFIXES:
        text += f" = {parameter.default}" if parameter.annotation else f"={parameter.default}"
    return text
