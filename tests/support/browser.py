"""A real browser for tests: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

CHROMIUM: Final = shutil.which("chromium")
ARGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

WATCH: Final = """
window.hits = [];
window.hit = (what) => window.hits.push(String(what));
for (const name of ["alert", "confirm", "prompt", "print"]) window[name] = () => window.hit(name);
document.addEventListener("securitypolicyviolation", (event) =>
  window.hit("CSP " + event.violatedDirective + " " + event.blockedURI + " " + event.sample));
"""
"""Records scripts that run and violations of the content security policy."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield the browser; skip the test if there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGS))
        yield browser
        browser.close()


class Visit:
    """A page in its own browser context; records the errors of the page."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.clicks = 0
        self.wrong: list[str] = []
        self.asked: set[str] = set()
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(15_000)
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(f"console {message.text}")

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def click(self, name: str, role: str = "button", **options: Any) -> None:
        self.clicks += 1
        self.page.get_by_role(role, name=name, exact=True, **options).click()

    def refresh(self) -> None:
        """Let the page refresh immediately instead of after 2 s."""
        with self.page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
            self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        self.page.wait_for_function("() => document.getElementById('live').textContent === 'live'")

    def says(self, text: str) -> None:
        """Wait until the page shows this text."""
        self.page.get_by_text(text).first.wait_for()

    def check(self) -> None:
        """Assert that no injected script ran and no other host was contacted."""
        hits = self.page.evaluate("window.hits || []")
        assert (hits, self.wrong) == ([], [])
        assert {url for url in self.asked if not url.startswith((self.url, "data:,"))} == set()

    def close(self) -> None:
        self.context.close()
