"""`def` handlers run in threads, and these runs have no asyncio tasks of their own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from dataclasses import dataclass

import pytest

from qsync import Mux, Qsync, Task, TaskFailed, TaskInfo, current
from tests.support.server import bench, until
from tests.support.stores import Store

TENANT = contextvars.ContextVar("TENANT", default="none")
SEEN: list[str] = []


@dataclass
class Order:
    """An argument or a result whose constructor runs on the server, when it decodes a payload or
    checks an encoded result."""

    action: str

    def __post_init__(self) -> None:
        match self.action:
            case "stop":
                next(iter(()))
            case "exit":
                raise SystemExit(3)
            case "cancel":
                raise asyncio.CancelledError
            case "tenant":
                SEEN.append(TENANT.get())
                TENANT.set(current().task.id)


async def ends_of(app: Qsync, store: Store, prefix: str, name: str) -> dict[str, str]:
    """Run a task for each action, one after the other; return its result or error by action."""
    ends: dict[str, str] = {}
    async with bench(store.url, prefix) as b, app, app.server(concurrency=2):
        for action in ("stop", "exit", "cancel", "tenant", "plain"):
            task = Task(name, {"order": {"action": action}}, id=action, retry=0, retention=60)
            handle = await b.client.enqueue(task)
            try:
                ends[action] = str(await handle.result(5))
            except TaskFailed as error:
                ends[action] = str(error)
    return ends


@pytest.mark.parametrize("where", ["argument", "result"])
def test_code_of_argument_and_result_classes_affects_only_its_run(
    valkey: Store, prefix: str, where: str
) -> None:
    """If a constructor raises, only its task fails. Constructors may call `current()`, and context
    variables that they set stay in the run."""
    app = Qsync(valkey.url, prefix=prefix)
    SEEN.clear()

    @app.task(name="argument")
    def argument(order: Order) -> str:
        return TENANT.get()

    @app.task(name="result")
    def result(order: dict[str, str]) -> Order:
        made = Order("")
        made.action = order["action"]
        return made

    ends = asyncio.run(ends_of(app, valkey, prefix, where))
    assert "StopIteration" in ends["stop"]
    assert "SystemExit: 3" in ends["exit"]
    assert "CancelledError" in ends["cancel"]
    if where == "argument":
        assert (ends["tenant"], ends["plain"]) == ("tenant", "none")
    else:
        assert ends["plain"] == "{'action': 'plain'}"
    assert set(SEEN) == {"none"}


class Boom(Exception):
    """An error that supports weak references."""


async def test_error_of_a_failed_run_is_freed_without_the_garbage_collector(
    valkey: Store, prefix: str
) -> None:
    """When tasks fail, the objects that their tracebacks refer to are freed immediately."""
    mux, errors = Mux(), weakref.WeakSet[Boom]()

    @mux.handle("fails")
    def fails(task: TaskInfo) -> None:
        errors.add(boom := Boom())
        try:
            raise boom
        finally:
            del boom

    async with bench(valkey.url, prefix) as b, b.server(mux):
        gc.disable()
        try:
            handles = await b.client.enqueue_many([Task("fails", retry=0)] * 3)
            for handle in handles:
                await b.reaches(handle.id, "dead")
            await until(lambda: not errors)
        finally:
            gc.enable()
