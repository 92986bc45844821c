"""If a handler forks and the child process returns from the handler, the child exits and runs no
other task."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.support.stores import Store

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, os, sys, time
from qsync import Mux, Qsync, Task, current

mux, gate = Mux(), asyncio.Event()
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(*words): os.write(log, (" ".join(map(str, words)) + "\\n").encode())

def split(task):
    while not os.path.exists(sys.argv[3] + ".go"): time.sleep(0.01)
    child = os.fork()
    if child == 0:
        if task.value()["fails"]: raise ValueError("in the child")
        return "child"
    note("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return "parent"

@mux.handle("thread")
def thread(task): return split(task)

@mux.handle("loop")
async def loop(task):
    while not os.path.exists(sys.argv[3] + ".go"): await asyncio.sleep(0.01)
    return split(task)

@mux.handle("awaits")
async def awaits(task):
    while not os.path.exists(sys.argv[3] + ".go"): await asyncio.sleep(0.01)
    answer = split(task)
    for _ in range(50): await asyncio.sleep(0.01)  # the loop goes on, in the child as well
    return answer

@mux.handle("enqueue")
def enqueue(task):
    child = os.fork()
    if child == 0:
        for n in range(50): current().client.enqueue(Task("next", id=f"child-{n}"))
        os._exit(0)
    for n in range(50): current().client.enqueue(Task("next", id=f"parent-{n}"))
    note("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

@mux.handle("next")
def following(task): note("next", os.getpid(), task.id)

async def main():
    app = Qsync(sys.argv[1], prefix=sys.argv[2])
    async with app.async_client() as client, app.server(mux, concurrency=50, threads=1):
        kind, fails = sys.argv[4], sys.argv[5] == "fails"
        split = await client.enqueue(Task(kind, {"fails": fails}, retention=60))
        for n in range(20): await client.enqueue(Task("next", id=str(n)))
        await asyncio.sleep(0.3)
        open(sys.argv[3] + ".go", "w").close()
        note("result", await split.result(timeout=20))
        left = time.monotonic() + 20
        wanted = 120 if kind == "enqueue" else 20
        while open(sys.argv[3]).read().count("next") < wanted and time.monotonic() < left:
            await asyncio.sleep(0.05)
    note("over", os.getpid())

asyncio.run(main())
"""


def run(store: Store, prefix: str, folder: Path, kind: str, how: str = "returns") -> list[str]:
    """Run the program; return the lines that it recorded."""
    script, log = folder / "program.py", folder / "log"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script), store.url, prefix, str(log), kind, how],
        cwd=ROOT, timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


@pytest.mark.faults(103)
@pytest.mark.parametrize(
    ("kind", "how"),
    [*product(["thread", "loop"], ["returns", "fails"]), ("awaits", "returns")],
)
def test_forked_child_that_returns_from_the_handler_exits(
    valkey: Store, prefix: str, tmp_path: Path, kind: str, how: str
) -> None:
    lines = run(valkey, prefix, tmp_path, kind, how)
    assert "code 1" in lines
    assert "result parent" in lines
    [over] = [line.split()[1] for line in lines if line.startswith("over")]
    ran = [line.split()[1:] for line in lines if line.startswith("next")]
    assert {pid for pid, _ in ran} <= {over}
    assert sorted(int(id) for _, id in ran) == list(range(20))


def test_forked_child_may_enqueue_through_the_client_of_its_handler(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    lines = run(valkey, prefix, tmp_path, "enqueue")
    assert "code 0" in lines
    ran = sorted(line.split()[2] for line in lines if line.startswith("next"))
    assert {one for one in ran if "-" in one} == {
        f"{who}-{n}" for who in ("child", "parent") for n in range(50)
    }


RAW_FORK = """
import ctypes, os, sys
from qsync import Qsync, Task

client = Qsync(sys.argv[1], prefix=sys.argv[2]).client()
client.enqueue(Task("before"))
child = ctypes.PyDLL(None).fork()  # as uWSGI does: Python runs no hooks
handles = [client.enqueue(Task("lone", bytes([n]))) for n in range(20)]
handles += client.enqueue_many([Task("many", bytes([n])) for n in range(20)])
assert all(handle.info().id == handle.id for handle in handles)
os.write(1, (" ".join(handle.id for handle in handles) + "\\n").encode())
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.faults(12)
def test_children_of_uwsgi_use_no_ids_and_connections_of_their_parent(
    valkey: Store, prefix: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAW_FORK, valkey.url, prefix],
        cwd=ROOT, timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 80
    assert valkey.command("HLEN", f"{{{prefix}:default}}:tasks") == 81
