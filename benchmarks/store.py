"""Starts the store under test, a private Valkey that keeps nothing on disk, and reads the
statistics of a store."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from qsync.broker.aio import AsyncBroker
from qsync.embedded import valkey_environment, valkey_program

START_S: Final = 10.0
"""Time limit for the start of the store, in seconds."""


@contextlib.asynccontextmanager
async def private_store() -> AsyncIterator[str]:
    """Start a Valkey without AOF on a Unix socket and yield its URL; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="qsync-bench-") as folder:
        socket = Path(folder) / "valkey.sock"
        valkey = await asyncio.create_subprocess_exec(
            valkey_program(), "--port", "0", "--unixsocket", str(socket), "--dir", folder,
            "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            env=valkey_environment(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(START_S):
                while not socket.exists():  # noqa: ASYNC110 - a file system has no event for it
                    await asyncio.sleep(0.01)
            yield f"unix://{quote(str(socket))}"
        finally:
            valkey.terminate()
            await valkey.wait()


@dataclass(frozen=True, slots=True)
class CommandUsage:
    """How often a command has been called since the store started, and the total time that it
    took."""

    calls: int
    us: int

    def since(self, before: CommandUsage) -> CommandUsage:
        """Return the usage since `before` was read."""
        return CommandUsage(self.calls - before.calls, self.us - before.us)


async def read_commands(broker: AsyncBroker, key: str) -> dict[str, CommandUsage] | None:
    """Read INFO commandstats by command from the node of a key; return None if INFO is forbidden.

    Commands that scripts run are also counted; the time of a script includes their time.
    """
    info = await read_info(broker, "commandstats", key)
    if info is None:
        return None
    usage = {}
    for name, text in info.items():
        fields = dict(pair.split("=") for pair in text.split(","))
        usage[name.removeprefix("cmdstat_")] = CommandUsage(
            int(fields["calls"]), int(fields["usec"])
        )
    return usage


async def read_script_usage(broker: AsyncBroker, key: str) -> CommandUsage | None:
    """Read the time and number of script calls on the node of a key; return None if INFO is
    forbidden."""
    commands = await read_commands(broker, key)
    if commands is None:
        return None
    scripts = [usage for name, usage in commands.items() if name in ("evalsha", "eval")]
    return CommandUsage(sum(usage.calls for usage in scripts), sum(usage.us for usage in scripts))


async def read_info(broker: AsyncBroker, section: str, key: str) -> dict[str, str] | None:
    """Read a section of INFO from the node of a key; return None if INFO is forbidden."""
    reply = await broker.ask("INFO", section, key=key)
    if reply is None:
        return None
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
