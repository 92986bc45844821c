"""Users with exactly the published rights can do everything that their role requires."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import qsync
from qsync import (
    AsyncHandle,
    ConfigError,
    Mux,
    Qsync,
    ResultTimeout,
    Retry,
    Task,
    TaskCancelled,
    TaskFailed,
    TaskInfo,
)
from qsync.broker import acl, operator_ops, ops, redis_clients, views
from qsync.broker.acl import ROLES, Role
from qsync.broker.aio import AsyncBroker
from qsync.broker.script import load
from qsync.cli.main import app
from qsync.diagnostics.audit import Auditor
from qsync.diagnostics.doctor import trials
from qsync.keys import GlobalKeys, QueueKeys
from qsync.result_listener import LINGER
from qsync.state import TaskState
from tests.scripts.test_scripts import VIEWS, calls
from tests.support.queue_driver import BINARIES
from tests.support.stores import HOST, Binary, Cluster, Store, wait_until_async

PREFIX = "mine"
DOCS = Path(__file__).parents[2] / "docs" / "security.md"


class Guarded:
    """A store with a user for each role."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.old = is_old(store)
        for role in ROLES:
            rules = acl.rules(role, PREFIX, old=self.old)
            store.command("ACL", "SETUSER", role, "reset", "on", ">secret", *rules)

    def url(self, role: Role) -> str:
        return self.store.url.replace("//", f"//{role}:secret@")

    def refused(self) -> set[str]:
        """Return the commands that the store has denied since the last call."""
        entries = self.store.command("ACL", "LOG")
        self.store.command("ACL", "LOG", "RESET")
        return {_text(entry, "object") for entry in entries}

    def used(self) -> set[str]:
        """Return the commands that were run since the last call."""
        with self.store.client() as client:
            stats = client.info("commandstats")
        self.store.command("CONFIG", "RESETSTAT")
        return {name.removeprefix("cmdstat_") for name in stats}


def _text(entry: Any, field: str) -> str:
    pairs = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
    value = {str(k, "utf-8") if isinstance(k, bytes) else k: v for k, v in pairs.items()}[field]
    return value.decode() if isinstance(value, bytes) else str(value)


def is_old(store: Store) -> bool:
    """Return whether the store is a Redis before 7.2."""
    info = store.command("INFO", "server")
    version = tuple(map(int, info["redis_version"].split(".")[:2]))
    return "valkey_version" not in info and version < (7, 2)


@pytest.fixture(params=BINARIES)
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    binary: Binary = request.param
    with Store(binary) as store:
        yield Guarded(store)


def handlers(done: list[str]) -> Mux:
    mux = Mux()

    @mux.handle("echo")
    async def echo(task: TaskInfo) -> bytes:
        qsync.current().progress(1, 2)
        return task.payload

    @mux.handle("again")
    async def again(task: TaskInfo) -> None:
        if task.attempt == 1:
            raise Retry(delay=0.01)

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("bad")

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        await asyncio.sleep(60)

    @mux.handle("parent")
    async def parent(task: TaskInfo) -> None:
        await qsync.current().client.enqueue(Task("child"))

    @mux.handle("child")
    async def child(task: TaskInfo) -> None:
        done.append(task.type)

    return mux


async def life(client_url: str, server_url: str) -> None:
    """Use every operation of a client and a server, logged in as these users."""
    tasks = Qsync(server_url, prefix=PREFIX)

    @tasks.periodic(every=0.2, name="tick")
    async def tick() -> None: ...

    tasks.limit("one", concurrency=1)
    done: list[str] = []
    options: dict[str, Any] = {"lease": 1.0, "sweep": 0.1, "shutdown_timeout": 1.0}
    async with Qsync(client_url, prefix=PREFIX).async_client() as client:
        waiting = await client.enqueue(Task("echo", delay=1000, unique=True))
        assert await waiting.cancel()
        [many, twin] = await client.enqueue_many([
            Task("echo", b"x", unique=0.05, retention=60, fairness_key="k"),
            Task("echo", b"x", unique=0.05, retention=60),
        ])  # fmt: skip
        assert (many.created, twin.id) == (True, many.id)
        async with tasks.server(handlers(done), **options):
            assert await many.result(10) == b"x"
            assert await client.find(many.id) == many
            assert (await client.enqueue(Task("again", retention=60, delay=0.01))).created
            limited = [Task("echo", b"l", retention=60, limits=["one"]) for _ in range(3)]
            for handle in await client.enqueue_many(limited):
                assert await handle.result(10) == b"l"
            failing = await client.enqueue(Task("bad", retry=0, retention=60))
            with pytest.raises(TaskFailed, match="bad"):
                await failing.result(10)
            running = await client.enqueue(Task("long", retention=60))
            await active(running)
            assert await running.cancel()
            # This wait for a task in another queue lasts longer than the calls for the first queue.
            other = await client.enqueue(Task("echo", queue="other", delay=1000, retention=60))
            longer = asyncio.create_task(other.result(LINGER + 2))
            with pytest.raises(TaskCancelled):
                await running.result(10)
            await client.enqueue(Task("plain", queue="another"))  # a queue without flow control
            await client.enqueue(Task("parent"))
            await wait_until_async(lambda: done == ["child"])
            crashed = await client.enqueue(Task("long"))
            await active(crashed)
            await abandon_nobody(server_url)
        with pytest.raises(ResultTimeout):
            await longer
        assert (await crashed.info()).state == "pending", "it was handed back"
        await client.enqueue(Task("echo", delay=1000))
    await tasks.aclose()


async def active(handle: AsyncHandle[Any]) -> None:
    async def check() -> bool:
        return (await handle.info()).state == "active"

    await wait_until_async(check)


async def abandon_nobody(url: str) -> None:
    """Abandon a server, as the parent of a dead server does."""
    broker = AsyncBroker(redis_clients.parse(url), connections=1)
    try:
        keys = QueueKeys(PREFIX, "default")
        await broker.run(views.list_tasks(keys, TaskState.ACTIVE, count=10))
        await broker.run(ops.abandon(keys, "nobody"))
    finally:
        await broker.aclose()


@pytest.mark.faults(47)
def test_client_and_server_roles_suffice_for_all_operations(guarded: Guarded) -> None:
    guarded.refused()
    asyncio.run(life(guarded.url("client"), guarded.url("server")))
    refused = guarded.refused()
    assert refused <= {"info", "client|setinfo"}, "only optional commands were refused"
    assert "info" in refused
    if not guarded.old:
        assert refused == {"info"}


def test_client_and_server_roles_contain_no_unused_right(guarded: Guarded) -> None:
    """The test runs every command that a role allows, except those that only rare branches need."""
    guarded.used()
    asyncio.run(life(guarded.url("client"), guarded.url("server")))
    unused = set(acl.commands("server", old=guarded.old)) - guarded.used()
    assert unused <= {
        "wait", "waitaof",  # durability=
        "ping",  # Qsync.ping
        "hgetall",  # result() without a live server
        "hkeys", "zremrangebyscore", "unlink", "hscan", "lindex", "lpop",
    }  # fmt: skip


@pytest.mark.faults(47)
def test_client_role_suffices_for_a_blocking_client(guarded: Guarded) -> None:
    guarded.refused()
    with Qsync(guarded.url("client"), prefix=PREFIX) as made, made.client() as client:
        handle = client.enqueue(Task("t", retention=60))
        assert handle.info().state == "pending"
        assert made.ping() > 0
        with pytest.raises(qsync.ResultTimeout):
            handle.result(0.05)
        assert handle.cancel()
    assert guarded.refused() <= ({"client|setinfo"} if guarded.old else set())


@pytest.mark.faults(47)
def test_client_role_suffices_for_confirmed_writes(guarded: Guarded) -> None:
    if guarded.old:
        pytest.skip("needs WAITAOF")
    guarded.store.command("CONFIG", "SET", "appendonly", "yes")
    with Qsync(guarded.url("client"), prefix=PREFIX).client() as client:
        assert client.enqueue(Task("t"), durability="fsync").confirmed is True


@pytest.mark.faults(47)
async def test_reader_role_reads_and_admin_role_repairs(guarded: Guarded) -> None:
    keys = QueueKeys(PREFIX, "default")

    async with Qsync(guarded.url("client"), prefix=PREFIX).async_client() as client:
        await client.enqueue_many([Task("t", id=id) for id in "abc"])
    guarded.store.command("ZREM", keys.key("pending"), "a")
    guarded.refused()
    reader = AsyncBroker(redis_clients.parse(guarded.url("reader")))
    admin = AsyncBroker(redis_clients.parse(guarded.url("admin")))
    try:
        report = await Auditor(reader, prefix=PREFIX).audit()
        assert [damage.id for damage in report.damages] == ["a"]
        assert report.unknown == []
        assert (await reader.run(views.counts(keys))).states["pending"] == 2
        assert await reader.run(views.get_tasks(keys, ["b"]))
        assert guarded.refused() <= {"client|setinfo"}
        with pytest.raises(ConfigError):
            await Auditor(reader, prefix=PREFIX).repair(report.damages)
        guarded.refused()
        assert await Auditor(admin, prefix=PREFIX).repair(report.damages) == {"no state": 1}
        assert await admin.run(operator_ops.run(keys, "a", "dead")) == ("ok", "")
        assert await admin.run(operator_ops.delete(keys, ["a"], "pending")) == 1
        assert await admin.run(operator_ops.pause(keys, b"me"))
        assert await admin.run(operator_ops.resume(keys))
        assert guarded.refused() <= {"client|setinfo"}
    finally:
        await reader.aclose()
        await admin.aclose()


def test_reader_role_cannot_change_anything(guarded: Guarded) -> None:
    """A reader may read everything and change nothing."""
    key = QueueKeys(PREFIX, "default").key("meta")
    guarded.store.command("HSET", key, "f", 1)
    with guarded.store.client(username="reader", password="secret") as reader:
        for role in ROLES:
            for name, *rest in trials(role, GlobalKeys(PREFIX), old=guarded.old):
                if name not in acl.commands("reader"):
                    assert denied(reader, name, *rest), name
        for command in ("HSET", "HDEL", "ZADD", "UNLINK"):
            script = f"return redis.call('{command}', KEYS[1], 'f', '1')"
            assert denied(reader, "EVAL", script, 1, key), command


def test_reader_role_cannot_send_orders_to_servers(guarded: Guarded) -> None:
    inbox = GlobalKeys(PREFIX).inbox("s")
    script = "return redis.call('LLEN', KEYS[1])"
    for role in ROLES:
        with guarded.store.client(username=role, password="secret") as client:
            assert denied(client, "EVAL", script, 1, inbox) is (role == "reader"), role


def test_docs_list_the_powers_of_each_role() -> None:
    """The docs list everything that each role allows a user to do."""
    text = " ".join(DOCS.read_text("utf-8").split())
    assert "none of them dangerous" not in text
    for words in ("endless script", "every payload", "stop servers", "version of qsync"):
        assert words in text, words


def denied(client: Any, *command: str | bytes | int) -> bool:
    """Return whether the store refuses the command because the user lacks the right to run it."""
    try:
        client.execute_command(*command)
    except Exception as error:
        words = "[Nn]o permissions|ACL failure|user executing the script can't"
        return re.search(words, str(error)) is not None
    return False


FORBIDDEN: list[tuple[str | int, ...]] = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("RANDOMKEY",), ("DBSIZE",), ("SWAPDB", 0, 1),
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "REWRITE"),
    ("DEBUG", "SLEEP", 0), ("MODULE", "LIST"), ("SHUTDOWN", "NOSAVE"), ("SAVE",), ("BGSAVE",),
    ("BGREWRITEAOF",), ("REPLICAOF", "NO", "ONE"), ("FAILOVER",), ("MONITOR",), ("PSYNC", "?", -1),
    ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("ACL", "GETUSER", "server"), ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", 1), ("SLOWLOG", "GET"),
    ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("FUNCTION", "FLUSH"), ("FUNCTION", "LIST"),
    ("CLUSTER", "RESET"), ("MIGRATE", HOST, 1, "k", 0, 1), ("OBJECT", "ENCODING", "{mine:q}:meta"),
    ("DEL", "{mine:q}:meta"), ("DUMP", "{mine:q}:meta"), ("RENAME", "{mine:q}:a", "{mine:q}:b"),
    ("HGET", "other", "f"), ("HSET", "other", "f", 1), ("HSET", "{other:q}:meta", "f", 1),
    ("HSET", "{minor:q}:meta", "f", 1), ("ZADD", "mine", 1, "m"), ("SADD", "other:queues", "q"),
    ("EVAL", "return redis.call('HGET', KEYS[1], 'f')", 1, "other"),
    ("EVAL", "return redis.call('HGET', 'other', 'f')", 1, "{mine:q}:meta"),
    ("EVAL", "return redis.call('FLUSHALL')", 1, "{mine:q}:meta"),
    ("EVAL", "return redis.call('SPUBLISH', 'other', 'm')", 1, "{mine:q}:meta"),
    ("HSET", "mine:sessions", "f", 1), ("SADD", "mine:sessions", "m"), ("RPUSH", "mine:list", "m"),
    ("EVAL", "return redis.call('HSET', KEYS[1], 'f', 1)", 1, "mine:sessions"),
    ("PUBLISH", "other", "m"), ("SPUBLISH", "other", "m"), ("SSUBSCRIBE", "other"),
    ("SUBSCRIBE", "other"), ("PSUBSCRIBE", "*"), ("SSUBSCRIBE", "{other:q}:done"),
]  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_forbidden_commands_are_refused_to_every_role(guarded: Guarded, role: Role) -> None:
    with guarded.store.client(username=role, password="secret") as client:
        allowed = [command for command in FORBIDDEN if not denied(client, *command)]
    assert allowed == []
    assert guarded.store.command("PING"), "and it still runs"


def test_acl_line_in_the_docs_matches_the_code() -> None:
    text = " ".join(DOCS.read_text("utf-8").replace("\\\n", " ").split())
    for role in ROLES:
        line = " ".join(acl.rules(role, "qsync"))
        assert f"ACL SETUSER qsync-{role} on >PASSWORD {line}" in text, role
    assert " ".join(f"+{command}" for command in acl.CLUSTER) in text


def test_acl_command_prints_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSYNC_PREFIX", "shop")
    runner = CliRunner()
    told = runner.invoke(app, ["acl", "server", "--cluster", "--redis-7.0", "--user", "joe"])
    line = " ".join(acl.rules("server", "shop", old=True, cluster=True))
    assert (told.exit_code, told.stdout) == (0, f"ACL SETUSER joe on >PASSWORD {line}\n")
    assert "waitaof" not in line
    told = runner.invoke(app, ["acl", "reader", "--prefix", "mine"])
    assert told.stdout.startswith("ACL SETUSER qsync-reader on >PASSWORD resetkeys ~{mine:*}:* ")
    wrong = runner.invoke(app, ["acl", "reader", "--prefix", "* allkeys"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "prefix: '* allkeys' is not" in wrong.stderr


def test_each_script_belongs_to_some_role() -> None:
    ours = {*acl.scripts_of("server"), *acl.scripts_of("reader")}
    assert set(acl.scripts()) - ours == {
        "acknowledge_dead",
        "delete", "delete_queue", "edit", "forget_schedule", "open_limit", "pause",
        "pause_schedule",
        "pause_type", "purge", "record_event", "recount_bytes", "repair", "run",
        "set_latency_target", "set_weight", "unregister",
    }  # fmt: skip
    assert set(acl.scripts_of("admin")) == set(acl.scripts()) == set(calls())
    reads = VIEWS
    assert set(acl.scripts_of("reader")) == reads
    assert all("no-writes" in load(name).text for name in reads)


@pytest.mark.faults(47)
def test_roles_suffice_in_a_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        for role in ROLES:
            rules = acl.rules(role, PREFIX, cluster=True)
            node.command("ACL", "SETUSER", role, "reset", "on", ">secret", *rules)
        node.command("ACL", "LOG", "RESET")
        node.command("CONFIG", "RESETSTAT")

    def url(role: Role) -> str:
        return cluster.url.replace("//", f"//{role}:secret@")

    async def main() -> None:
        await life(url("client"), url("server"))
        reader = AsyncBroker(redis_clients.parse(url("reader")))
        try:
            report = await Auditor(reader, prefix=PREFIX).audit()
        finally:
            await reader.aclose()
        assert (report.damages, report.unknown) == ([], [])

    asyncio.run(main())
    with Qsync(url("client"), prefix=PREFIX).client() as client:
        assert client.enqueue(Task("t")).info().state == "pending"
    refused = {
        _text(entry, "object") for node in cluster.nodes for entry in node.command("ACL", "LOG")
    }
    assert refused <= {"info"}
    used = {name for node in cluster.nodes for name in node.command("INFO", "commandstats")}
    rare = {"asking"}  # sent only while a slot moves
    assert {f"cmdstat_{command}" for command in {*acl.CLUSTER} - rare} <= used
