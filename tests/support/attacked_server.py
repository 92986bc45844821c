"""Runs a server and reports its side effects. Run as a script:

    python -m tests.support.attacked_server URL PREFIX

The server runs a valid task before it prints "ready", so that all lazy imports are done. When its
input ends, the program prints what has happened since then as a JSON object: forbidden audit
events, newly imported modules, the types of the tasks that ran, and the growth of its memory.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - asyncio imports it for the first name that it looks up
import json
import logging
import secrets  # noqa: F401 - redis-py imports it for the first blocking pool
import sys
from pathlib import Path
from typing import Final

from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.client import AsyncClient
from qsync.mux import Mux
from qsync.server.server import Server
from qsync.task import Task, TaskInfo

FORBIDDEN: Final = (
    "import", "exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "subprocess.Popen", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "shutil.rmtree",
    "os.remove", "os.rename", "socket.bind",
)  # fmt: skip
"""Forbidden audit events. `compile` is not forbidden, since formatting a traceback parses lines of
our own files."""


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


async def main() -> None:
    url, prefix = sys.argv[1:]
    logging.basicConfig(level=logging.CRITICAL)
    mux, handled, events = Mux(), set[str](), set[str]()

    @mux.handle("good")
    async def good(task: TaskInfo) -> object:
        handled.add(task.type)
        return task.value(object) if task.is_value else task.payload

    address = redis_clients.parse(url)
    broker = AsyncBroker(address)
    async with (
        AsyncClient(broker, prefix=prefix) as client,
        Server(address, prefix=prefix, mux=mux, lease=2.0, sweep=0.2),
    ):
        for value in ({"n": [1]}, b"raw"):
            handle = await client.enqueue(Task("good", value, retention=60))
            await handle.result(timeout=10)
        failing = await client.enqueue(Task("unknown", retry=0))
        await failing.cancel()
        modules, memory = set(sys.modules), memory_mib()

        def audit(event: str, args: tuple[object, ...]) -> None:
            if event in FORBIDDEN:
                events.add(f"{event} {args[:1]!r}"[:200])

        say("ready")
        sys.addaudithook(audit)
        await asyncio.to_thread(sys.stdin.read)
        report = {
            "events": sorted(events),
            "modules": sorted(set(sys.modules) - modules),
            "handled": sorted(handled),
            "grown_mib": memory_mib() - memory,
        }
    await broker.aclose()
    say(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main())
