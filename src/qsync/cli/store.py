"""Opens the store for a command, and turns its errors into one line and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import math
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import typer

from qsync import store_clock
from qsync.cli.command import (
    DENIED,
    INTERRUPTED,
    NOT_DONE,
    STORE_DOWN,
    USAGE,
    command_path,
    exit_with,
)
from qsync.cli.options import StoreOptions
from qsync.cli.prompts import current_user
from qsync.cli.shell_words import shell_command
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
from qsync.state import TaskState
from qsync.task import PAYLOAD_LIMIT
from qsync.worker.logs import escape

if TYPE_CHECKING:
    from qsync.app import Qsync

T = TypeVar("T")

STORE_TIMEOUT_S: Final = 5.0
"""How long a command tries to reach the store, in seconds."""

CLOCK_S: Final = 60.0
"""How long a measured offset of the store's clock is used, in seconds."""

NAMES_SHOWN: Final = 20
"""Maximum number of names that a message lists."""


class StoreSession:
    """An inspector and an event loop for a command that is not a coroutine.

    The command can prompt its user between two calls; Ctrl-C ends a prompt or a call.
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
        self.address: str = str(connections)
        self.app = app
        self._runner = runner
        self._clock_read_at = -math.inf

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result. Times are shown relative to the store's clock."""
        try:
            self.follow_clock()
        except BaseException:
            work.close()
            raise
        return self._runner.run(work, context=copy_context())

    def follow_clock(self) -> None:
        """Use the store's clock for relative times; read it at most once a minute."""
        asked = time.monotonic()
        if asked - self._clock_read_at > CLOCK_S:
            self._clock_read_at = asked
            with contextlib.suppress(ConfigError):  # no permission: use the local clock
                store_clock.follow(store_clock.ahead(self._runner.run(self.inspector.store_time())))


@contextlib.contextmanager
def open_store(options: StoreOptions) -> Iterator[StoreSession]:
    """Open the store; an error in the context ends the command with one line and an exit code."""
    connections, app = connections_of(options)
    try:
        with contextlib.closing(connections), asyncio.Runner() as runner:
            inspector = connections.inspector().acting(current_user(), as_one=True)
            try:
                yield StoreSession(inspector, runner, connections, app)
            finally:
                runner.run(inspector.aclose())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except QsyncError as error:
        exit_with(*_explain(error))


def load_app(target: str, url: str | None = None) -> Qsync:
    """Import the app that --app names; `url` is used if the app does not set one."""
    # Imported here, so that commands without --app start faster.
    from qsync.worker.load_app import TargetError, load

    if url:
        os.environ.setdefault(URL, url)
    try:
        return load(target)
    except TargetError as error:
        shown = "" if "@" in target else f" {target}"
        exit_with(f"--app{shown}: {error}", USAGE)


def connections_of(
    options: StoreOptions, *, patience: float = STORE_TIMEOUT_S
) -> tuple[Connections, Qsync | None]:
    """Return the store named by the options, the app or the environment, and the app if there is
    one.

    An app that sets no URL or prefix has read them from the environment.
    """
    url, prefix = options.url, options.prefix
    url_option = url if url != os.environ.get(URL) else None
    prefix_option = prefix if prefix != os.environ.get(PREFIX) else None
    app = None if options.app is None else load_app(options.app, url)
    try:
        if app is not None:
            prefix, url = prefix_option or app.prefix, url_option
        elif not url:
            choices = f"--url redis://host:6379 or --app MODULE:APP, or set {URL}"
            exit_with(f"no store is given: use {choices}", USAGE)
        name = check_name("prefix", prefix or "qsync")
        if app is not None and not url:
            return app._connections.copy(prefix=name, patience=patience), app
        limit = PAYLOAD_LIMIT
        connections = Connections(url, prefix=name, payload_limit=limit, patience=patience)
        connections.declared = None if app is None else app._connections.declared
        return connections, app
    except QsyncError as error:
        exit_with(str(error), USAGE)


def _explain(error: QsyncError) -> tuple[str, int]:
    """Return the message and the exit code for an error of the store or the inspector."""
    text = str(error).rstrip(".")
    if isinstance(error, StoreUnavailable):
        hint = f"is it running, and is --url or {URL} right? run `qsync doctor`"
        return f"{text}; {hint}", STORE_DOWN
    if isinstance(error, InvalidTask):
        return text, USAGE
    if isinstance(error, DuplicateTask):
        return f"{text}: `{shell_command('task show', error.id, queue=error.queue)}`", NOT_DONE
    if isinstance(error, SchemaMismatch | TaskNotFound):
        return text, NOT_DONE
    if not isinstance(error, ConfigError):
        return f"{text}; `qsync doctor` may show why", NOT_DONE
    if any(code in text for code in ("NOPERM", "no permissions", "ACL failure", "user executing")):
        hint = f"`qsync acl {_role(command_path())}` prints the permissions needed"
        return f"{text}; {hint}", DENIED
    if " refuses: " in text and "Sentinel" not in text:
        return f"{text}; use --url or {URL} with redis://user:password@host", DENIED
    return text, DENIED if " refuses: " in text else USAGE


def _role(command: str) -> str:
    """Return the role whose permissions a command needs."""
    reads = command.endswith(("list", "show", "explain", "stats", "top", "servers"))
    return "reader" if reads else "admin"


def unknown_name(names: Sequence[str], name: str, noun: str, *, if_none: str = "") -> str:
    """Return the message for an unknown name; it suggests a similar name and lists the names."""
    if not names:
        return f"there is no {noun} {name}, and no other {noun}{if_none}"
    close = difflib.get_close_matches(name, names, 1)
    meant = f"did you mean {close[0]}? Choose" if close else "choose"
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = f"{', '.join(names[:NAMES_SHOWN])}{more}"
    return f"there is no {noun} {name}; {meant} from: {listed}"


async def exit_unknown_queue(inspector: Inspector, name: str) -> NoReturn:
    """Exit with a message that there is no such queue."""
    check_name("queue", name)
    names = await inspector.queue_names()
    hint = f" with prefix {inspector.prefix}: are --url and --prefix or {PREFIX} right?"
    hint += "" if names else await _other_prefixes(inspector)
    exit_with(unknown_name(names, name, "queue", if_none=hint))


async def no_queue_yet(inspector: Inspector) -> str:
    """Return the message for a store without queues."""
    text = f"There is no queue yet. The prefix is {inspector.prefix}."
    return text + await _other_prefixes(inspector)


async def _other_prefixes(inspector: Inspector) -> str:
    prefixes = await inspector.prefixes()
    if not prefixes:
        return ""
    more = f", and {len(prefixes) - NAMES_SHOWN} more" if len(prefixes) > NAMES_SHOWN else ""
    closest = difflib.get_close_matches(inspector.prefix, prefixes, NAMES_SHOWN, cutoff=0.0)
    names = f"{', '.join(closest)}{more}"
    return f" The store has queues with prefix {names}: use --prefix, {PREFIX} or --app."


async def all_queues(inspector: Inspector) -> list[QueueInfo]:
    """Return all queues, reading about a thousand at a time."""
    overview = await inspector.overview()
    queues, later = {info.name: info for info in overview.queues}, list(overview.later)
    while overview.cursor is not None:
        overview = await inspector.overview(cursor=overview.cursor)
        queues |= {info.name: info for info in overview.queues}
        later += overview.later
    note_later(later)
    return list(queues.values())


def note_later(queues: Sequence[str]) -> None:
    """Print on stderr which queues are not shown because a later version of qsync wrote them."""
    if queues:
        more = f" and {len(queues) - NAMES_SHOWN} more" if len(queues) > NAMES_SHOWN else ""
        names = ", ".join(queues[:NAMES_SHOWN])
        text = f"not shown, because a later version of qsync wrote their data: {names}{more}"
        typer.echo(escape(text), err=True)


def note_no_queue(session: StoreSession, rows: Sequence[object]) -> None:
    """If a list is empty because there are no queues, print on stderr which prefixes have
    queues."""
    if not rows and not session.run(session.inspector.queue_names()):
        typer.echo(escape(session.run(no_queue_yet(session.inspector))), err=True)


async def check_queue(inspector: Inspector, name: str) -> QueueInfo:
    """Return the queue with this name; exit if there is none."""
    info = await inspector.queue(name)
    if info is None:
        await exit_unknown_queue(inspector, name)
    return info


async def state_counts(inspector: Inspector, queue: str | None) -> dict[str, dict[TaskState, int]]:
    """Return the number of tasks by queue and state; exit if `queue` is unknown."""
    if queue is None:
        return {info.name: info.states for info in await all_queues(inspector)}
    return {queue: (await check_queue(inspector, queue)).states}


async def queue_of(inspector: Inspector, id: str, queue: str | None) -> str:
    """Return the queue of a task; if `queue` is None, search all queues and exit if none has it."""
    if queue is not None:
        await check_queue(inspector, queue)
        return queue
    queues = [row.queue for row in await inspector.find(id)]
    if len(queues) > 1:
        exit_with(f"queues {', '.join(queues)} have a task {id}: choose one with --queue", USAGE)
    if not queues:
        hint = ""
        if not await inspector.queue_names():
            hint = f". No queue has prefix {inspector.prefix}: are --prefix or {PREFIX} right?"
            hint += await _other_prefixes(inspector)
        exit_with(task_missing(id) + hint)
    return queues[0]


def task_missing(id: str, queue: str | None = None) -> str:
    """Return the message for a task that is not in the store."""
    where = "in any queue" if queue is None else f"in queue {queue}"
    return f"there is no task {id} {where}: it has ended and was not kept, or was deleted"
