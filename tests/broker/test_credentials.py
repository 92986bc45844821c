"""Credential providers supply the credentials for each connection."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qsync import ConfigError, Mux, Qsync, StoreUnavailable, Task, TaskInfo
from tests.chaos.proxy import Proxy
from tests.conftest import Colour
from tests.support.stores import HOST, Cluster, Store

mux = Mux()


@mux.handle("double")
async def double(task: TaskInfo) -> int:
    return 2 * task.value(int)


class Tokens:
    """A provider that returns numbered tokens; the store accepts `token-1` and `token-2`."""

    def __init__(self, *, user: str, fails: int = 0) -> None:
        self.user = user
        self.number = 1
        self.asked = 0
        self.fails = fails

    def get_credentials(self) -> tuple[str, ...]:
        self.asked += 1
        if self.asked <= self.fails:
            raise OSError("no token now")
        return (self.user, f"token-{self.number}")


class AwaitedTokens(Tokens):
    """A provider that also has the method that async connections await."""

    awaited = 0

    async def get_credentials_async(self) -> tuple[str, ...]:
        await asyncio.sleep(0)
        self.awaited += 1
        return self.get_credentials()


@contextmanager
def user(store: Store | Cluster, name: str) -> Iterator[str]:
    """Create a user on the store, or on all nodes of a cluster, with two tokens as passwords."""
    nodes = store.nodes if isinstance(store, Cluster) else [store]
    for node in nodes:
        node.command("ACL", "SETUSER", name, "on", ">token-1", ">token-2", "~*", "&*", "+@all")
    try:
        yield name
    finally:
        for node in nodes:
            node.command("ACL", "DELUSER", name)


@contextmanager
def clients(app: Qsync, colour: Colour) -> Iterator[Any]:
    """Yield a client of the app, blocking or async."""
    client = app.async_client() if colour.name == "async" else app.client()
    try:
        yield client
    finally:
        colour.close_client(client)


@pytest.mark.parametrize("kind", ["store", "cluster"])
def test_each_connection_calls_the_provider(
    kind: str, request: pytest.FixtureRequest, prefix: str, colour: Colour
) -> None:
    place: Store | Cluster = request.getfixturevalue("valkey" if kind == "store" else kind)
    with user(place, f"user-{prefix}") as name:
        tokens = Tokens(user=name)
        app = Qsync(place.url, prefix=prefix, mux=mux, credential_provider=tokens)
        with clients(app, colour) as client:
            handle = colour.do(client.enqueue(Task("double", 21, retention=60)))
            first = tokens.asked
            assert first > 0
            # Make the store close the connections, as it does when a token expires.
            tokens.number = 2
            for node in place.nodes if isinstance(place, Cluster) else [place]:
                node.command("ACL", "SETUSER", name, "resetpass", ">token-2")
                node.command("CLIENT", "KILL", "USER", name)

            async def serve() -> int:
                async with app.server():
                    return await asyncio.wrap_future(colour.begin(lambda: handle.result(10)))

            assert asyncio.run(serve()) == 42
            assert tokens.asked > first


def test_async_provider_is_awaited(valkey: Store, prefix: str) -> None:
    with user(valkey, f"user-{prefix}") as name:
        tokens = AwaitedTokens(user=name)
        app = Qsync(valkey.url, prefix=prefix, credential_provider=tokens)
        assert asyncio.run(app.aping()) > 0
        assert tokens.awaited == 1
        assert app.ping() > 0
        assert (tokens.awaited, tokens.asked) == (1, 2)


def test_failing_provider_is_called_again(valkey: Store, prefix: str, colour: Colour) -> None:
    with user(valkey, f"user-{prefix}") as name:
        tokens = Tokens(user=name, fails=2)
        app = Qsync(valkey.url, prefix=prefix, credential_provider=tokens)
        with clients(app, colour) as client:
            assert colour.do(client.enqueue(Task("double", 1))).created
        assert tokens.asked > 2


def test_provider_that_keeps_failing_is_named(valkey: Store, prefix: str, colour: Colour) -> None:
    tokens = Tokens(user="nobody", fails=1_000_000)
    app = Qsync(valkey.url, prefix=prefix, patience=0.2, credential_provider=tokens)
    says = "credential_provider: OSError: no token now"
    with clients(app, colour) as client, pytest.raises(StoreUnavailable, match=says):
        colour.do(client.enqueue(Task("double", 1)))


@pytest.mark.parametrize("returned", [None, "s3cr3t", ("a", "b", "s3cr3t"), ("s3cr3t", 7)])
def test_invalid_credentials_are_refused_without_being_shown(
    returned: Any, valkey: Store, prefix: str, colour: Colour
) -> None:
    class Wrong:
        def get_credentials(self) -> Any:
            return returned

    app = Qsync(valkey.url, prefix=prefix, credential_provider=Wrong())
    says = f"get_credentials.. returned {type(returned).__name__}, not"
    with clients(app, colour) as client, pytest.raises(ConfigError, match=says) as raised:
        colour.do(client.enqueue(Task("double", 1)))
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "provider", "says"),
    [
        ("redis://h", object(), "credential_provider: object has no method get_credentials"),
        ("redis://u@h", Tokens(user="x"), "the store at redis://h:6379 has a username already"),
        ("redis://:p@h", Tokens(user="x"), "has a password already; pass only one"),
        ("embedded://", Tokens(user="x"), "an embedded:// store has no users; omit it"),
    ],
)
def test_provider_beside_credentials_in_the_url_is_refused(
    url: str, provider: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Qsync(url, credential_provider=provider)


SHOP = """
from qsync import Qsync

class Tokens:
    def get_credentials(self):
        return ("{user}", "token-1")

app = Qsync(prefix="{prefix}", credential_provider=Tokens())

@app.task(retention=60)
def double(number: int) -> int:
    return 2 * number
"""

CLIENT = """
from shop import app, double

with app:
    print(double.enqueue_sync(21).result(timeout=30))
"""


def test_worker_uses_the_provider_and_no_command_that_managed_stores_forbid(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(user=f"user-{prefix}", prefix=prefix))
    (tmp_path / "client.py").write_text(CLIENT)
    python = [sys.executable, "-W", "error"]
    with user(valkey, f"user-{prefix}"), Proxy(valkey.port) as proxy:
        proxy.forbid("ERR unknown command '{}'", "CONFIG", "INFO", "SSUBSCRIBE", "CLIENT")
        worker = subprocess.Popen(
            [*python, "-m", "qsync", "worker", "shop:app", "--url", proxy.url],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            done = subprocess.run(
                [*python, "client.py"], cwd=tmp_path, env={**os.environ, "QSYNC_URL": proxy.url},
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        finally:
            worker.terminate()
            said, _ = worker.communicate(timeout=30)
    assert done.stdout == "42\n", done.stderr + said
    assert worker.returncode == 0, said
    assert "ERROR" not in said
    assert HOST in said
