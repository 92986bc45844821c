"""The address of a store is resolved for each new connection, since the name may move to another
store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Qsync, Task, TaskInfo
from tests.support.server import until
from tests.support.stores import Store

NAME = "store.invalid"


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[Store], Store]]:
    """Yield a list with one store, and another store. NAME resolves to the store in the list, which
    tests may replace."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        moved = host in (NAME, NAME.encode())
        target = ("127.0.0.1", now[0].port) if moved else (host, port)
        return real(*target, *args, **options)

    with Store("valkey") as first, Store("valkey") as second:
        now = [first]
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        yield now, second


@pytest.mark.faults(40)
async def test_clients_and_servers_follow_a_name_that_moves(
    moving: tuple[list[Store], Store], prefix: str
) -> None:
    now, second = moving
    ran: list[str] = []
    app = Qsync(f"redis://{NAME}:6379", prefix=prefix)

    @app.task(name="note")
    async def note(task: TaskInfo) -> None:
        ran.append(task.id)

    async with app, app.async_client() as client, app.server():
        with app.client() as blocking:
            blocking.enqueue(Task("note", id="a"))
            await until(lambda: ran == ["a"])
            first, now[0] = now[0], second
            first.kill()
            await client.enqueue(Task("note", id="b"))
            await until(lambda: ran == ["a", "b"], timeout=5)
            blocking.enqueue(Task("note", id="c"))
            await until(lambda: ran == ["a", "b", "c"], timeout=5)
