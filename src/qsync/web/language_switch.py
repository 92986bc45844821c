"""The language switch on each page: a form that sets a cookie for a year."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qsync.web.auth import NEXT_LIMIT, is_secure, local_path, root_of
from qsync.web.language import COOKIE, COOKIE_S, LANGUAGES
from qsync.web.query import parse_form

LANGUAGE_PATH: Final = "/language"


async def choose_language(request: Request) -> Response:
    """Set the language cookie and redirect back to the page; an unknown language is ignored."""
    form, root = parse_form(await request.body()), root_of(request)
    response = RedirectResponse(local_path(form.text("next", NEXT_LIMIT), root), 303)
    if (code := form.text("language")) in LANGUAGES:
        response.set_cookie(
            COOKIE,
            code,
            max_age=COOKIE_S,
            path=root or "/",
            secure=is_secure(request),
            httponly=True,
            samesite="strict",
        )
    return response
