"""The queue keeps working with processes that fork, and with broken output."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from qsync import Qsync, Task
from qsync.broker import redis_clients
from qsync.broker.blocking import Broker
from qsync.client import Client
from tests.support.cancellation import connection_kept_after_a_cancel, mixed_up
from tests.support.stores import Store, _watchdog, wait_until

FORKS = 1000


@pytest.mark.slow
@pytest.mark.faults(12)
def test_a_thousand_forks_mix_up_no_reply(valkey: Store, prefix: str) -> None:
    """Each child uses the client of its parent, which goes on meanwhile."""
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        handles = [client.enqueue(Task("t", id="first"))]
        for number in range(0, FORKS, 20):
            children = []
            for child in range(number, number + 20):
                pid = os.fork()
                if pid == 0:
                    with contextlib.suppress(BaseException):
                        mine = [client.enqueue(Task("t", id=f"c{child}-{n}")) for n in range(3)]
                        good = all(one.created and one.info().id == one.id for one in mine)
                        os._exit(0 if good else 1)
                    os._exit(2)
                children.append(pid)
                handles.append(client.enqueue(Task("t", id=f"p{child}")))
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            assert codes == [0] * len(children)
        assert [one.info().id for one in handles[::10]] == [one.id for one in handles[::10]]
    assert valkey.command("HLEN", f"{{{prefix}:default}}:tasks") == 4 * FORKS + 1


APP = """
from qsync import Mux, Qsync, TaskInfo

mux = Mux()

@mux.handle("bad")
async def bad(task: TaskInfo) -> None:
    print("a handler writes too")
    raise ValueError("boom")

@mux.handle("good")
async def good(task: TaskInfo) -> bytes:
    return b"well"

app = Qsync(mux=mux)
"""


@contextlib.contextmanager
def broken_pipe() -> Iterator[int]:
    """A pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


@contextlib.contextmanager
def full_disk() -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb", buffering=0) as full:
        yield full


@contextlib.contextmanager
def closed() -> Iterator[None]:
    yield None


@pytest.mark.faults(13)
@pytest.mark.parametrize("way", [broken_pipe, full_disk, closed])
def test_a_worker_whose_log_cannot_be_written_works_on(
    valkey: Store, prefix: str, tmp_path: Path, way: Any
) -> None:
    (tmp_path / "broken_app.py").write_text(APP)
    command = [sys.executable, "-m", "qsync", "worker", "broken_app:app", "--log-level", "debug"]
    with way() as where:
        if where is None:  # neither stdout nor stderr is open
            command = ["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", *command]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix},
            stdin=subprocess.DEVNULL,
            stdout=where,
            stderr=where,
            start_new_session=True,
        )
    _watchdog().add(process.pid)
    try:
        with Qsync(valkey.url, prefix=prefix) as app, app.client() as client:
            bad = client.enqueue_many([Task("bad", retry=1, retry_delay=0) for _ in range(20)])
            good = [client.enqueue(Task("good", retention=60)) for _ in range(5)]
            assert [one.result(20) for one in good] == [b"well"] * 5
            wait_until(lambda: all(one.info().state == "dead" for one in bad), timeout=10)
            last = client.enqueue(Task("good", retention=60))
            assert last.result(10) == b"well"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        _watchdog().remove(process.pid)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.faults(37)
@pytest.mark.parametrize("seeds", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_calls_that_are_cancelled_mix_up_no_reply(valkey: Store, prefix: str, seeds: int) -> None:
    """Half of 60 calls a seed are cancelled, at any moment: over 10,000 in the long run."""
    answers = {seed: mixed_up(valkey.url, prefix, seed) for seed in range(seeds)}
    assert {seed: wrong for seed, wrong in answers.items() if wrong} == {}


def test_a_connection_kept_after_a_cancel_would_be_found(valkey: Store, prefix: str) -> None:
    with connection_kept_after_a_cancel(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the connections that are kept
        assert any(mixed_up(valkey.url, prefix, seed) for seed in range(20))
        gc.collect()
