"""A server in a process of its own, as seen from the process that measures it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from types import TracebackType
from typing import Any, Final, Self

PATIENCE_S: Final = 60.0
"""For an answer, and for the end of a process that was told to end, seconds."""

LINE_LIMIT: Final = 64 << 20


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


class Served:
    """`qsync.cli.bench.serve` from `async with` to its end.

    `server` are the options of a server; None: there is none, only a process that answers.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        server: dict[str, Any] | None,
        concurrency: int = 100,
        uvloop: bool = False,
    ) -> None:
        if server is not None:
            server = {"concurrency": concurrency, **server}
        self._order = {
            "url": url, "prefix": prefix, "server": server, "concurrency": concurrency,
            "uvloop": uvloop,
        }  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "qsync.cli.bench.serve",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT,
            process_group=0,  # Ctrl-C is for the parent, whose end is its end
        )  # fmt: skip
        try:
            await self.ask(json.dumps(self._order))
        except BaseException:
            await self._end(patience=0.0)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end(patience=PATIENCE_S if error is None else 1.0)

    async def ask(self, question: str) -> Any:
        """The answer to a question; BenchError when there comes none."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            msg = "the server process has not been started"
            raise BenchError(msg)
        try:
            process.stdin.write(question.encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(PATIENCE_S):
                line = await process.stdout.readline()
        except (OSError, TimeoutError) as error:
            msg = f"the server process does not answer: {type(error).__name__}"
            raise BenchError(msg) from error
        if not line:
            msg = f"the server process ended with {await process.wait()}; what it said is above"
            raise BenchError(msg)
        return json.loads(line)

    async def _end(self, *, patience: float) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
