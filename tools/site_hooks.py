"""MkDocs hooks for the documentation site.

As on GitHub, pages may link to files outside docs/; on the site, these links lead to the
repository. CHANGELOG.md and CONTRIBUTING.md become pages. `llms.txt` lists all pages, and each page
has a Markdown version that includes its docstrings.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path, not as a module of a package

from tools.api_markdown import expanded  # noqa: E402 - needs the path above

BRANCH: Final = "main"

FROM_ROOT: Final = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages that are generated from files outside docs/."""

LINK: Final = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")

texts: dict[str, str] = {}
"""Markdown of each page, by the path of its source file."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated from files outside docs/."""
    for uri, name in FROM_ROOT.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links to files outside docs/ into links to the repository; save the page's text for
    on_post_build."""
    uri = page.file.src_uri
    source = FROM_ROOT.get(uri, f"docs/{uri}")

    def resolved(match: re.Match[str]) -> str:
        return _target(match[1], source, uri, config)

    text = LINK.sub(resolved, markdown)
    texts[uri] = expanded(text)
    return text


def _target(link: str, source: str, uri: str, config: MkDocsConfig) -> str:
    """Convert the target of a link in a repository file to the corresponding target for the
    site."""
    if "://" in link or link.startswith("mailto:"):
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if path.startswith("docs/"):
        return posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(uri) or ".")
    for page, name in FROM_ROOT.items():
        if path == name:
            return posixpath.relpath(page, posixpath.dirname(uri) or ".")
    if not (ROOT / path).exists():
        return link  # MkDocs will warn about the missing file
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{config.extra['repository']}/{kind}/{BRANCH}/{path}"


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Keep the navigation for on_post_build."""
    texts.clear()
    config.extra["navigation"] = nav
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt and the Markdown version of each page."""
    site = Path(config.site_dir)
    for uri, text in texts.items():
        target = site / uri
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    pages: list[str] = []
    for item in config.extra["navigation"].items:
        if isinstance(item, Section):
            lines += [f"## {item.title}", "", *_listed(item), ""]
        else:
            pages += _listed(item)
    lines[4:4] = ["## Start", "", *pages, ""]
    (site / "llms.txt").write_text("\n".join(lines), "utf-8")


def _listed(item: Any) -> list[str]:
    """Return the lines of llms.txt for a page or a section."""
    if isinstance(item, Section):
        return [line for child in item.children for line in _listed(child)]
    uri = item.file.src_uri
    return [f"- [{item.title}]({uri}): {_summary(texts[uri])}"]


def _summary(text: str) -> str:
    """Return the first sentence of a page, after headings and pictures."""
    for part in re.split(r"\n\s*\n", text):
        plain = " ".join(part.split())
        if plain and plain[0] not in "#!<|`:[-*>":
            sentence = re.split(r"(?<=[.:])\s", plain)[0]
            return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", sentence).rstrip(":.") + "."
    return ""
