"""The store under test: a private Valkey that keeps nothing, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from qsync.broker import connect
from qsync.broker.shell import AsyncBroker
from qsync.embedded import Embedded


@contextlib.asynccontextmanager
async def private_store() -> AsyncIterator[str]:
    """The URL of a Valkey on a unix socket, without AOF; it has ended when the context has."""
    folder = Path(tempfile.mkdtemp(prefix="qsync-bench-"))
    try:
        with Embedded(folder) as store:
            url = f"unix://{quote(store.socket)}"
            broker = AsyncBroker(connect.parse(url), connections=1)
            try:
                await broker.ask("CONFIG", "SET", "appendonly", "no")
            finally:
                await broker.aclose()
            yield url
        await asyncio.to_thread(_wait_for_its_end, folder)
    finally:
        shutil.rmtree(folder)


def _wait_for_its_end(folder: Path) -> None:
    with (folder / "users.lock").open() as lock:
        # Held by the guardian of the store until that has ended.
        fcntl.flock(lock, fcntl.LOCK_EX)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the store has spent on something since it was started."""

    calls: int
    us: int

    def since(self, before: Spent) -> Spent:
        """What came after `before`."""
        return Spent(self.calls - before.calls, self.us - before.us)


async def read_commands(broker: AsyncBroker, key: str) -> dict[str, Spent] | None:
    """INFO commandstats at the node of a key, by command; None where it is forbidden.

    Commands that scripts run count by themselves, and their time counts for the script as well.
    """
    info = await read_info(broker, "commandstats", key)
    if info is None:
        return None
    found = {}
    for name, text in info.items():
        fields = dict(pair.split("=") for pair in text.split(","))
        found[name.removeprefix("cmdstat_")] = Spent(int(fields["calls"]), int(fields["usec"]))
    return found


async def spent(broker: AsyncBroker, key: str) -> Spent | None:
    """What the node of a key has spent on scripts; None where it does not tell."""
    commands = await read_commands(broker, key)
    if commands is None:
        return None
    scripts = [one for name, one in commands.items() if name in ("evalsha", "eval")]
    return Spent(sum(one.calls for one in scripts), sum(one.us for one in scripts))


async def read_info(broker: AsyncBroker, section: str, key: str) -> dict[str, str] | None:
    """A section of INFO at the node of a key; None where it is forbidden."""
    reply = await broker.ask("INFO", section, key=key)
    if reply is None:
        return None
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
