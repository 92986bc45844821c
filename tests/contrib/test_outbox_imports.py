"""qsync.contrib.outbox works with the packages of its extra only, and names the extra otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qsync import Qsync
from tests.support.stores import Store

HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""
"""Code that hides an installed package from the code after it."""

SYNC_PROGRAM = """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from qsync import ConfigError, Qsync, Task
from qsync.contrib.outbox import Outbox

app = Qsync(sys.argv[1], prefix=sys.argv[2])
outbox = Outbox(app)
engine = create_engine("sqlite:///" + sys.argv[3])
outbox.metadata.create_all(engine)
with Session(engine) as session:
    session.add(outbox.row(Task("send", id="task")))
    session.commit()
with outbox.relay(engine):
    pass
try:
    outbox.relay(7)
except ConfigError as error:
    print(error)
app.close()
"""


def run(hidden: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(name=hidden) + program, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_sync_program_needs_no_greenlet(valkey: Store, prefix: str, tmp_path: object) -> None:
    done = run("greenlet", SYNC_PROGRAM, valkey.url, prefix, f"{tmp_path}/shop.db")
    assert done.stderr == ""
    assert done.stdout.startswith("relay: 7 is neither an SQLAlchemy engine nor")
    with Qsync(valkey.url, prefix=prefix).client() as client:
        assert client.handle("task").info().state == "pending"


@pytest.mark.parametrize("use", ["metadata", "table", "row(Task('send'))", "create_table"])
def test_missing_extra_is_named_at_first_use(use: str) -> None:
    extra = "psycopg" if use == "create_table" else "sqlalchemy"
    program = (
        "from qsync import Qsync, Task\nfrom qsync.contrib.outbox import Outbox\n"
        f"Outbox(Qsync('redis://localhost')).{use}\n"
    )
    last = run(extra, program).stderr.splitlines()[-1]
    assert last == (f"ModuleNotFoundError: {extra} is not installed: install qsync-py[{extra}]")
