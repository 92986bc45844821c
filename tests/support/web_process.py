"""Runs a web application or a worker in its own process, with the command that users type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import httpx

from tests.support.stores import HOST, _watchdog, free_port, wait_until


class WebProcess:
    """A Python program, e.g. `uvicorn shop.main:api`, that runs in a folder and writes its output
    to a file.

    `{port}` in the command stands for a free port, which is also part of `url`.
    """

    def __init__(self, folder: Path, log: Path, *words: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(word.format(port=port) for word in words)],
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        _watchdog().add(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        _watchdog().remove(self.process.pid)

    def log(self) -> str:
        """Return the output so far."""
        return self._log.read_text(errors="replace")

    def get(self, path: str = "/") -> httpx.Response | None:
        """Return the response to a request, or None if no connection can be made."""
        assert self.process.poll() is None, self.log()
        try:
            return httpx.get(self.url + path, timeout=30)
        except httpx.TransportError:
            return None

    def wait_ready(self, path: str = "/") -> Self:
        wait_until(lambda: self.get(path), 40, message=f"no answer:\n{self.log()}")
        return self

    def says(self, text: str, *, times: int = 1) -> None:
        """Wait until the output contains the text."""

        def said() -> bool:
            assert self.process.poll() is None, self.log()
            return self.log().count(text) >= times

        wait_until(said, 40, message=f"{text!r} is not in:\n{self.log()}")

    def stop(self) -> str:
        """Stop the program with SIGTERM, assert that its output contains no error, and return the
        output.

        After it has shut down, Uvicorn kills itself with the signal that it received.
        """
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        said = self.log()
        assert status in (0, -signal.SIGTERM), said
        assert "Traceback" not in said, said
        assert "ERROR" not in said, said
        return said
