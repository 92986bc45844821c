"""Checks whether a store is suitable for qsync; each finding says what to do.

Each check sends one query to the store. If the store denies the permission, the finding is
`unknown` and the other checks continue. Functions without I/O interpret the replies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from qsync.broker import acl, bounds_ops, views
from qsync.broker.acl import Role
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.script import load
from qsync.broker.store_info import MIN_VERSION, evicts_tasks
from qsync.diagnostics.limit_check import examine_limits
from qsync.errors import QsyncError, StoreUnavailable
from qsync.formatting import size
from qsync.keys import GlobalKeys, QueueKeys
from qsync.task import DEFAULT
from qsync.value_text import shorten

Level = Literal["ok", "warning", "problem", "unknown"]

SLOTS: Final = 16384

SLOW_MS: Final = 20.0
SKEW_WARNING_S: Final = 1.0
SKEW_PROBLEM_S: Final = 60.0
MEMORY_WARNING: Final = 0.8
MEMORY_PROBLEM: Final = 0.95
"""Thresholds beyond which a finding is a warning or a problem; memory is a share of maxmemory."""

QUEUES_READ: Final = 1000
"""Maximum number of queues whose bounds are checked."""

NO_INFO: Final = "the store denies INFO"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the doctor: the subject, its state, and what to do."""

    name: str
    level: Level
    text: str
    node: str = ""
    """The node that the finding is about, if the store has several nodes."""


class Doctor:
    """Examines a store, logged in as the user that the store's URL names."""

    def __init__(self, address: Address, *, prefix: str, role: Role | None = None) -> None:
        """`role` is the role that this user should have; None means any role."""
        self._address = address
        self._role = role
        self._keys = GlobalKeys(prefix)

    async def examine(self) -> list[Finding]:
        """Return the findings in a fixed order, or just one if the store cannot be reached."""
        broker = AsyncBroker(self._address, connections=1)
        try:
            await broker.ping()
            nodes = await broker.primaries()
            findings = []
            if self._address.kind == "cluster":
                findings.append(await _cluster(broker))
            for node in nodes:
                name = f"{node.nodes[0][0]}:{node.nodes[0][1]}" if len(nodes) > 1 else ""
                findings += await self._examine_node(node, name)
            findings += limit_findings(await examine_limits(broker, self._keys))
            findings.append(await self._bounds(broker))
        except StoreUnavailable as error:
            return [
                Finding(
                    "connection",
                    "problem",
                    f"{error}: check the URL, and whether the store is running",
                )
            ]
        finally:
            await broker.aclose()
        return findings

    async def _examine_node(self, address: Address, name: str) -> list[Finding]:
        broker = AsyncBroker(address, connections=1)
        try:
            text = await broker.ask("INFO")
            info = None if text is None else parse_info(text)
            findings = [
                round_trip([await broker.ping() for _ in range(5)]),
                version(info),
                policy(info, await _setting(broker, "maxmemory-policy")),
                memory(info, await _setting(broker, "maxmemory")),
                persistence(
                    info, await _setting(broker, "appendfsync"), await _setting(broker, "save")
                ),
                replication(info),
                await _clock(broker),
                await self._permissions(broker),
                await _scripts(broker),
            ]
        finally:
            await broker.aclose()
        return [replace(finding, node=name) for finding in findings]

    async def _bounds(self, broker: AsyncBroker) -> Finding:
        """Look for queues that are full or nearly full, among the first QUEUES_READ."""
        try:
            names = (await broker.run(views.queues(self._keys, count=QUEUES_READ))).names
            keys = [QueueKeys(self._keys.prefix, name) for name in names]
            answers = await broker.run_many(
                [bounds_ops.queue_bounds(queue_keys) for queue_keys in keys]
            )
        except QsyncError as error:
            return Finding("full queues", "unknown", str(error))
        notes = {
            name: bounds.note
            for name, bounds in zip(names, answers, strict=True)
            if not isinstance(bounds, QsyncError) and bounds.note
        }
        return full_queues(notes)

    async def _permissions(self, broker: AsyncBroker) -> Finding:
        """Test the commands of each role with ACL DRYRUN, which does not run them."""
        who = await broker.ask("ACL", "WHOAMI")
        if who is None:
            return await self._allowed_in_scripts(broker)
        old = await _is_old(broker)
        lacking: dict[Role, list[str]] = {}
        for role in acl.ROLES:
            lacking[role] = []
            for command in trials(role, self._keys, old=old):
                words = str(command[0]).split("|")
                answer = await broker.ask("ACL", "DRYRUN", who, *words, *command[1:])
                if answer is None:
                    return await self._allowed_in_scripts(broker)
                if answer != b"OK":
                    lacking[role].append(str(command[0]))
        return permissions_of(who.decode(errors="replace"), lacking, self._role, self._keys.prefix)

    async def _allowed_in_scripts(self, broker: AsyncBroker) -> Finding:
        """Test the permissions from within a script, for a user who may not run ACL DRYRUN."""
        keys = QueueKeys(self._keys.prefix, DEFAULT)
        calls = [views.permissions(keys, acl.checkable(role)) for role in acl.ROLES]
        lacking: dict[Role, Sequence[str]] = {}
        replies = await broker.run_many(calls)
        for role, reply in zip(acl.ROLES, replies, strict=True):
            if isinstance(reply, QsyncError):
                text = f"{reply}: give the user the permissions of a role; see docs/security.md"
                return Finding("rights", "problem", text)
            lacking[role] = reply
        return permissions_of("", lacking, self._role, keys.prefix)


def limit_findings(problems: Sequence[str] | None) -> list[Finding]:
    """Return the findings about limits; empty if no queue uses limits."""
    if problems is None:
        return []
    if not problems:
        return [Finding("limits", "ok", "each has a rule, and no task has waited over an hour")]
    return [Finding("limits", "warning", problem) for problem in problems]


def permissions_of(
    user: str, lacking: Mapping[Role, Sequence[str]], expected: Role | None, prefix: str
) -> Finding:
    """Check whether a user has all permissions of the expected role, or of any role."""
    who = f"user {shorten(user)}" if user else "the user"
    complete = [role for role, commands in lacking.items() if not commands]
    if expected in complete or (expected is None and complete):
        text = f"{who} has the permissions of {', '.join(complete)}"
        others = [
            f"{role} (lacks {', '.join(commands)})"
            for role, commands in lacking.items()
            if commands
        ]
        return Finding("rights", "ok", f"{text}; not of {', '.join(others)}" if others else text)
    role = min(lacking, key=lambda role: len(lacking[role])) if expected is None else expected
    text = (
        f"{who} {acl.shortfall(lacking[role], prefix)}: "
        f"give it the permissions of a {role}; see docs/security.md"
    )
    return Finding("rights", "problem", text)


def trials(
    role: Role, global_keys: GlobalKeys, *, old: bool
) -> list[tuple[str | bytes | int, ...]]:
    """Return a harmless call of each command that a role needs, on keys of the role; the calls are
    never run."""
    keys = QueueKeys(global_keys.prefix, DEFAULT)
    key, number = keys.key("meta"), "1"
    special: dict[str, tuple[str | int, ...]] = {
        "eval": ("return 1", 1, key), "evalsha": ("0" * 40, 1, key), "ping": (), "time": (),
        "wait": (1, 1), "waitaof": (1, 0, 1), "scan": (0,),
        "ssubscribe": (keys.done,), "sunsubscribe": (keys.done,),
        "spublish": (keys.done, "id"), "blpop": (key, 1),
        "hset": (key, "f", "v"), "hsetnx": (key, "f", "v"), "hincrby": (key, "f", 1),
        "zadd": (key, 1, "m"),
        "zrangebyscore": (key, 0, 1), "zremrangebyscore": (key, 0, 1), "zrange": (key, 0, 1),
        "zcount": (key, 0, 1), "xadd": (key, "*", "f", "v"), "xrevrange": (key, "+", "-"),
        "ltrim": (key, 0, 0), "hscan": (key, 0), "zscan": (key, 0), "sscan": (key, 0),
        "type": (key,), "zlexcount": (key, "-", "+"), "zrangebylex": (key, "-", "+"),
    }  # fmt: skip
    one_key = {
        "exists", "hgetall", "hkeys", "hlen", "llen", "memory|usage", "pttl", "scard", "unlink",
        "xlen", "zcard",
    }  # fmt: skip
    return [
        (name, *special.get(name, (key,) if name in one_key else (key, number)))
        for name in acl.commands(role, old=old)
    ]


def parse_info(text: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def full_queues(notes: Mapping[str, str]) -> Finding:
    """Return the finding about the queues that are full or nearly full."""
    if not notes:
        return Finding("full queues", "ok", "no bounded queue is full or nearly full")
    shown = "; ".join(f"{name} is {note}" for name, note in sorted(notes.items())[:10])
    more = f"; and {len(notes) - 10} more" if len(notes) > 10 else ""
    return Finding("full queues", "warning", f"{shown}{more}: start servers, or raise the bounds")


def round_trip(seconds: Sequence[float]) -> Finding:
    """Check how long a round trip to the store takes."""
    ms = statistics.median(seconds) * 1000
    if ms > SLOW_MS:
        text = f"{ms:.1f} ms for each call: run clients and servers closer to the store"
        return Finding("round trip", "warning", text)
    return Finding("round trip", "ok", f"{ms:.2f} ms")


def version(info: Mapping[str, str] | None) -> Finding:
    """Check whether the store is new enough."""
    if info is None:
        return Finding("version", "unknown", NO_INFO)
    product = "valkey" if "valkey_version" in info else "redis"
    text = info.get(f"{product}_version", "")
    numbers = tuple(int(part) for part in text.split(".") if part.isdigit())
    shown = f"{product.capitalize()} {text}"
    if not numbers:
        return Finding("version", "unknown", "the store does not report its version")
    if numbers < MIN_VERSION[product]:
        minimum = ".".join(map(str, MIN_VERSION[product]))
        return Finding("version", "problem", f"{shown}: upgrade to {minimum} or newer")
    return Finding("version", "ok", shown)


def policy(info: Mapping[str, str] | None, setting: str | None) -> Finding:
    """Check whether the store may evict tasks when its memory is full."""
    name = setting or (info or {}).get("maxmemory_policy")
    if name is None:
        return Finding("eviction", "unknown", "the store denies CONFIG GET and INFO")
    if name == "noeviction":
        return Finding("eviction", "ok", "noeviction: a full store refuses tasks and deletes none")
    if not evicts_tasks(name):
        text = f"{name}: a full store deletes only keys with a time to live; tasks have none"
        return Finding("eviction", "ok", text)
    text = f"{name}: a full store deletes tasks; set maxmemory-policy to noeviction"
    return Finding("eviction", "problem", text)


def memory(info: Mapping[str, str] | None, setting: str | None) -> Finding:
    """Check how close the store is to its memory limit."""
    if info is None:
        return Finding("memory", "unknown", NO_INFO)
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    if setting is not None and setting.isdigit():
        limit = int(setting)
    if not limit:
        text = (
            f"{size(used)} used without a limit: the operating system may kill the store when "
            "memory runs out; set maxmemory below the machine's memory"
        )
        return Finding("memory", "warning", text)
    text = f"{size(used)} of {size(limit)} used ({used / limit:.0%})"
    if used >= MEMORY_WARNING * limit:
        level: Level = "problem" if used >= MEMORY_PROBLEM * limit else "warning"
        return Finding(
            "memory", level, f"{text}: raise maxmemory, or add servers to drain the queues"
        )
    return Finding("memory", "ok", text)


def persistence(info: Mapping[str, str] | None, sync: str | None, save: str | None) -> Finding:
    """Check whether a restart of the store would lose data."""
    if info is None:
        return Finding("persistence", "unknown", NO_INFO)
    name = "persistence"
    if info.get("aof_enabled") == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            text = "the append-only file cannot be written: check the disk and the store's log"
            return Finding(name, "problem", text)
        if sync == "no":
            text = "the append-only file is never synced: set appendfsync to everysec"
            return Finding(name, "warning", text)
        return Finding(name, "ok", f"append-only file, synced {_SYNCS.get(sync, 'as configured')}")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = (
            "snapshots fail, and there is no append-only file: check the disk and the store's log"
        )
        return Finding(name, "problem", text)
    if save == "":
        text = "none: a restart of the store loses all tasks; set appendonly to yes"
        return Finding(name, "problem", text)
    method = "snapshots only" if save else "no append-only file, perhaps snapshots"
    text = f"{method}: a crash loses all changes since the last snapshot; set appendonly to yes"
    return Finding(name, "warning", text)


_SYNCS: Final[dict[str | None, str]] = {
    "always": "on every write",
    "everysec": "every second: a power failure loses at most the last two seconds of changes",
}


def replication(info: Mapping[str, str] | None) -> Finding:
    """Check whether another machine has a copy of the tasks."""
    if info is None:
        return Finding("replication", "unknown", NO_INFO)
    name = "replication"
    if info.get("role") != "master":
        text = (
            "this is a replica, which accepts no tasks: use the URL of the primary or of Sentinels"
        )
        return Finding(name, "problem", text)
    replicas = [value for field, value in info.items() if field[:5] == "slave" and "," in value]
    if not replicas:
        text = "no replica: tasks are lost if this machine is lost; add a replica"
        return Finding(name, "warning", text)
    offset = _number(info, "master_repl_offset")
    states = [dict(part.split("=", 1) for part in replica.split(",")) for replica in replicas]
    online = [state for state in states if state.get("state") == "online"]
    if len(online) < len(states):
        lagging = f"{len(states) - len(online)} of {len(states)} replicas"
        text = f"{lagging} are not in sync: check their logs"
        return Finding(name, "warning", text)
    behind = max(offset - _number(state, "offset") for state in online)
    return Finding(name, "ok", f"{len(online)} in sync, at most {size(max(0, behind))} behind")


def clock(skew: float) -> Finding:
    """Check the difference between this machine's clock and the store's."""
    shown = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} the store's clock"
    if abs(skew) < SKEW_WARNING_S:
        return Finding("clock", "ok", f"this machine's clock is {shown}")
    level: Level = "problem" if abs(skew) >= SKEW_PROBLEM_S else "warning"
    text = f"this machine's clock is {shown}: process_at and deadlines are off by as much; use NTP"
    return Finding("clock", level, text)


def cluster(fields: Mapping[str, str] | None) -> Finding:
    """Check whether all slots of a cluster are served."""
    if fields is None:
        return Finding("cluster", "unknown", "the store denies CLUSTER INFO")
    state, served = fields.get("cluster_state"), _number(fields, "cluster_slots_ok")
    text = f"state {state}, {served} of {SLOTS} slots served by {fields.get('cluster_size')} nodes"
    if state == "ok" and served == SLOTS:
        return Finding("cluster", "ok", text)
    if served < SLOTS:
        text += ": queues in the other slots are down; bring the nodes back or assign the slots"
    return Finding("cluster", "problem", text)


async def _cluster(broker: AsyncBroker) -> Finding:
    text = await broker.ask("CLUSTER", "INFO")
    return cluster(None if text is None else parse_info(text))


async def _clock(broker: AsyncBroker) -> Finding:
    before = time.time()
    reply = await broker.ask("TIME")
    after = time.time()
    if reply is None:
        return Finding("clock", "unknown", "the store denies TIME")
    return clock((before + after) / 2 - (int(reply[0]) + int(reply[1]) / 1e6))


async def _setting(broker: AsyncBroker, name: str) -> str | None:
    reply: Any = await broker.ask("CONFIG", "GET", name)
    return reply[1].decode(errors="replace") if reply else None


async def _scripts(broker: AsyncBroker) -> Finding:
    digests = [load(name).sha for name in acl.scripts()]
    reply = await broker.ask("SCRIPT", "EXISTS", *digests)
    if reply is None:
        return Finding("scripts", "unknown", "the store denies SCRIPT EXISTS")
    return Finding(
        "scripts",
        "ok",
        f"{sum(reply)} of {len(digests)} loaded; the others are loaded on first use",
    )


async def _is_old(broker: AsyncBroker) -> bool:
    """Return whether this is a Redis before 7.2; False if the store denies COMMAND INFO."""
    reply = await broker.ask("COMMAND", "INFO", "WAITAOF")
    return reply is not None and reply[0] is None


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdigit() else 0
