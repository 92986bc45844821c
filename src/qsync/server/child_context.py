"""`current()` in handler processes: values that the server sends or the process creates.

Connections and the value of a lifespan cannot be sent to another process. So each process creates
its own client and runs the lifespan itself, when a handler first asks for the client or the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.reduction import ForkingPickler
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qsync.errors import QsyncError
from qsync.server.progress_values import checked_progress
from qsync.task import TaskInfo
from qsync.value_text import class_name, shorten

if TYPE_CHECKING:  # a process imports them when a handler asks for the client
    from qsync.broker.address import Address
    from qsync.client import Client

PROGRESS: Final = struct.Struct(">dd")

LIFESPAN_S: Final = 5.0
"""How long an ending process waits for its lifespan to end, in seconds."""


class ChildSetup(NamedTuple):
    """The settings from which a process creates its client and its state.

    The address is passed as a process argument, and the lifespan as its import path.
    """

    address: Address | None
    address_error: str
    """Reason why the address cannot be sent; empty if it can."""
    prefix: str
    client_options: Mapping[str, Any]
    lifespan: str
    """Import path `module:name` of the lifespan; empty if there is none."""
    lifespan_error: str

    @classmethod
    def of(
        cls, address: Address, prefix: str, client_options: Mapping[str, Any], lifespan: Any
    ) -> ChildSetup:
        """Return the setup of a server's processes."""
        error = ""
        try:
            ForkingPickler.dumps(address)
        except Exception as raised:  # pickling may raise any error, e.g. in a credential provider
            error = f"{class_name(raised)}: {raised}"
        path, path_error = import_path(lifespan)
        sent = None if error else address
        return cls(sent, error, prefix, client_options, path, path_error)


def import_path(function: Any) -> tuple[str, str]:
    """Return the import path of a function, and an error if another process cannot import it."""
    if function is None:
        return "", ""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    try:
        imported = attrgetter(name)(sys.modules[module or ""])
    except (AttributeError, KeyError):
        imported = None
    if imported is not function:
        return "", f"{shorten(function)} is not a function at the top of a module"
    return f"{module}:{name}", ""


class ChildServer:
    """The server as seen by a handler process; `tell` sends a progress report to the server."""

    def __init__(
        self,
        setup: ChildSetup | None,
        report: Callable[[bytes], None],
        find: Callable[[str], Any],
    ) -> None:
        self._setup = setup
        self._find = find
        self._send = report
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._adopted = contextlib.ExitStack()
        self._lifespan: _Lifespan | None = None

    def report(self, done: float, total: float) -> None:
        """Send a progress report of the running task."""
        self._send(PROGRESS.pack(done, total))

    def adopt(self, connections: Any) -> None:
        """Connect an app in this process to a test's store, using the address, which has the test's
        clock."""
        address = None if self._setup is None else self._setup.address
        if self._setup is None or address is None:
            return
        if address.clock is not None and connections.prefix != self._setup.prefix:
            self._adopted.enter_context(connections.pointed_at(address, self._setup.prefix))

    def client(self, connections: Any) -> Client:
        """Return the client of this process, with the extensions of the app if the app is known."""
        with self._lock:
            if self._client is None:
                from qsync.broker.blocking import Broker
                from qsync.client import Client

                setup = self._given("client")
                if setup.address is None:
                    raise QsyncError(
                        "current().client: the address of the store cannot be sent to a handler "
                        f"process: {setup.address_error}"
                    )
                broker = Broker(setup.address)
                make = Client if connections is None else connections.client_of
                client: Client = make(broker, prefix=setup.prefix, **setup.client_options)
                client.borrowed = True
                self._client = client
            return self._client

    def state(self) -> Any:
        """Return the value that the lifespan yields in this process; None without a lifespan."""
        with self._lock:
            if self._lifespan is None:
                setup = self._given("state")
                if setup.lifespan_error:
                    raise QsyncError(
                        "current().state: a handler process cannot import the lifespan: "
                        f"{setup.lifespan_error}"
                    )
                if not setup.lifespan:
                    return None
                begun = _Lifespan(self._find(setup.lifespan))
                begun.value.result()
                self._lifespan = begun
            return self._lifespan.value.result()

    def _given(self, name: str) -> ChildSetup:
        if self._setup is None:
            raise QsyncError(f"current().{name}: no server runs this process")
        return self._setup

    def close(self) -> None:
        """Close the client, and end the lifespan."""
        if self._client is not None:
            self._client.borrowed = False
            self._client.close()
        if self._lifespan is not None:
            self._lifespan.end()


class _Lifespan:
    """A lifespan that runs on an event loop in a separate thread."""

    def __init__(self, lifespan: Callable[[], Any]) -> None:
        self.value: Future[Any] = Future()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._lifespan = lifespan
        self._thread = threading.Thread(target=self._run, name="qsync-lifespan", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._hold())
            except BaseException as error:
                if not self.value.done():
                    self.value.set_exception(error)

    async def _hold(self) -> None:
        async with self._lifespan() as value:
            self.value.set_result(value)
            await self._over.wait()

    def end(self) -> None:
        """Leave the lifespan."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(LIFESPAN_S)


class ChildContext:
    """The Current of a task in a handler process."""

    cancelled: Final = False
    """Always False, because the server stops a run by killing its process."""

    def __init__(self, task: TaskInfo, server: ChildServer, connections: Any) -> None:
        self.task = task
        self._server = server
        self._connections = connections

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """Return only this task, since batch handlers do not run in processes."""
        return (self.task,)

    @property
    def client(self) -> Client:
        """Return the Client of this process."""
        return self._server.client(self._connections)

    @property
    def state(self) -> Any:
        """Return the value that the lifespan yields in this process."""
        return self._server.state()

    def progress(self, done: float, total: float) -> None:
        """Report the task's progress to the server."""
        self._server.report(*checked_progress(done, total))
