"""The harness's side of a server that runs in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent

ANSWER_TIMEOUT_S: Final = 60.0
"""Time limit for an answer, and for the process to end when asked to, in seconds."""

LINE_LIMIT: Final = 64 << 20


class BenchmarkError(Exception):
    """Raised if the benchmark cannot continue. The message gives the reason."""


class ServerProcess:
    """Runs `benchmarks.server_main` for the duration of an `async with` block.

    `server` holds the options of a qsync server. If `server` is None, the process only answers
    questions.
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
        self._spec = {
            "url": url, "prefix": prefix, "server": server, "concurrency": concurrency,
            "uvloop": uvloop,
        }  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.server_main",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            process_group=0,  # Ctrl-C reaches only the parent, which then ends this process
        )  # fmt: skip
        try:
            await self.ask(json.dumps(self._spec))
        except BaseException:
            await self._end(timeout_s=0.0)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._end(timeout_s=ANSWER_TIMEOUT_S if kind is None else 1.0)

    async def ask(self, question: str) -> Any:
        """Ask the server process a question and return its answer; raise BenchmarkError if it gives
        none."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise BenchmarkError("the server process has not been started")
        try:
            process.stdin.write(question.encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                line = await process.stdout.readline()
        except (OSError, TimeoutError) as error:
            reason = type(error).__name__
            raise BenchmarkError(f"the server process does not answer: {reason}") from error
        if not line:
            code = await process.wait()
            raise BenchmarkError(f"the server process ended with {code}; its output is above")
        return json.loads(line)

    async def _end(self, *, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
