"""The log of a server during an outage of its store."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from qsync import Mux, Qsync, Task, TaskInfo, current
from qsync.errors import ConfigError, StoreUnavailable
from qsync.schedule import Every, Periodic
from qsync.server import health, outage_log
from qsync.server.clock import boot_s
from qsync.server.outage_log import Outage
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from tests.support.stores import Store, wait_until, wait_until_async


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("qsync") and record.levelno >= level
    ]


def blocked_clients(store: Store) -> int:
    with store.client() as client:
        return int(client.info("clients")["blocked_clients"])


@pytest.mark.faults(23)
async def test_outage_logs_one_line_when_it_begins_and_one_when_it_ends(
    own_store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All parts of the server fail at the same time: fetches, waits, leases, settlements, progress,
    ticks, the inbox and the server record."""
    caplog.set_level(logging.DEBUG, "qsync")
    mux = Mux()
    begun = asyncio.Event()
    end = asyncio.Event()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        current().progress(1, 2)
        begun.set()
        await end.wait()

    @mux.handle("tick")
    async def tick(task: TaskInfo) -> None:
        pass

    def ticks() -> Task:
        return Task("tick")

    app = Qsync(own_store.url, prefix=prefix)
    address = app.client()._address
    periodic = [PeriodicTask(Periodic("every-second", Every(1)), ticks)]
    async with (
        app.async_client() as client,
        Server(
            address, prefix=prefix, mux=mux, periodic=periodic, lease=2,
            queues=["default", "other"],
        ),
    ):  # fmt: skip
        await client.enqueue(Task("t"))
        await begun.wait()
        caplog.clear()
        own_store.kill()
        await wait_until_async(lambda: len(lines(caplog, logging.DEBUG)) > 3, 20)
        end.set()
        parts = ("fetch from", "inbox", "renew", "settle", "periodic")
        await wait_until_async(
            lambda: all(part in "".join(lines(caplog, logging.DEBUG)) for part in parts), 30
        )
        assert len(lines(caplog)) == 1, lines(caplog)
        await asyncio.to_thread(own_store.restart)
        await wait_until_async(lambda: len(lines(caplog)) > 1, 30)
    first, last = lines(caplog)
    assert re.match("cannot .*is not available", first)
    assert re.fullmatch(r"the store is back after \d.*s", last)


@pytest.mark.faults(23)
async def test_idle_servers_notice_the_end_of_an_outage_before_their_next_sweep(
    own_store: Store, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is ready while it waits for tasks. While the server cannot fetch, probes report the
    error from the store."""
    monkeypatch.setattr(health, "STORE_AWAY_S", 0.05)
    address = Qsync(own_store.url, prefix=prefix).client()._address

    def idle_server(*queues: str) -> Server:
        return Server(address, prefix=prefix, mux=Mux(), queues=list(queues), sweep=60)

    servers = [idle_server("default"), idle_server("default", "other")]
    async with servers[0], servers[1]:
        await wait_until_async(lambda: blocked_clients(own_store) >= 4, 10)  # inboxes, too
        fetches = [queue.in_flight for queue in servers[0]._health._queues if queue.in_flight]
        await wait_until_async(lambda: boot_s() - fetches[0].since > 0.1)
        assert [server.condition().away for server in servers] == [{}, {}]
        own_store.kill()
        for server in servers:
            await wait_until_async(lambda server=server: server.condition().away, 10)
            assert "is not available" in server.condition().unavailable
        assert set(servers[1].condition().away) == {"default", "other"}
        assert len(lines(caplog)) == 2
        await asyncio.to_thread(own_store.restart)
        await wait_until_async(lambda: len(lines(caplog)) == 4, 20)
        assert [server.condition().unavailable for server in servers] == ["", ""]
        assert [server.condition().away for server in servers] == [{}, {}]
    assert all(line.startswith("the store is back after") for line in lines(caplog)[2:])


def test_long_outage_logs_one_line_per_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = StoreUnavailable("the store at x is not available: refused")
    log = Outage()
    log.failed("fetch", error)
    log.failed("renew", error)
    assert lines(caplog) == ["cannot fetch, retrying: the store at x is not available: refused"]
    monkeypatch.setattr(outage_log, "REMIND_S", 0.05)

    def reminded() -> bool:
        log.failed("fetch", error)
        return len(lines(caplog)) > 1

    wait_until(reminded)
    assert re.fullmatch("the store has been unavailable for 0.1 s: .* refused", lines(caplog)[1])
    log.worked("fetch")
    log.note("store progress", error)
    assert len(lines(caplog)) == 2, "one part still fails"
    log.worked("renew")
    assert len(lines(caplog)) == 3
    log.note("store progress", error)
    assert lines(caplog)[3] == f"cannot store progress: {error}"


def test_refusal_during_an_outage_has_a_separate_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Outage()
    log.failed("fetch", StoreUnavailable("away"))
    for _ in range(3):
        log.failed("settle", ConfigError("no right"))
    log.worked("fetch")
    log.worked("settle")
    log.worked("settle")
    assert len(lines(caplog)) == 3
    assert lines(caplog)[:2] == [
        "cannot fetch, retrying: away",
        "cannot settle, retrying: no right",
    ]


def test_refusal_that_is_not_retried_logs_one_line_in_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the store rejects the password, heartbeats fail three times per second."""
    log, refused = Outage(), ConfigError("wrong password")
    log.failed("read the inbox", refused)
    for _ in range(3):
        log.note("renew what was fetched", refused)
        log.note("store the progress", refused)
    assert lines(caplog) == [
        "cannot read the inbox, retrying: wrong password",
        "cannot renew what was fetched: wrong password",
        "cannot store the progress: wrong password",
    ]
    log.worked("read the inbox")
    log.note("renew what was fetched", refused)
    assert lines(caplog)[-1] == "cannot renew what was fetched: wrong password"
    assert len(lines(caplog)) == 5


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (42.04, "42.0 s"), (60, "1 min"), (130, "2 min 10 s")]
)
def test_duration_of_an_outage_is_shown(seconds: float, shown: str) -> None:
    assert outage_log._length_text(seconds) == shown
