"""All sentences of the dashboard, in templates, code and script, come from the catalogue."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import nodes

import qsync.web
from qsync.web.pages import make_environment
from tools.messages import KEYWORDS

WEB = Path(qsync.web.__file__).parent
ENVIRONMENT = make_environment()

MARK = "\ufffc"
"""Stands for the value of an expression in a template."""

NAMES = {"qsync", "id", "msgpack", "Python", "pid", "CSV", "JSON"}
"""Words that are the same in every language."""

ATTRIBUTES = {"title", "aria-label", "placeholder", "alt", "data-label", "data-counted"}
"""Attributes whose values users read."""

WORD = re.compile(r"[^\W\d_]{2,}")

CODE = {
    "mail.*", "customer:42", "report-42", "shop.tasks.report", '{"customer": 42}', "0 9 * * *",
    "UTC", "900", "3600",
}  # fmt: skip
"""Example values in the placeholders of input fields."""


class Texts(HTMLParser):
    """Collects the strings and attributes that users read, without code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("input", "meta", "link", "br", "path", "circle", "rect"):
            self._within.append(tag)
        for name, value in attrs:
            if name in ATTRIBUTES and value not in CODE:
                self._add(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"code", "kbd", "pre", "script", "style"} & set(self._within):
            self._add(data)

    def _add(self, text: str) -> None:
        if set(WORD.findall(text)) - NAMES:
            self.found.append(text.strip())


def source_of(node: nodes.Node) -> Iterator[str]:
    """Yield the text of a template in order, with a mark in place of each expression."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.TemplateData):
            yield child.data
        elif isinstance(child, nodes.Expr):
            yield MARK
        else:
            yield from source_of(child)


def consts_outside(node: nodes.Node) -> Iterator[str]:
    """Yield strings in expressions of a template, except those that are looked up in the
    catalogue."""
    for child in node.iter_child_nodes():
        is_call = isinstance(child, nodes.Call) and isinstance(child.node, nodes.Name)
        if is_call and child.node.name in KEYWORDS:
            for rest in (*child.args[KEYWORDS[child.node.name] :], *child.kwargs):
                yield from consts_outside(nodes.Tuple([rest], "load"))
        elif isinstance(child, nodes.Const) and isinstance(child.value, str):
            yield child.value
        else:
            yield from consts_outside(child)


def reads_as_text(text: str) -> bool:
    """Return whether a literal is a sentence or a label, rather than a name, a path or code."""
    words = WORD.findall(text)
    if not words or set(words) <= NAMES:
        return False
    if re.search(r"[^\W\d_]{2,}[.,:;!?…]* [^\W\d_]+", text):
        return True
    return bool(re.fullmatch(r"[A-Z][a-z]+[.!?…]?", text))


TEMPLATES = sorted(path.name for path in WEB.glob("templates/*.html"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_have_no_strings_outside_the_catalogue(name: str) -> None:
    tree = ENVIRONMENT.parse((WEB / "templates" / name).read_text("utf-8"))
    html = Texts()
    html.feed("".join(source_of(tree)))
    assert html.found == [], name
    assert [text for text in consts_outside(tree) if reads_as_text(text)] == [], name


UNSEEN_CALLS = {
    "debug", "info", "warning", "exception", "error", "ConfigError", "TypeError", "compile", "cast",
}  # fmt: skip
"""Functions whose strings users do not see. Logs and errors for developers are in English, and
patterns are code."""

HEADERS = {
    "Content-Security-Policy", "Referrer-Policy", "Cache-Control", "Content-Type", "Allow",
    "Vary", "Content-Language", "Retry-After", "Authorization", "Origin", "Host",
}  # fmt: skip

CODE_LIKE = re.compile(r"charset=|filename=|src 'self'|^queue:|^<time ")

KNOWN = {"GET, HEAD, POST", "Accept-Language, Cookie", 'Bearer realm="qsync"', "English"}
"""Strings that are never translated: values of headers, and the name of English."""


def texts_outside(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield literals of a module that read like sentences, except docstrings, logs and the
    catalogue."""
    if isinstance(tree, ast.Call):
        name = getattr(tree.func, "attr", None) or getattr(tree.func, "id", "")
        if name in UNSEEN_CALLS:
            return
        if name in KEYWORDS:
            for rest in (*tree.args[KEYWORDS[name] :], *tree.keywords):
                yield from texts_outside(rest)
            return
    if isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant):
        return
    if isinstance(tree, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else MARK for part in tree.values]
        if reads_as_text(text := "".join(parts)):
            yield tree.lineno, text
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        if reads_as_text(tree.value):
            yield tree.lineno, tree.value
        return
    if isinstance(tree, ast.Assign) and getattr(tree.targets[0], "id", "") == "__all__":
        return
    children = tree.values if isinstance(tree, ast.Dict) else ast.iter_child_nodes(tree)
    for child in children:
        yield from texts_outside(child)


def test_code_has_no_strings_outside_the_catalogue() -> None:
    found = [
        f"{path.name}:{line}: {text}"
        for path in sorted(WEB.glob("*.py"))
        for line, text in texts_outside(ast.parse(path.read_text("utf-8")))
        if text not in KNOWN | HEADERS and not CODE_LIKE.search(text)
    ]
    assert found == []


def test_script_has_no_strings_for_users() -> None:
    script = (WEB / "static" / "script.js").read_text("utf-8")
    code = re.sub(r"^\s*//.*$|(?<=[;{}]) // .*$", "", script, flags=re.MULTILINE)
    literals = re.findall(r'"([^"\n]*)"|`([^`]*)`', code)
    texts = {text for pair in literals for text in pair if reads_as_text(text)}
    starts = ("tbody ", "thead ", "main ", ".steps ")
    selectors = {text for text in texts if text.startswith(starts)}
    # The script catches the error "no such part", so users never see it.
    assert texts - selectors == {"use strict", "no such part"}


def test_search_for_untranslated_strings_finds_them() -> None:
    """The checks above find strings that are not marked for translation."""
    page = ENVIRONMENT.parse('<p title="Run now">{{ n }} tasks wait</p>{{ post(url, "Sign out") }}')
    html = Texts()
    html.feed("".join(source_of(page)))
    assert html.found == ["Run now", f"{MARK} tasks wait"]
    assert [text for text in consts_outside(page) if reads_as_text(text)] == ["Sign out"]
    code = ast.parse('"""A doc."""\ngo(f"Queue {name} is paused.", _("Marked one"), title="Saved")')
    assert [text for _, text in texts_outside(code)] == [f"Queue {MARK} is paused.", "Saved"]
