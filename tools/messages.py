"""Extracts the strings of the dashboard, updates its catalogues and compiles them.

    python -m tools.messages            # update all catalogues
    python -m tools.messages --add de   # add a catalogue
    python -m tools.messages --check    # fail if a catalogue is not up to date

A new string is empty in a catalogue until it is translated; an unused string is removed.
`qsync.web.translation` describes how code marks its strings.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "src" / "qsync"
LOCALES: Final = SOURCE / "web" / "locale"
OTHERS: Final = ("cli", "contrib", "testing")
"""Packages whose strings are not shown on pages."""

KEYWORDS: Final = {
    "_": 1,
    "gettext": 1,
    "marked": 1,
    "phrase": 1,
    "ngettext": 2,
    "marked_plural": 2,
    "plural_phrase": 2,
    "counted": 2,
}
"""Functions that take strings to translate, with the number of leading arguments that are forms of
the string."""

Text = str | tuple[str, ...]


def texts_of_python(path: Path) -> Iterator[Text]:
    """Yield the strings of a module in order."""
    tree = ast.parse(path.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
        given = [_literal(argument) for argument in call.args[: KEYWORDS.get(name, 0)]]
        texts = [text for text in given if text is not None]
        if texts and len(texts) == KEYWORDS[name]:
            yield texts[0] if len(texts) == 1 else tuple(texts)


def _literal(node: ast.expr) -> str | None:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else None


def texts_of_template(path: Path) -> Iterator[Text]:
    """Yield the strings of a template in order."""
    with path.open("rb") as file:
        options = {"trimmed": "true", "silent": "false"}
        for _line, function, texts, _comments in babel_extract(file, list(KEYWORDS), (), options):
            parts = texts if isinstance(texts, tuple) else (texts,)
            given = [text for text in parts if text][: KEYWORDS[function]]
            if len(given) == KEYWORDS[function]:
                yield given[0] if len(given) == 1 else tuple(given)


def extracted() -> Catalog:
    """Return all strings in the sources, without translations."""
    catalog = _catalog(None)
    sources = [
        (path, texts_of_python)
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in OTHERS
    ]
    templates = sorted((SOURCE / "web" / "templates").glob("*.html"))
    sources += [(path, texts_of_template) for path in templates]
    for path, texts_of in sources:
        for text in texts_of(path):
            catalog.add(text, locations=[(path.relative_to(ROOT).as_posix(), 1)])
    return catalog


class _Catalog(Catalog):
    """A catalogue whose header depends only on its language, and not on dates or versions."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        headers = [("Project-Id-Version", "qsync"), ("Language", str(self.locale or ""))]
        if self.locale is not None:
            headers.append(("Plural-Forms", self.plural_forms))
        return [*headers, ("MIME-Version", "1.0"), ("Content-Type", "text/plain; charset=utf-8")]


def _catalog(locale: str | None) -> Catalog:
    comment = f"# Texts of the dashboard: {locale}. `make messages` updates this file."
    return _Catalog(locale, header_comment=comment, fuzzy=False)


def catalogue_files() -> list[Path]:
    """Return the catalogues of the repository."""
    return sorted(LOCALES.glob("*/LC_MESSAGES/qsync.po"))


def locale_of(path: Path) -> str:
    """Return the language of a catalogue."""
    return path.parents[1].name


def updated(path: Path, template: Catalog) -> Catalog:
    """Return a catalogue that has exactly the strings of the template; new strings have no
    translation."""
    locale = locale_of(path)
    catalog = _catalog(locale)
    known = Catalog(locale)
    if path.exists():
        with path.open("rb") as file:
            known = read_po(file, locale=locale)
    for message in template:
        if not message.id:
            continue
        old = known.get(message.id)
        keeps = old is not None and old.pluralizable == message.pluralizable
        catalog.add(
            message.id,
            old.string if old is not None and keeps else None,
            locations=message.locations,
            user_comments=old.user_comments if old is not None else (),
            flags=old.flags & {"fuzzy"} if old is not None else (),
        )
    return catalog


def text_of(catalog: Catalog) -> bytes:
    """Return a catalogue as a .po file."""
    out = io.BytesIO()
    write_po(out, catalog, width=100, sort_by_file=True, ignore_obsolete=True, include_lineno=False)
    return out.getvalue().rstrip(b"\n") + b"\n"


def compiled(catalog: Catalog) -> bytes:
    """Return a catalogue as a .mo file."""
    out = io.BytesIO()
    write_mo(out, catalog)
    return out.getvalue()


def untranslated(catalog: Catalog) -> list[Message]:
    """Return the strings that are marked as fuzzy or lack a translation or one of its plural
    forms."""
    return [
        message
        for message in catalog
        if message.id
        and (
            message.fuzzy
            or not all(message.string if isinstance(message.string, tuple) else [message.string])
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.messages")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--add", metavar="CODE", help="begin a catalogue, such as de")
    options = parser.parse_args()
    template, failed = extracted(), False
    paths = catalogue_files()
    if options.add:
        paths.append(LOCALES / options.add / "LC_MESSAGES" / "qsync.po")
    for path in paths:
        catalog = updated(path, template)
        wanted = {path: text_of(catalog), path.with_suffix(".mo"): compiled(catalog)}
        for file, data in wanted.items():
            if file.exists() and file.read_bytes() == data:
                continue
            if options.check:
                failed = True
                sys.stdout.write(f"{file.relative_to(ROOT)} is out of date; run make messages\n")
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        for message in untranslated(catalog):
            failed = True
            sys.stdout.write(f"{locale_of(path)}: to be translated: {message.id!r}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
