"""The languages of the pages, and how the language of a request is chosen.

The guard sets the language of a request before any other code runs. `qsync.web.translation` writes
strings in that language; metrics, JSON and logs are always in English.
"""

from __future__ import annotations

import functools
import gettext as catalogues
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from starlette.requests import Request

from qsync.errors import ConfigError
from qsync.value_text import shorten

DOMAIN: Final = "qsync"
COOKIE: Final = "qsync_language"
COOKIE_S: Final = 365 * 86_400

VARY: Final = "Accept-Language, Cookie"
"""Request headers that determine the language of a page."""


@dataclass(frozen=True)
class Language:
    """A language: its code, its native name, and how it writes numbers."""

    code: str
    name: str
    thousands: str
    decimal: str

    @functools.cached_property
    def catalogue(self) -> catalogues.NullTranslations:
        """The translations of this language."""
        if self is ENGLISH:
            return catalogues.NullTranslations()
        name = f"locale/{self.code}/LC_MESSAGES/{DOMAIN}.mo"
        with (files("qsync.web") / name).open("rb") as file:
            return catalogues.GNUTranslations(file)

    def digits(self, text: str) -> str:
        """Convert a number from its English form, e.g. `1,234.5`, to the form of this language."""
        swaps = {",": self.thousands, ".": self.decimal}
        return "".join(swaps.get(char, char) for char in text)


ENGLISH: Final = Language("en", "English", ",", ".")

LANGUAGES: Final[Mapping[str, Language]] = {
    language.code: language for language in (ENGLISH, Language("ru", "Русский", "\u00a0", ","))
}
"""The available languages, by code. Each language except English has a catalogue, which
`make messages` updates."""

_current: Final[ContextVar[Language]] = ContextVar("qsync_language", default=ENGLISH)


def current() -> Language:
    """Return the language of the request."""
    return _current.get()


def use(language: Language) -> None:
    """Make this the language of the current request."""
    _current.set(language)


def check_language(code: str | None) -> Language | None:
    """Return the language that the option `language` names; raise ConfigError if it is unknown."""
    if code is None:
        return None
    if not isinstance(code, str) or code not in LANGUAGES:
        raise ConfigError(
            f"language: unknown value {shorten(code)}; use {' or '.join(map(repr, LANGUAGES))}"
        )
    return LANGUAGES[code]


def language_of(request: Request, default: Language | None) -> Language:
    """Return the language for a request.

    These sources are tried in order: the user's choice on the page, the option of the host
    application, the language in which that application serves this request, and the browser's
    preference. If none of them names an available language, the language is English.
    """
    chosen = LANGUAGES.get(request.cookies.get(COOKIE, "")) or default
    return chosen or preferred(_asked(request)) or ENGLISH


def _asked(request: Request) -> str:
    served = request.scope.get("qsync.language")
    return served or request.headers.get("accept-language", "")


def preferred(header: str) -> Language | None:
    """Return the language that an Accept-Language header prefers among those available; None if it
    names none of them."""
    weighted: list[tuple[float, Language]] = []
    for part in header[:1000].split(","):
        tag, _, weight = part.partition(";")
        language = LANGUAGES.get(tag.strip().lower().partition("-")[0])
        if language is not None:
            weighted.append((_weight(weight), language))
    best = max(weighted, key=lambda row: row[0], default=(0.0, None))
    return best[1] if best[0] > 0 else None


def _weight(text: str) -> float:
    _, _, number = text.partition("=")
    try:
        return min(1.0, float(number)) if number.strip() else 1.0
    except ValueError:
        return 0.0
