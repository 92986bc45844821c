"""The parts that all pages share: the inspector, the templates and the messages after a
redirect."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from qsync import codec, store_clock
from qsync.inspector import Inspector
from qsync.phrase import Phrase
from qsync.state import TaskState
from qsync.version import __version__
from qsync.web.auth import is_secure, root_of
from qsync.web.error_scan import ErrorScanner
from qsync.web.language import LANGUAGES, VARY, current
from qsync.web.query import AGES, Fields, parse_form
from qsync.web.roles import allows, given_role
from qsync.web.sampler import Sampler
from qsync.web.template_filters import FILTERS, FUNCTIONS, escape_invisible
from qsync.web.translation import translated

if TYPE_CHECKING:
    from qsync.contrib.prometheus import StoreMetrics  # imported when /metrics is requested

Mask = Callable[[str, bytes], str | bytes]

FLASH: Final = "qsync_flash"
FLASH_S: Final = 30
FLASH_LIMIT: Final = 600
REFRESH_S: Final = 5
"""Time between two refreshes of an open page, in seconds."""


CLOCK_S: Final = 10.0
"""How long a measured offset of the store's clock is used, in seconds."""


class Flash(msgspec.Struct, frozen=True, array_like=True):
    """A message that the next page shows once."""

    text: str
    good: bool = True


@dataclass
class StoreClock:
    """How far the store's clock is ahead of this machine's, and when it was read, by
    time.monotonic."""

    ahead_s: float = 0.0
    read_at: float = -math.inf


@dataclass
class Waiting:
    """Numbers of waiting tasks without a handler, by queue and type, as `problems` counts them."""

    numbers: dict[str, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    counted_at: float = -math.inf


def make_environment() -> Environment:
    """Return the template environment, which escapes HTML and invisible characters."""
    environment = Environment(
        loader=PackageLoader("qsync.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=escape_invisible,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.policies["ext.i18n.trimmed"] = True
    environment.newstyle_gettext = True  # type: ignore[attr-defined]  # functions fill in values
    environment.filters.update(FILTERS)
    environment.globals.update(FUNCTIONS)
    environment.globals.update(
        states=list(TaskState), ages=AGES, version=__version__, refresh=REFRESH_S,
        languages=LANGUAGES, language=current,
    )  # fmt: skip
    return environment


@dataclass(frozen=True)
class Site:
    """Renders the pages for one store and prefix."""

    inspector: Inspector
    environment: Environment
    sampler: Sampler
    error_scanner: ErrorScanner
    read_only: bool
    allowed_by: str
    """The setting that enables changes, as a user writes it."""

    signs_in: bool
    mask: Mask | None
    path: str = ""
    """Path of the site below the dashboard; empty for the first site."""

    trace_url: str | None = None
    """URL of a trace, with {trace_id} in it."""

    others: Mapping[str, str] = field(default_factory=dict)
    """Paths of all sites by name if the dashboard has several sites; otherwise empty."""

    waiting: Waiting = field(default_factory=Waiting)
    _clock: StoreClock = field(default_factory=StoreClock)

    @cached_property
    def _base(self) -> Mapping[str, Any]:
        return {
            "prefix": self.inspector.prefix,
            "allowed_by": self.allowed_by if self.read_only else "",
            "signs_in": self.signs_in,
            "sites": self.others,
            "site_path": self.path,
        }

    @cached_property
    def metrics(self) -> StoreMetrics:
        """Metrics of all queues. Raises ImportError if prometheus-client is missing."""
        from qsync.contrib.prometheus import StoreMetrics

        return StoreMetrics(self.inspector)

    def is_read_only(self, request: Request) -> bool:
        """Return whether the user of a request cannot make any changes."""
        return self.read_only or given_role(request) == "view"

    def page(self, request: Request, name: str, *, status: int = 200, **values: Any) -> Response:
        """Render a template as a page."""
        is_refresh = request.headers.get("x-qsync-refresh") == "1"
        flash = None if is_refresh else _read_flash(request)
        text = self.environment.get_template(f"{name}.html").render(
            **self._base,
            read_only=self.is_read_only(request),
            may=partial(allows, given_role(request)),
            url=links(request),
            base_url=base_links(request, self),
            flash=flash,
            page=name,
            here=_address(request),
            is_form=request.method == "POST",
            **values,
        )
        response = HTMLResponse(text, status, {"Vary": VARY, "Content-Language": current().code})
        if flash is not None:
            response.delete_cookie(
                FLASH, path=root_of(request) or "/", secure=is_secure(request), httponly=True
            )
        return response

    def go(
        self, request: Request, path: str, text: str | Phrase, *, good: bool = True, **query: object
    ) -> Response:
        """Redirect to a page that shows the outcome of a change."""
        self.error_scanner.forget()
        response = RedirectResponse(links(request)(path, **query), 303)
        flash = codec.encode(Flash(translated(text)[:FLASH_LIMIT], good))
        response.set_cookie(
            FLASH,
            base64.urlsafe_b64encode(flash).decode().rstrip("="),
            max_age=FLASH_S,
            path=root_of(request) or "/",
            secure=is_secure(request),
            httponly=True,
            samesite="strict",
        )
        return response

    def confirm(
        self,
        request: Request,
        fields: Fields,
        *,
        title: str,
        text: str,
        button: str,
        back: str,
        items: Sequence[str] = (),
        danger: bool = True,
    ) -> Response:
        """Ask for confirmation: return a page with a form that makes the change when submitted."""
        hidden = [(name, value) for name, value in fields.pairs if name != "sure"]
        return self.page(
            request, "confirm", title=title, text=text, button=button, back=back, kept=hidden,
            items=items, target=request.url.path, danger=danger,
        )  # fmt: skip

    async def follow_clock(self) -> None:
        """Show times relative to the store's clock while this request is handled."""
        asked = time.monotonic()
        if asked - self._clock.read_at > CLOCK_S:
            self._clock.ahead_s = store_clock.ahead(await self.inspector.store_time())
            self._clock.read_at = asked
        store_clock.follow(self._clock.ahead_s)

    async def form(self, request: Request) -> Fields:
        """Return the fields of the submitted form."""
        return parse_form(await request.body())

    def acting(self, request: Request) -> Inspector:
        """Return an inspector for changes; it records all changes of a request as one action."""
        inspector = request.scope.get("qsync.acting")
        if not isinstance(inspector, Inspector):
            user = str(request.scope.get("qsync.user") or "") or "dashboard"
            inspector = request.scope["qsync.acting"] = self.inspector.acting(user, as_one=True)
        return inspector


def _address(request: Request) -> str:
    """Return the page's URL, to which its forms return; empty for the response to a form."""
    if request.method == "POST":
        return ""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def links(request: Request) -> Callable[..., str]:
    """Return a function that builds URLs for pages of the current site."""
    return _links_below(root_of(request))


def base_links(request: Request, site: Site) -> Callable[..., str]:
    """Return a function that builds URLs for pages of the whole dashboard, not of one site."""
    return _links_below(root_of(request).removesuffix(site.path))


def _links_below(root: str) -> Callable[..., str]:
    def url(path: str, query: Mapping[str, object] | None = None, **more: object) -> str:
        fields = {name: value for name, value in {**(query or {}), **more}.items() if value}
        return f"{root}{path}" + (f"?{urlencode(fields, errors='replace')}" if fields else "")

    return url


def _read_flash(request: Request) -> Flash | None:
    value = request.cookies.get(FLASH)
    if not value or len(value) > 4 * FLASH_LIMIT:
        return None
    try:
        data = base64.urlsafe_b64decode(value.encode() + b"=" * (-len(value) % 4))
        flash: Flash = codec.decode(data, Flash)
    except (codec.CodecError, binascii.Error, ValueError):
        return None
    return flash
