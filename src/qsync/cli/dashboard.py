"""`qsync dashboard`: serves the dashboard over HTTP."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from qsync.cli.command import USAGE, exit_with, option
from qsync.cli.options import StoreOptions
from qsync.cli.store import STORE_TIMEOUT_S, connections_of
from qsync.connections import Connections
from qsync.errors import QsyncError
from qsync.formatting import install_command
from qsync.keys import check_name
from qsync.task import PAYLOAD_LIMIT
from qsync.worker import logs

if TYPE_CHECKING:
    from qsync.web import Dashboard  # imported only if the extra is installed

TOKEN: Final = "QSYNC_DASHBOARD_TOKEN"  # noqa: S105 - the name of a variable
ALSO: Final = "QSYNC_DASHBOARD_ALSO"
VIEW_TOKEN: Final = "QSYNC_DASHBOARD_VIEW_TOKEN"  # noqa: S105 - the name of a variable
SHUTDOWN_S: Final = 3
"""Time in which requests in progress must finish after a stop, in seconds."""

Network = IPv4Network | IPv6Network

LOCAL: Final = ("localhost", "127.0.0.1", "::1")


_PATH: Final = re.compile(r"(/[A-Za-z0-9_.~%!$&'()*+,;=:@-]+)*/?")


def _path_of(text: str) -> str:
    if _PATH.fullmatch(text) is None:
        raise typer.BadParameter(f"{text!r} is not a URL path; write e.g. /qsync")
    return text


def dashboard(
    *,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Port to listen on (0 = pick a free one)."
        ),
    ] = 8080,
    token: Annotated[str | None, option(
        metavar="TOKEN", envvar=TOKEN, help="Require this token (min. 16 characters). Prefer "
        f"{TOKEN}: options are visible in `ps`.",
    )] = None,
    view_token: Annotated[str | None, option(
        metavar="TOKEN", envvar=VIEW_TOKEN, help="Also accept this token, which gives "
        f"read-only access (min. 16 characters). Prefer {VIEW_TOKEN}. Needs --token.",
    )] = None,
    allow_actions: Annotated[
        bool,
        typer.Option("--allow-actions/--read-only", help="Allow changes, or only show data."),
    ] = False,
    allow_host: Annotated[list[str] | None, option(
        metavar="NAME", help="Extra Host header to accept, e.g. behind a proxy. Repeatable.  "
        "[default: localhost, or any name if --host is not a loopback address]",
    )] = None,
    root_path: Annotated[str, option(
        metavar="PATH", parser=_path_of, help="Path under which a proxy serves the dashboard, "
        "e.g. /qsync; the proxy must strip it.",
    )] = "",
    trust_proxy: Annotated[list[str] | None, option(
        metavar="ADDRESS", help="IP address or network (10.0.0.0/8) of a proxy in front of the "
        "dashboard. Its X-Forwarded-Proto and X-Forwarded-For are trusted, so cookies are Secure "
        "behind TLS, and wrong tokens count against the user's address. Repeatable.",
    )] = None,
    mask: Annotated[str | None, option(
        metavar="MODULE:FUNCTION", help="Function (type, payload) that returns the text to show "
        "instead of the payload.",
    )] = None,
    also: Annotated[list[str] | None, option(
        metavar="[NAME=]PREFIX[@URL]", envvar=ALSO, help="Also show this prefix, in the same store "
        "or in another, e.g. billing or eu=shop@redis://10.0.0.5:6379. Repeatable; or set "
        f"{ALSO} to a list separated by spaces.",
    )] = None,
    language: Annotated[str | None, option(
        metavar="CODE", help="Language of the pages, en or ru, until the user chooses another.  "
        "[default: the browser's]",
    )] = None,
    trace_url: Annotated[str | None, option(
        metavar="URL", help="Link each task to its trace: an address with {trace_id} in it, e.g. "
        "https://traces.example.com/trace/{trace_id}.",
    )] = None,
    store: StoreOptions,
) -> None:  # fmt: skip
    """Serve the dashboard until stopped.

    By default the dashboard listens on this machine only and is read-only. To listen on other
    addresses, set a token and put a proxy with TLS in front of the dashboard.
    """
    logs.hold_standard_files()
    connections, _ = connections_of(store)
    _check_installed()
    from qsync.web.auth import is_loopback

    proxies = [_network(text) for text in trust_proxy or ()]
    token = token or None
    local = is_loopback(host)
    if token is None and not local:
        _refuse_open(host)
    logs.configure("info", tag="web")
    hosts = [*LOCAL, host, *(allow_host or ())] if local or allow_host else None
    mask_function = None if mask is None else _load(mask)
    others = _others(also or (), connections)
    opened = [connections, *others.values()]
    app = _make(
        connections, others, token, view_token or None, not allow_actions, mask_function, hosts,
        language, trace_url,
    )  # fmt: skip
    listener = _listen(host, port)
    try:
        name = f"[{host}]" if ":" in host else host
        mode = "actions allowed" if allow_actions else "read-only"
        address = f"http://{name}:{listener.getsockname()[1]}{root_path}"
        source = "; ".join(f"{each}, prefix {each.prefix}" for each in opened)
        typer.echo(f"qsync dashboard: {address} ({mode}), showing {source}", err=True)
        _serve(app, listener, root_path, proxies)
    finally:
        listener.close()
        for each in opened:
            each.close()


def _refuse_open(host: str) -> NoReturn:
    exit_with(
        f"--host {host} can be reached from other machines: set {TOKEN} to a secret of at "
        "least 16 characters",
        USAGE,
    )


def _others(texts: Sequence[str], first: Connections) -> dict[str, Connections]:
    """Return the stores that --also adds, by name."""
    others: dict[str, Connections] = {}
    for text in texts:
        place, _, url = text.partition("@")
        if re.search("[:/?]", place):  # do not show the text, which may be a URL with a password
            exit_with("--also: the value must have the form [NAME=]PREFIX[@URL]", USAGE)
        name, named, prefix = place.partition("=")
        prefix = prefix if named else name
        if name in (first.prefix, *others):
            exit_with(
                f"--also {place}: {name} is already used; choose another name: NAME={prefix}", USAGE
            )
        try:
            check_name("name", name)
            check_name("prefix", prefix)
            others[name] = (
                Connections(
                    url, prefix=prefix, payload_limit=PAYLOAD_LIMIT, patience=STORE_TIMEOUT_S
                )
                if url
                else first.copy(prefix=prefix, patience=STORE_TIMEOUT_S)
            )
        except QsyncError as error:
            exit_with(f"--also {place}: {error}", USAGE)
    return others


def _make(
    first: Connections,
    others: Mapping[str, Connections],
    token: str | None,
    view_token: str | None,
    read_only: bool,
    mask: Any,
    hosts: Sequence[str] | None,
    language: str | None,
    trace_url: str | None,
) -> Dashboard:
    from qsync.web.app import make_dashboard

    # Without a token, accept all requests, because only users of this machine can connect.
    auth: Any = "host" if token is None else None
    try:
        return make_dashboard(
            first.inspector(), others={name: each.inspector() for name, each in others.items()},
            token=token, view_token=view_token, auth=auth, read_only=read_only, mask=mask,
            hosts=hosts, language=language, trace_url=trace_url,
            allowed_by="qsync dashboard --allow-actions", hosts_by="--allow-host",
        )  # fmt: skip
    except QsyncError as error:
        exit_with(str(error), USAGE)


def _check_installed() -> None:
    for module in ("starlette", "jinja2", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            exit_with(f"the dashboard needs {module}: {install_command('web')}", USAGE)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # from now on, the kernel queues connections until the server runs
    except OSError as error:
        listener.close()
        why = error.strerror or error
        exit_with(f"cannot listen on {host} port {port}: {why}; use another --port, or 0")
    return listener


def _network(text: str) -> Network:
    """Parse a value of --trust-proxy; exit if it is neither an address nor a network."""
    try:
        return ip_network(text)
    except ValueError as error:
        exit_with(
            f"--trust-proxy {text}: {error}; use an IP address or a network, such as 10.1.2.3 or "
            "10.0.0.0/8",
            USAGE,
        )


def _serve(
    app: Dashboard, listener: socket.socket, root_path: str, proxies: Sequence[Network]
) -> None:
    """Serve until SIGTERM or SIGINT."""
    import uvicorn

    from qsync.web.connection_limits import CONNECTIONS, ConnectionLimits

    limits = ConnectionLimits(proxies=proxies)
    config = uvicorn.Config(
        limits.watch(app),
        root_path=root_path.rstrip("/"),
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        # Trust the X-Forwarded-* headers only from the named proxies. Otherwise, any client could
        # send these headers to try tokens under other clients' addresses.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=[str(proxy) for proxy in proxies],
        timeout_graceful_shutdown=SHUTDOWN_S,
        http=limits.protocol(),
        # uvicorn applies this limit to connections and to running requests. `limits` allows fewer
        # connections, so in effect this limit bounds only the running requests.
        limit_concurrency=2 * CONNECTIONS,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )

    class DashboardServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Exit with 0 after a signal; uvicorn's own method would raise the signal again."""
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            for site in app.sites:
                await site.inspector.aclose()

    DashboardServer(config).run(sockets=[listener])


def _load(target: str) -> Any:
    """Import and return the function MODULE:FUNCTION; search the working directory first."""
    module, _, attribute = target.partition(":")
    if not module or not attribute or "@" in target or "/" in target:
        # Do not show the text, which may be a URL with a password.
        exit_with("--mask: must have the form MODULE:FUNCTION", USAGE)
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds texts
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        exit_with(f"--mask {target}: {type(error).__name__}: {error}", USAGE)
    if not callable(function):
        exit_with(f"--mask {target}: not a function", USAGE)
    return function
