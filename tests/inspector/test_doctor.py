"""The doctor reports the right findings for each state of a store, for real stores, and for stores
that deny access."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qsync.broker import acl, redis_clients, store_info
from qsync.cli.main import app
from qsync.diagnostics.audit import MEANINGS
from qsync.diagnostics.doctor import (
    Doctor,
    Finding,
    clock,
    cluster,
    memory,
    parse_info,
    permissions_of,
    persistence,
    policy,
    replication,
    round_trip,
    version,
)
from qsync.server import store_check
from tests.broker.test_acl import is_old
from tests.support.queue_driver import BINARIES, shared_store
from tests.support.stores import HOST, Binary, Cluster, Store, free_port, wait_until

NAMES = [
    "round trip", "version", "eviction", "memory", "persistence", "replication", "clock", "rights",
    "scripts", "full queues",
]  # fmt: skip
GIB = str(1024**3)


def examine(url: str, **options: Any) -> list[Finding]:
    return asyncio.run(Doctor(redis_clients.parse(url), prefix="test", **options).examine())


def levels(found: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in found}


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        (round_trip([0.001, 0.001, 9.0]), "ok", "1.00 ms"),
        (round_trip([0.03]), "warning", "closer to the store"),
        (version({"redis_version": "7.0.15"}), "ok", "Redis 7.0.15"),
        (version({"redis_version": "6.2.1"}), "problem", "upgrade to 7.0"),
        (version({"redis_version": "7.2.4", "valkey_version": "9.1.0"}), "ok", "Valkey 9.1.0"),
        (version({"valkey_version": "7.1.0"}), "problem", "upgrade to 7.2"),
        (version({}), "unknown", "does not report"),
        (version(None), "unknown", "INFO"),
        (policy(None, None), "unknown", "denies CONFIG GET and INFO"),
        (policy(None, "noeviction"), "ok", "noeviction"),
        (policy({"maxmemory_policy": "allkeys-lru"}, None), "problem", "to noeviction"),
        (policy(None, "volatile-lru"), "ok", "only keys with a time to live"),
        (policy(None, "allkeys-random"), "problem", "to noeviction"),
        (memory(None, None), "unknown", "INFO"),
        (memory({"used_memory": "1024"}, "0"), "warning", "1.0 KiB used without a limit"),
        (memory({"used_memory": "1024", "maxmemory": GIB}, None), "ok", "1.0 KiB of 1.0 GiB"),
        (memory({"used_memory": "80"}, "100"), "warning", "80 B of 100 B used (80%): raise"),
        (memory({"used_memory": "95"}, "100"), "problem", "95%"),
        (persistence(None, None, None), "unknown", "INFO"),
        (persistence({"aof_enabled": "1"}, "everysec", ""), "ok", "every second"),
        (persistence({"aof_enabled": "1"}, "always", ""), "ok", "on every write"),
        (persistence({"aof_enabled": "1"}, None, None), "ok", "as configured"),
        (persistence({"aof_enabled": "1"}, "no", ""), "warning", "appendfsync to everysec"),
        (
            persistence({"aof_enabled": "1", "aof_last_write_status": "err"}, "always", ""),
            "problem",
            "check the disk",
        ),
        (persistence({"aof_enabled": "0"}, "no", "3600 1"), "warning", "snapshots only"),
        (persistence({"aof_enabled": "0"}, None, None), "warning", "perhaps snapshots"),
        (persistence({"rdb_last_bgsave_status": "err"}, None, "60 1"), "problem", "snapshots fail"),
        (persistence({"aof_enabled": "0"}, "no", ""), "problem", "appendonly to yes"),
        (replication(None), "unknown", "INFO"),
        (replication({"role": "slave"}), "problem", "URL of the primary"),
        (replication({"role": "master"}), "warning", "no replica"),
        (
            replication({
                "role": "master", "master_repl_offset": "3000",
                "slave0": "ip=::1,port=1,state=online,offset=2000,lag=0",
                "slave1": "ip=::1,port=2,state=online,offset=952,lag=0",
            }),
            "ok",
            "2 in sync, at most 2.0 KiB behind",
        ),
        (
            replication({"role": "master", "slave0": "ip=::1,port=1,state=wait_bgsave,offset=0"}),
            "warning",
            "1 of 1 replicas are not in sync",
        ),
        (clock(0.5), "ok", "0.500 s ahead of"),
        (clock(-2.0), "warning", "2.000 s behind the store's clock: process_at"),
        (clock(61.0), "problem", "use NTP"),
        (cluster(None), "unknown", "CLUSTER INFO"),
        (
            cluster({"cluster_state": "ok", "cluster_slots_ok": "16384", "cluster_size": "3"}),
            "ok",
            "16384 of 16384 slots served by 3 nodes",
        ),
        (
            cluster({"cluster_state": "fail", "cluster_slots_ok": "16384"}),
            "problem",
            "state fail",
        ),
        (
            cluster({"cluster_state": "ok", "cluster_slots_ok": "9", "cluster_size": "1"}),
            "problem",
            "bring the nodes back",
        ),
        (
            permissions_of("joe", {"client": [], "server": ["blpop"]}, None, "qsync"),
            "ok",
            "has the permissions of client; not of server (lacks blpop)",
        ),
        (
            permissions_of("joe", {"client": [], "server": []}, "server", "qsync"),
            "ok",
            "has the permissions of client, server",
        ),
        (
            permissions_of("joe", {"client": [], "server": ["blpop"]}, "server", "qsync"),
            "problem",
            "'joe' may not run blpop on the queues' keys: give it the permissions of a server",
        ),
        (
            permissions_of("joe", {"client": ["a"], "server": ["a", "b"]}, None, "qsync"),
            "problem",
            "the permissions of a client",
        ),
    ],
)  # fmt: skip
def test_findings_describe_each_setting(finding: Finding, level: str, said: str) -> None:
    assert (finding.level, said in finding.text) == (level, True), finding


def test_store_info_is_parsed() -> None:
    text = b"# Server\r\nredis_version:7.0\r\n\r\nslave0:ip=::1,port=1\r\nodd\xff:x\r\n"
    assert parse_info(text) == {
        "redis_version": "7.0", "slave0": "ip=::1,port=1", "odd\ufffd": "x"
    }  # fmt: skip


def test_oldest_supported_version_is_that_of_the_server() -> None:
    assert store_check.MIN_VERSION == store_info.MIN_VERSION


@pytest.mark.parametrize("binary", BINARIES)
def test_doctor_examines_a_real_store(binary: Binary) -> None:
    store = shared_store(binary)
    store.flush()
    found = examine(store.url)
    assert [finding.name for finding in found] == NAMES
    expected = dict.fromkeys(NAMES, "ok")
    expected |= {"memory": "warning", "persistence": "problem", "replication": "warning"}
    assert levels(found) == expected


def test_store_settings_are_reported(own_store: Store) -> None:
    assert levels(examine(own_store.url))["persistence"] == "ok"
    own_store.command("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lfu")
    found = levels(examine(own_store.url))
    assert (found["memory"], found["eviction"]) == ("ok", "problem")
    with Store("valkey") as replica:
        replica.command("REPLICAOF", HOST, own_store.port)
        wait_until(lambda: levels(examine(own_store.url))["replication"] == "ok")
        assert levels(examine(replica.url))["replication"] == "problem"


@pytest.mark.faults(27, 47)
@pytest.mark.parametrize("binary", BINARIES)
def test_forbidden_settings_are_unknown_and_the_others_reported(binary: Binary) -> None:
    store = shared_store(binary)
    hidden = ("-info", "-config", "-acl", "-script", "-time", "-client", "-command")
    store.command("ACL", "SETUSER", "shy", "on", ">x", "~*", "&*", "+@all", *hidden)
    found = levels(examine(store.url.replace("//", "//shy:x@")))
    # The check of rights reports a problem because most scripts need TIME.
    known = {"round trip": "ok", "rights": "problem", "full queues": "ok"}
    assert found == dict.fromkeys(NAMES, "unknown") | known
    store.command("ACL", "SETUSER", "mute", "on", ">x", "~*", "&*", "+ping")
    found = levels(examine(store.url.replace("//", "//mute:x@")))
    assert found == dict.fromkeys(NAMES, "unknown") | {"round trip": "ok", "rights": "problem"}


@pytest.mark.parametrize("binary", BINARIES)
@pytest.mark.parametrize("role", acl.ROLES)
def test_each_right_that_is_missing_is_named(binary: Binary, role: acl.Role) -> None:
    """The user has the rights of the role except for one command, or for the keys of another
    program."""
    store = shared_store(binary)
    old = is_old(store)
    asks = ("+acl|whoami", "+acl|dryrun", "+command|info")
    rules = ("reset", "on", ">x", *acl.rules(role, "test", old=old), *asks)
    url = store.url.replace("//", "//limited:x@")

    def found(*more: str) -> Finding:
        store.command("ACL", "SETUSER", "limited", *rules, *more)
        return next(one for one in examine(url, role=role) if one.name == "rights")

    assert found().level == "ok"
    # The server role covers nearly all commands, so other roles are tested only with commands that
    # it lacks.
    commands = set(acl.commands(role, old=old)) - {"ping"}
    if role != "server":
        commands -= {*acl.commands("server", old=old)} - {"eval"}
    for command in sorted(commands):
        finding = found(f"-{command}")
        assert finding.level == "problem", command
        assert f"may not run {command} on" in finding.text
    assert found("resetkeys", "~other:*").level == "problem"


def test_unreachable_store_is_reported() -> None:
    [finding] = examine(f"redis://{HOST}:{free_port()}")
    assert (finding.name, finding.level) == ("connection", "problem")
    assert "is not available" in finding.text


def test_a_cluster_is_examined_node_by_node(cluster: Cluster) -> None:
    first, *rest, last = examine(cluster.url)
    assert (last.name, last.node) == ("full queues", "")
    assert (first.name, first.level) == ("cluster", "ok")
    nodes = {f"{HOST}:{node.port}" for node in cluster.nodes}
    assert {finding.node for finding in rest} == nodes
    assert [finding.name for finding in rest] == NAMES[:-1] * 3


def test_docs_describe_each_finding_and_each_repair() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
    assert {"cluster", *NAMES} <= rows
    curable = {kind for kind, (_, cure) in MEANINGS.items() if cure}
    assert curable | {", ".join(kind for kind in MEANINGS if kind not in curable)} <= rows


# The command


@pytest.mark.parametrize("binary", BINARIES)
def test_doctor_command_prints_the_findings(binary: Binary, own_store: Store) -> None:
    runner = CliRunner()
    bad = runner.invoke(app, ["doctor", "--url", shared_store(binary).url, "--prefix", "test"])
    assert bad.exit_code == 1
    assert "PROBLEM persistence: none: a restart of the store loses all tasks" in bad.stdout
    good = runner.invoke(app, ["doctor", "--url", own_store.url, "--json"])
    assert good.exit_code == 0
    told = json.loads(good.stdout)
    assert [one["name"] for one in told] == NAMES
    assert {tuple(one) for one in told} == {("name", "level", "text", "node")}
    told = runner.invoke(app, ["doctor", "--url", own_store.url, "--role", "server"])
    assert (
        told.exit_code,
        "rights: user 'default' has the permissions of client" in told.stdout,
    ) == (0, True)


def test_password_is_never_shown(own_store: Store) -> None:
    url = f"redis://joe:hunter2@{HOST}:{own_store.port}"
    result = CliRunner().invoke(app, ["doctor", "--url", url])
    assert result.exit_code == 2
    assert "hunter2" not in result.output
    assert "refuses" in result.output
