"""If the store user lacks the right to a channel or a command, no task is damaged, and one log line
names the missing right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import ConfigError, DuplicateTask, Mux, Qsync, Task, TaskInfo
from qsync.broker import op_values, operator_ops, ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.script import load
from qsync.diagnostics.doctor import Doctor
from qsync.keys import QueueKeys
from tests.chaos.proxy import Proxy
from tests.support.queue_driver import BINARIES, FAILURE
from tests.support.stores import HOST, Store

PREFIX = "mine"
KEYS = QueueKeys(PREFIX, "default")
STATES = ("scheduled", "pending", "active", "retry", "completed", "dead")
POLICY = op_values.FetchPolicy(
    lease_us=1_000_000, max_crashes=1, dead_limit=1000, dead_age_us=10**13
)


@pytest.fixture(params=BINARIES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store(request.param) as store:
        yield store


def url_of(store: Store, *rules: str) -> str:
    """Create a user with these rules; return a URL that logs in as this user."""
    store.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)
    return f"redis://app:pw@{HOST}:{store.port}"


def without_channels(store: Store) -> str:
    return url_of(store, "~*", "+@all")


def states(store: Store, id: str) -> list[str]:
    return [name for name in STATES if store.command("ZSCORE", KEYS.key(name), id) is not None]


def kept(store: Store, id: str) -> bool:
    return bool(store.command("HEXISTS", KEYS.key("tasks"), id))


@pytest.mark.faults(47, 84)
async def test_tasks_complete_without_channel_rights(store: Store) -> None:
    """Each script that publishes the end of a task still completes its transition."""

    broker = AsyncBroker(redis_clients.parse(without_channels(store)))
    client = Qsync(without_channels(store), prefix=PREFIX).async_client()
    await client.enqueue_many([Task("t", id=f"crash{n}") for n in range(3)])
    await broker.run(ops.fetch(KEYS, server="a", number=1, wanted=10, policy=POLICY))
    await broker.run(ops.abandon(KEYS, "a"))
    fetched = await broker.run(ops.fetch(KEYS, server="b", number=1, wanted=0, policy=POLICY))
    assert fetched.died == 3
    assert [states(store, f"crash{n}") for n in range(3)] == [["dead"]] * 3

    assert await (await client.enqueue(Task("t", id="c", delay=100))).cancel()
    assert (states(store, "c"), kept(store, "c")) == ([], False)
    assert await (await client.enqueue(Task("t", id="k", delay=100, retention=60))).cancel()
    assert (states(store, "k"), kept(store, "k")) == (["completed"], True)

    held = await client.enqueue(Task("t", id="u", delay=100, unique=True))
    with pytest.raises(DuplicateTask):
        await client.enqueue(Task("t", unique=True))
    assert await held.cancel()
    await client.enqueue(Task("t", id="free", unique=True))

    await client.enqueue_many([Task("t", id=id) for id in ("d", "p")])
    assert await broker.run(operator_ops.delete(KEYS, ["d"], "pending")) == 1
    assert (states(store, "d"), kept(store, "d")) == ([], False)
    assert (await broker.run(operator_ops.purge(KEYS, "pending"))).deleted == 2
    assert (states(store, "p"), kept(store, "p")) == ([], False)

    await client.enqueue(Task("t", id="x"))
    await broker.run(ops.fetch(KEYS, server="a", number=2, wanted=10, policy=POLICY))
    assert await broker.run(ops.kill(KEYS, [op_values.Killed("x", "a/2", True, FAILURE)])) == ["ok"]
    assert states(store, "x") == ["dead"]
    await client.aclose()
    await broker.aclose()


def one_task() -> Mux:
    mux = Mux()

    @mux.handle("t")
    async def handler(task: TaskInfo) -> int:
        return 1

    return mux


@pytest.mark.faults(47)
def test_server_logs_one_line_when_it_may_not_publish(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "qsync.server")
    app = Qsync(without_channels(store), prefix=PREFIX)

    async def main() -> None:
        async with app.async_client() as client, app.server(one_task()):
            handle = await client.enqueue(Task("t", retention=60))
            assert await handle.result(10) == 1

    asyncio.run(main())
    [line] = [one.getMessage() for one in caplog.records if "may not run" in one.getMessage()]
    assert "spublish, ssubscribe" in line
    assert "&{mine:*}:done" in line
    assert "qsync acl server --prefix mine" in line
    assert "pw" not in line


@pytest.mark.faults(47)
@pytest.mark.parametrize("command", ["hincrby", "blpop", "zadd"])
def test_server_does_not_start_without_a_command_that_it_needs(store: Store, command: str) -> None:
    url = url_of(store, "~*", "&*", "+@all", f"-{command}")

    async def main() -> None:
        async with Qsync(url, prefix=PREFIX).server(one_task()):
            pass

    with pytest.raises(ConfigError, match=f"may not run {command} on the queues' keys"):
        asyncio.run(main())


@pytest.mark.parametrize("more", [(), ("-acl",)])
def test_doctor_names_the_channels_that_a_user_lacks(store: Store, more: tuple[str, ...]) -> None:
    """The check works with and without the right to run ACL DRYRUN."""
    url = url_of(store, "~*", "+@all", *more)
    doctor = Doctor(redis_clients.parse(url), prefix=PREFIX, role="server")
    [found] = [one for one in asyncio.run(doctor.examine()) if one.name == "rights"]
    assert found.level == "problem"
    assert "spublish, ssubscribe on their channels, which requires &{mine:*}:done" in found.text


def test_doctor_reports_no_missing_right_of_a_full_user(store: Store) -> None:
    url: Any = url_of(store, "~*", "&*", "+@all", "-acl")
    doctor = Doctor(redis_clients.parse(url), prefix=PREFIX, role="server")
    [found] = [one for one in asyncio.run(doctor.examine()) if one.name == "rights"]
    assert (found.level, found.text) == (
        "ok",
        "the user has the permissions of client, server, reader, admin",
    )


async def test_server_starts_while_the_store_refuses_the_check_of_rights(
    valkey: Store, prefix: str
) -> None:
    """A full store refuses the check, so the server cannot tell whether it lacks a right."""
    with Proxy(valkey.port) as proxy, Qsync(proxy.url, prefix=prefix) as app:
        refusals = proxy.answer(
            "OOM command not allowed when used memory > 'maxmemory'.",
            only=load("permissions").sha.encode(),
        )
        async with app.server(Mux()):
            assert refusals.given == 1
