"""`current()` in handlers with executor="process": client, state, progress, cancelled."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qsync import Mux, Qsync, QsyncError, Task, TaskFailed
from qsync.broker.address import Address
from qsync.server.child_context import ChildServer, ChildSetup
from qsync.testing import Kit, SyncKit
from tests.support import process_app
from tests.support.stores import Store, wait_until_async


async def test_a_task_function_has_client_state_and_progress_in_its_process() -> None:
    async with Kit(process_app.app) as kit:
        first = await process_app.parent.enqueue(1)
        second = await process_app.parent.enqueue(3)
        await kit.drain()
        values = [await handle.result(5) for handle in (first, second)]
        for value in values:
            pid, _, cancelled, handlers_pid, *_ = value
            assert pid == handlers_pid != os.getpid()
            assert cancelled is False
        # Both tasks ran in one process and share its state.
        assert sorted(value[1] for value in values) == [1, 2]
        assert (await first.info()).progress == (5, 5)
        tasks = {one.id: one.arguments for one in kit.enqueued(process_app.child)}
        assert tasks == {}  # the drain has also run the child tasks


async def test_tasks_enqueued_by_a_process_go_to_the_store_of_the_test_at_its_time() -> None:
    async with Kit(process_app.app) as kit:
        await kit.advance(days=3)
        handle = await process_app.parent.enqueue(1, delay=3600)
        await kit.drain()
        children = {one.arguments["number"]: one.status for one in kit.enqueued(process_app.child)}
        assert set(children) == {1, 2}
        enqueued = (await handle.info()).enqueued_at
        assert all(
            abs((one.enqueued_at - enqueued).total_seconds()) < 60 for one in children.values()
        )


def test_plain_kit_runs_process_handlers() -> None:
    with SyncKit(process_app.app) as kit:
        handle = process_app.parent.enqueue_sync(1)
        kit.drain()
        assert handle.result(5)[0] != os.getpid()


async def test_a_handler_of_a_mux_has_the_client_of_its_server(valkey: Store, prefix: str) -> None:
    mux = Mux()
    mux.handle("look", executor="process")(process_app.look)
    app = Qsync(valkey.url, prefix=prefix, mux=mux, processes=1)
    async with app, app.async_client() as client, app.server():
        handle = await client.enqueue(Task("look", retention=60))
        value = await handle.result(60)
        assert value == {"handle": "other", "state": "None", "same": True}
        other = client.handle("other")
        assert (await other.info()).payload == b"x"
        assert (await handle.info()).progress == (1, 3)


async def test_progress_is_seen_while_the_handler_runs(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    mux = Mux()
    mux.handle("linger", executor="process")(process_app.linger)
    app = Qsync(valkey.url, prefix=prefix, mux=mux, processes=1)
    async with app, app.async_client() as client, app.server():
        handle = await client.enqueue(Task("linger", str(tmp_path / "go").encode(), retention=60))

        async def reported() -> bool:
            return (await handle.info()).progress == (2, 7)

        await wait_until_async(reported, timeout=60)
        (tmp_path / "go").touch()
        assert await handle.result(10) is None


async def test_the_lifespan_of_a_process_ends_with_it(
    valkey: Store, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFESPAN_END", str(tmp_path))
    mux = Mux()
    mux.handle("look", executor="process")(process_app.look)
    app = Qsync(valkey.url, prefix=prefix, mux=mux, processes=1, lifespan=process_app.lifespan)
    async with app, app.async_client() as client, app.server():
        value = await (await client.enqueue(Task("look", retention=60))).result(60)
        assert value["state"].startswith("State(pid=")
    pid = value["state"].partition("=")[2].partition(",")[0]
    assert names(tmp_path) == {str(os.getpid()), pid}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (
            True,
            r"QsyncError: current\(\).state: a handler process cannot import the lifespan",
        ),
        (False, r"OSError: no database here"),
    ],
)
async def test_error_gives_the_reason_why_a_process_cannot_create_its_state(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, *, local: bool, message: str
) -> None:
    monkeypatch.setenv("PARENT_OF_TEST", str(os.getpid()))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        yield 7

    mux = Mux()
    mux.handle("look", executor="process")(process_app.look)
    given = lifespan if local else process_app.broken_lifespan
    app = Qsync(valkey.url, prefix=prefix, mux=mux, processes=1, lifespan=given)
    async with app, app.async_client() as client, app.server():
        handle = await client.enqueue(Task("look", retention=60))
        state = (await handle.result(60))["state"]
    assert re.match(message, state), state


async def test_stopped_run_ends_with_its_process(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    mux = Mux()
    mux.handle("linger", executor="process")(process_app.linger)
    app = Qsync(valkey.url, prefix=prefix, mux=mux, processes=1)
    async with app, app.async_client() as client, app.server():
        task = Task("linger", str(tmp_path / "go").encode(), timeout=0.5, retry=0, retention=60)
        handle = await client.enqueue(task)
        with pytest.raises(TaskFailed, match="timed out"):
            await handle.result(60)


def test_current_without_a_server_raises_an_error() -> None:
    alone = ChildServer(None, lambda report: None, lambda path: None)
    with pytest.raises(QsyncError, match=r"current\(\).client: no server runs this process"):
        alone.client(None)
    with pytest.raises(QsyncError, match=r"current\(\).state: no server runs this process"):
        alone.state()


def test_error_gives_the_reason_why_an_address_cannot_be_sent_to_a_process() -> None:
    address = Address("node", clock=lambda: 7)
    server = ChildServer(
        ChildSetup.of(address, "x", {}, None), lambda report: None, lambda path: None
    )
    with pytest.raises(QsyncError, match="store cannot be sent to a handler process"):
        server.client(None)
    assert server.state() is None
