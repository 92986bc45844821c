"""`qsync dashboard`: the queues in a browser."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qsync.cli import options
from qsync.cli.store import WRONG, connections_of, exit_with
from qsync.errors import QsyncError
from qsync.worker import logs

if TYPE_CHECKING:
    from qsync.inspector import Inspector
    from qsync.web import Dashboard  # needs the extra, and is imported when it is there

TOKEN: Final = "QSYNC_DASHBOARD_TOKEN"  # noqa: S105 - the name of a variable
SHUTDOWN_S: Final = 3
"""How long requests may go on after a stop."""

Network = IPv4Network | IPv6Network

LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def dashboard(
    host: Annotated[
        str, typer.Option(metavar="HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="The port; 0: any that is free.")
    ] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", envvar=TOKEN, show_envvar=False, show_default=False,
            help="Let in only who has it; 16 characters at least. It is better off in "
            f"{TOKEN}, which says the same: whoever lists processes sees the options.",
        ),
    ] = None,
    allow_actions: Annotated[
        bool,
        typer.Option(
            "--allow-actions/--read-only",
            help="Let people change things, or only look.",
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="A further name by which browsers may call it, behind a proxy say; may be given "
            "again.  [default: localhost; with a token and another --host, any]",
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            metavar="PATH", show_default=False,
            help="The path at which a proxy has it, which the proxy takes off: /qsync, say.",
        ),
    ] = "",
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", show_default=False,
            help="IP address or network (10.0.0.0/8) of a proxy in front of the dashboard. Its "
            "X-Forwarded-Proto and X-Forwarded-For are believed: cookies are Secure behind TLS, "
            "and wrong tokens count for the user's address. Repeatable.",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", show_default=False,
            help="Makes of a task's type and payload what is shown of it.",
        ),
    ] = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    app: options.App = None,
) -> None:  # fmt: skip
    """Show the queues in a browser, until stopped.

    It listens on this machine alone and only shows, unless told otherwise. Beyond this machine it
    takes a token, and should have TLS before it.
    """
    logs.hold_standard_files()
    connections, _ = connections_of(url, prefix, app)
    _check_installed()
    from qsync.web.auth import is_loopback

    proxies = [_network(given) for given in trust_proxy or ()]
    token = token or None
    local = is_loopback(host)
    if token is None and not local:
        exit_with(f"--host {host} is reached from other machines: set {TOKEN}, to a secret of 16 "
             "characters at least", WRONG)  # fmt: skip
    logs.configure("info", tag="web")
    hosts = [*LOCAL, host, *(allow_host or ())] if local or allow_host else None
    masking = None if mask is None else _load(mask)
    try:
        site = _make(connections.inspector(), token, not allow_actions, masking, hosts)
    except QsyncError as error:
        exit_with(str(error), WRONG)
    bound = _bind(host, port)
    try:
        shown = f"[{host}]" if ":" in host else host
        mode = "actions allowed" if allow_actions else "read-only"
        place = f"http://{shown}:{bound.getsockname()[1]}{root_path}"
        of = f"{connections}, prefix {connections.prefix}"
        typer.echo(f"qsync dashboard: {place} ({mode}), of {of}", err=True)
        _serve(site, bound, root_path, proxies)
    finally:
        bound.close()
        connections.close()


def _make(
    inspector: Inspector,
    token: str | None,
    read_only: bool,
    mask: Any,
    hosts: Sequence[str] | None,
) -> Dashboard:
    from qsync.web import create_app

    # Without a token whoever can use this machine is let in.
    auth: Any = "host" if token is None else None
    return create_app(
        inspector, token=token, auth=auth, read_only=read_only, mask=mask, hosts=hosts
    )


def _check_installed() -> None:
    for module in ("starlette", "jinja2", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            exit_with(f"it needs {module}: pip install 'qsync-py[web]'", WRONG)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # who comes before it serves has to wait, and is not refused
    except OSError as error:
        bound.close()
        why = error.strerror or error
        exit_with(
            f"it cannot listen on {host} port {port}: {why}; --port takes another, 0 any free one"
        )
    return bound


def _network(given: str) -> Network:
    """Read the value of --trust-proxy."""
    try:
        return ip_network(given)
    except ValueError as error:
        exit_with(
            f"--trust-proxy {given}: {error}; give an IP address or a network, such as 10.1.2.3 or "
            "10.0.0.0/8",
            WRONG,
        )


def _serve(
    app: Dashboard, bound: socket.socket, root_path: str, proxies: Sequence[Network]
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
        # Only of a proxy that was named: any client can send these headers, and so try tokens
        # under the addresses of others.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=[str(proxy) for proxy in proxies],
        timeout_graceful_shutdown=SHUTDOWN_S,
        http=limits.protocol(),
        # It counts connections too, which `limits` keeps below: this bounds running requests.
        limit_concurrency=2 * CONNECTIONS,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """A stop that was asked for is no failure: uvicorn would raise the signal again."""
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, self.handle_exit)
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            await app.site.inspector.aclose()

    Server(config).run(sockets=[bound])


def _load(name: str) -> Any:
    """The function named MODULE:FUNCTION; the working directory is looked in first."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        exit_with(f"--mask {name}: not of the form MODULE:FUNCTION", WRONG)
    here = os.getcwd()  # noqa: PTH109 - sys.path holds texts
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        exit_with(f"--mask {name}: {type(error).__name__}: {error}", WRONG)
    if not callable(found):
        exit_with(f"--mask {name}: that is no function", WRONG)
    return found
