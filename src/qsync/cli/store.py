"""How a command reaches the store, and what becomes of it when that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final, NoReturn, TypeVar

import typer

from qsync.app import Qsync
from qsync.cli.command import command_path
from qsync.connections import PREFIX, URL, Connections
from qsync.errors import (
    ConfigError,
    DuplicateTask,
    InvalidTask,
    QsyncError,
    SchemaMismatch,
    StoreUnavailable,
    TaskNotFound,
)
from qsync.inspector import Inspector, QueueInfo
from qsync.keys import check_name
from qsync.task import PAYLOAD_LIMIT
from qsync.worker.load_app import TargetError, load
from qsync.worker.logs import escape

T = TypeVar("T")

NOT_DONE: Final = 1
WRONG: Final = 2
AWAY: Final = 3
DENIED: Final = 4
INTERRUPTED: Final = 130

EXITS: Final = (
    "Exits with 0: done; 1: not found, too late or refused; 2: asked wrongly; 3: the store is not "
    "available; 4: the store refuses the user."
)

PATIENCE_S: Final = 5.0
"""How long a command tries to reach the store: somebody waits for it."""

NAMED: Final = 20
"""How many names a message lists."""


class StoreSession:
    """An inspector and the event loop that it works in, for a command that is not a coroutine.

    So questions can be asked between calls, and Ctrl-C ends whichever of the two it is.
    """

    def __init__(
        self,
        inspector: Inspector,
        runner: asyncio.Runner,
        connections: Connections,
        app: Qsync | None,
    ) -> None:
        self.inspector = inspector
        self.connections = connections
        self.where = str(connections)
        self.app = app
        self._runner = runner

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of the work."""
        return self._runner.run(work)


@contextlib.contextmanager
def open_store(
    url: str | None, prefix: str | None, app: str | None = None
) -> Iterator[StoreSession]:
    """The store of this URL or app, reached; what goes wrong is one line and an exit code."""
    connections, loaded = connections_of(url, prefix, app)
    try:
        with contextlib.closing(connections), asyncio.Runner() as runner:
            inspector = connections.inspector()
            try:
                yield StoreSession(inspector, runner, connections, loaded)
            finally:
                runner.run(inspector.aclose())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except QsyncError as error:
        exit_with(*_meaning(error))


def load_app(target: str, url: str | None = None) -> Qsync:
    """Import the app of --app; `url` is for an app that does not name its store."""
    if url:
        os.environ.setdefault(URL, url)
    try:
        return load(target)
    except TargetError as error:
        exit_with(f"--app {target}: {error}", WRONG)


def connections_of(
    url: str | None, prefix: str | None, target: str | None, *, patience: float = PATIENCE_S
) -> tuple[Connections, Qsync | None]:
    """Return the store that is meant: by options first, then by the app, then by the environment.

    An app that names no URL or prefix has read the environment itself.
    """
    by_option = url if url != os.environ.get(URL) else None
    named = prefix if prefix != os.environ.get(PREFIX) else None
    app = None if target is None else load_app(target, url)
    try:
        if app is not None:
            prefix, url = named or app.prefix, by_option
        elif not url:
            what = f"give --url redis://host:6379 or --app MODULE:APP, or set {URL}"
            exit_with(f"there is no store: {what}", WRONG)
        name = check_name("prefix", prefix or "qsync")
        if app is not None and not url:
            return app._connections.copy(prefix=name, patience=patience), app
        limit = PAYLOAD_LIMIT
        return Connections(url, prefix=name, payload_limit=limit, patience=patience), app
    except QsyncError as error:
        exit_with(str(error), WRONG)


def _meaning(error: QsyncError) -> tuple[str, int]:
    """What to say of an error that the store or the inspector answered, and the exit code."""
    text = str(error).rstrip(".")
    if isinstance(error, StoreUnavailable):
        return f"{text}; is it running, and --url or {URL} right? `qsync doctor` tells more", AWAY
    if isinstance(error, InvalidTask):
        return text, WRONG
    if isinstance(error, DuplicateTask):
        return f"{text}: `qsync task show {error.id} --queue {error.queue}`", NOT_DONE
    if isinstance(error, SchemaMismatch | TaskNotFound):
        return text, NOT_DONE
    if not isinstance(error, ConfigError):
        return f"{text}; `qsync doctor` may tell why", NOT_DONE
    if any(code in text for code in ("NOPERM", "no permissions", "ACL failure", "user executing")):
        return (
            f"{text}; `qsync acl {_role(command_path())}` prints the rights that it takes",
            DENIED,
        )
    if " refuses: " in text and "Sentinel" not in text:
        return f"{text}; --url or {URL} takes redis://user:password@host", DENIED
    return text, DENIED if " refuses: " in text else WRONG


def _role(command: str) -> str:
    """Whose rights it takes."""
    looks = command.endswith(("list", "show", "explain", "stats", "top", "servers"))
    return "reader" if looks else "admin"


def exit_with(message: str, code: int = NOT_DONE) -> NoReturn:
    """One line that says what to do, and the end."""
    typer.echo(f"{command_path()}: {escape(message)}", err=True)
    raise typer.Exit(code)


def unknown_name(names: Sequence[str], wanted: str, what: str, *, few: str = "") -> str:
    """What to say of a name that is none: those that there are, and the one that was meant."""
    if not names:
        return f"there is no {what} {wanted}, nor any other{few}"
    close = difflib.get_close_matches(wanted, names, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"there is no {what} {wanted}{meant or ';'} there are: {', '.join(names[:NAMED])}{more}"


async def exit_unknown_queue(inspector: Inspector, name: str) -> NoReturn:
    """The end, since there is no such queue."""
    check_name("queue", name)
    names = await inspector.queue_names()
    few = f" with prefix {inspector.prefix}: are --url and --prefix or {PREFIX} right?"
    few += "" if names else await _other_prefixes(inspector)
    exit_with(unknown_name(names, name, "queue", few=few))


async def no_queue_yet(inspector: Inspector) -> str:
    """What to say where there is no queue at all."""
    text = f"There is no queue yet. The prefix is {inspector.prefix}."
    return text + await _other_prefixes(inspector)


async def _other_prefixes(inspector: Inspector) -> str:
    found = await inspector.prefixes()
    if not found:
        return ""
    more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
    alike = difflib.get_close_matches(inspector.prefix, found, NAMED, cutoff=0.0)
    names = f"{', '.join(alike)}{more}"
    return f" The store has queues with prefix {names}: use --prefix, {PREFIX} or --app."


async def all_queues(inspector: Inspector) -> list[QueueInfo]:
    """All queues, read about a thousand at a time."""
    overview = await inspector.overview()
    found = {info.name: info for info in overview.queues}
    while overview.cursor is not None:
        overview = await inspector.overview(cursor=overview.cursor)
        found |= {info.name: info for info in overview.queues}
    return list(found.values())


async def check_queue(inspector: Inspector, name: str) -> None:
    """The end, unless there is such a queue."""
    if await inspector.queue(name) is None:
        await exit_unknown_queue(inspector, name)


async def queue_of(inspector: Inspector, id: str, queue: str | None) -> str:
    """The queue that has the task, which is the one given or found; or the end."""
    if queue is not None:
        await check_queue(inspector, queue)
        return queue
    found = [row.queue for row in await inspector.find(id)]
    if len(found) > 1:
        exit_with(f"queues {', '.join(found)} have a task {id}: say which by --queue", WRONG)
    if not found:
        exit_with(task_missing(id))
    return found[0]


def task_missing(id: str, queue: str | None = None) -> str:
    """What to say of a task that is not there."""
    where = "in any queue" if queue is None else f"in queue {queue}"
    return f"there is no task {id} {where}: it has ended and was not kept, or was deleted"
