"""Measures a store under load: how long other calls wait, and which scripts were slow."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files

from qsync.broker.script import load
from tests.support.processes import ROOT
from tests.support.stores import Store


@contextlib.contextmanager
def pinging(store: Store) -> Iterator[list[float]]:
    """Ping a store continuously during the block. Afterwards, the yielded list holds the duration
    of each round trip in milliseconds."""
    taken: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.ping_probe", str(store.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    ) as probe:  # fmt: skip
        assert probe.stdin is not None
        assert probe.stdout is not None
        try:
            assert probe.stdout.readline() == b"ready\n"
            yield taken
            probe.stdin.close()
            taken += [1000 * seconds for _, seconds in json.loads(probe.stdout.read())]
        finally:
            probe.kill()


def slow_scripts(store: Store) -> dict[float, str]:
    """Return the names and durations of the scripts that took over 10 ms."""
    names = {
        load(file.name.removesuffix(".lua"), allow_oom=allow_oom).sha: file.name
        for file in (files("qsync.broker") / "lua").iterdir()
        if file.name.endswith(".lua")
        for allow_oom in (None, False, True)
    }
    found: dict[float, str] = {}
    with store.client() as client:
        for entry in client.slowlog_get(1000):
            command, sha, *_ = entry["command"].split(b" ", 2)
            if command.startswith(b"EVAL"):
                found[entry["duration"] / 1000] = names.get(sha.decode(), "first of its kind")
    return found
