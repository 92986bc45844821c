"""The worker of the demo: `qsync worker` as anybody would start it, in a process of its own."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from qsync.cli.demo.plan import QUEUES

TARGET: Final = "qsync.cli.demo.app:app"

STOP_S: Final = 60.0
"""How long a stop may take before it is asked for more firmly, seconds."""


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Worker:
    """`qsync worker` from `async with` to its end. It writes its log to a file."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.log = folder / "worker.log"
        self.arguments = [
            "worker", TARGET, "--processes", str(processes), "--concurrency", "50",
            "--queues", ",".join(f"{name}={weight}" for name, weight in QUEUES.items()),
            "--shutdown-timeout", "5",
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "qsync", *self.arguments, cwd=self.log.parent,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                process_group=0,  # Ctrl-C is for the demo, which passes it on
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(patience=STOP_S if error is None else 0.5)

    @property
    def pid(self) -> int:
        """The pid of the parent of the servers."""
        return 0 if self._process is None else self._process.pid

    async def watch(self) -> None:
        """DemoError, with the end of its log, when it ends without being told to."""
        if self._process is not None:
            code = await self._process.wait()
            if not self._stopping:
                said = self.log.read_text(errors="replace").splitlines()[-15:]
                raise DemoError(
                    "\n".join([f"qsync worker ended with {code}; its log ends:", *said])
                )

    async def stop(self, *, patience: float = STOP_S) -> int:
        """It has ended: told to, then told to hurry, then killed; its exit code."""
        self._stopping = True
        process = self._process
        if process is None:
            return 0
        for number, seconds in (
            (signal.SIGTERM, patience), (signal.SIGTERM, 3.0), (signal.SIGKILL, 30.0),
        ):  # fmt: skip
            if process.returncode is None:
                process.send_signal(number)
            try:
                return await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                continue
        msg = f"qsync worker (pid {process.pid}) does not end"
        raise DemoError(msg)


def _end_with_parent() -> None:
    """The system ends the worker when somebody kills the demo; elsewhere it would live on."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
