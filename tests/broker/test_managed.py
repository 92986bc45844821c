"""qsync works without the commands that managed stores forbid.

A proxy in front of a real store forbids each command in turn. The proxy replies either like a store
that lacks the command (e.g. ElastiCache), or like a store whose user may not run the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qsync import ConfigError, Mux, Qsync, Task, TaskInfo
from qsync.broker import redis_clients
from qsync.diagnostics.doctor import Doctor
from qsync.web import create_app
from tests.chaos.proxy import Proxy
from tests.conftest import Colour
from tests.support.cli import qsync
from tests.support.dashboard import visiting
from tests.support.stores import Store, wait_until_async

UNKNOWN = "ERR unknown command '{}', with args beginning with: "
NOPERM = "NOPERM this user has no permissions to run the '{}' command"

OPTIONAL = ("CONFIG", "INFO", "SSUBSCRIBE", "CLIENT")
"""Commands that qsync can do without."""

ALONE = [(UNKNOWN, (name,)) for name in OPTIONAL]
EACH = pytest.mark.parametrize(
    ("text", "names"),
    [*ALONE, (UNKNOWN, OPTIONAL), (NOPERM, OPTIONAL)],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value[:6].strip(),
)


@contextmanager
def forbidding(store: Store, text: str, *names: str) -> Iterator[str]:
    """Yield the URL of a proxy that forbids commands."""
    with Proxy(store.port) as proxy:
        proxy.forbid(text, *names)
        yield proxy.url


mux = Mux()


@mux.handle("double")
async def double(task: TaskInfo) -> int:
    return 2 * task.value(int)


@EACH
def test_clients_and_servers_work_without_forbidden_commands(
    text: str, names: tuple[str, ...], valkey: Store, prefix: str, colour: Colour
) -> None:
    with forbidding(valkey, text, *names) as url:
        client = colour.client(url, prefix)

        async def serve() -> int:
            async with Qsync(url, prefix=prefix, mux=mux).server():
                return await asyncio.wrap_future(colour.begin(wait))

        handle = colour.do(client.enqueue(Task("double", 21, retention=60)))

        def wait() -> object:
            return handle.result(timeout=10)

        assert asyncio.run(serve()) == 42


@EACH
def test_named_client_works_without_forbidden_commands(
    text: str, names: tuple[str, ...], valkey: Store, prefix: str, colour: Colour
) -> None:
    with forbidding(valkey, text, *names) as url:
        client = colour.client(f"{url}?client_name=shop", prefix)
        if "CLIENT" in names:
            with pytest.raises(ConfigError, match="client_name"):
                colour.do(client.enqueue(Task("double", 21)))
        else:
            colour.do(client.enqueue(Task("double", 21)))


@EACH
def test_doctor_reports_unreadable_settings(
    text: str, names: tuple[str, ...], valkey: Store, prefix: str
) -> None:
    with forbidding(valkey, text, *names) as url:
        address = redis_clients.parse(url)
        found = asyncio.run(Doctor(address, prefix=prefix).examine())
        levels = {one.name: one.level for one in found}
        ran = qsync("doctor", "--url", url, "--prefix", prefix)
    unknown = {name for name, level in levels.items() if level == "unknown"}
    if "INFO" in names:
        assert {"version", "memory", "persistence", "replication"} <= unknown
    else:
        assert unknown == set()
    assert "connection" not in levels
    assert ran.code in (0, 1), ran.out
    assert "Traceback" not in ran.out + ran.err


@EACH
def test_dashboard_and_commands_work_without_forbidden_commands(
    text: str, names: tuple[str, ...], valkey: Store, prefix: str
) -> None:
    with forbidding(valkey, text, *names) as url:

        async def visit() -> list[int]:
            app = Qsync(url, prefix=prefix)
            async with app, app.async_client() as client, app.inspector() as inspector:
                await client.enqueue(Task("double", 1, id="one"))
                site = create_app(inspector, auth="host", read_only=False)
                async with site.router.lifespan_context(site), visiting(site) as web:
                    paths = ("/", "/queues", "/tasks", "/servers", "/schedules", "/health")
                    return [(await web.get(path)).status_code for path in paths]

        assert asyncio.run(visit()) == [200] * 6
        ran = qsync("stats", "--url", url, "--prefix", prefix)
        assert ran.code == 0, ran.err


@pytest.mark.parametrize("text", [UNKNOWN, NOPERM], ids=["unknown", "noperm"])
def test_server_without_scripts_ends_with_one_line(text: str, valkey: Store, prefix: str) -> None:
    async def serve(url: str) -> None:
        async with asyncio.timeout(20):
            await Qsync(url, prefix=prefix, mux=mux).server().run()

    with (
        forbidding(valkey, text, "EVALSHA") as url,
        pytest.raises(ConfigError, match=r"^[^\n]*EVALSHA[^\n]*$"),
    ):
        asyncio.run(serve(url))


@pytest.mark.parametrize(
    "text",
    [UNKNOWN, NOPERM, "CROSSSLOT Keys in request don't hash to the same slot"],
    ids=["unknown", "noperm", "crossslot"],
)
def test_server_that_cannot_block_polls_its_queues(
    text: str, valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(url: str) -> None:
        app = Qsync(url, prefix=prefix, mux=mux, queues=["default", "mail"])
        async with app.async_client() as client, app.server():
            handle = await client.enqueue(Task("double", 21, queue="mail", retention=60))
            assert await handle.result(timeout=10) == 42
            await wait_until_async(lambda: warnings() == ["WARNING"])

    def warnings() -> list[str]:
        return [record.levelname for record in caplog.records if "inbox" in record.message]

    with forbidding(valkey, text, "BLPOP") as url:
        asyncio.run(serve(url))


@pytest.mark.parametrize("text", [UNKNOWN, NOPERM])
@pytest.mark.parametrize(("durability", "name"), [("replica", "WAIT"), ("fsync", "WAITAOF")])
def test_durability_that_the_store_cannot_confirm_is_refused(
    durability: str, name: str, text: str, valkey: Store, prefix: str, colour: Colour
) -> None:
    with forbidding(valkey, text, name) as url:
        client = colour.client(url, prefix)
        with pytest.raises(ConfigError, match=f"durability: '{durability}'.* {name}\\b"):
            colour.do(client.enqueue(Task("double", 1), durability=durability))
