"""ACL rules for each role, derived from the commands in the scripts that the role runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from qsync.broker.script import load
from qsync.keys import DONE_CHANNEL, WAKE_CHANNELS, check_name

Role = Literal["client", "server", "reader", "admin"]

CLIENT: Final = (
    "enqueue", "enqueue_one", "register", "wait_marker", "get_tasks", "cancel", "reschedule",
    "send_order", "queues", "servers", "server_info", "put_schedule", "delete_schedule",
    "stored_schedules", "stored_page", "announce_schedules", "schedule_queues",
)  # fmt: skip
SERVER: Final = (
    *CLIENT, "permissions", "check_for_work", "mark_idle", "fetch", "complete", "retry", "kill",
    "hand_back", "end_cancelled", "renew", "mark_started", "progress", "abandon", "list_tasks",
    "tick", "begin_ticks", "publish_schedules", "server_heartbeat", "set_server_info",
    "due_schedules", "tick_schedules", "put_limit_rules", "set_bounds", "note_runs",
    "report_types", "roll_types", "type_stats",
)  # fmt: skip

PLAIN: Final[dict[Role, tuple[str, ...]]] = {
    "client": ("ssubscribe", "sunsubscribe", "wait", "waitaof"),
    "server": ("ssubscribe", "sunsubscribe", "wait", "waitaof", "blpop"),
    "reader": ("scan", "sscan", "pttl"),
    "admin": ("ssubscribe", "sunsubscribe", "wait", "waitaof", "scan", "sscan", "pttl"),
}
"""Commands that are sent outside of scripts, by role. Redis before 7.2 does not have WAITAOF."""

EVERYBODY: Final = ("eval", "evalsha", "ping")
CLUSTER: Final = ("cluster|slots", "asking")

SHARED: Final = {
    "queues": "queues", "servers": "servers", "server": "server:*", "inbox": "inbox:*",
    "schedule_queues": "schedule_queues", "events": "events",
}  # fmt: skip
"""Patterns of the keys that belong to no queue, by the names that scripts use for them. The
patterns omit the prefix."""

RECORD: Final = frozenset({"xadd", "xdel", "xrevrange"})
"""Commands on the record of operators' actions, which only operators write."""

CHANNELS: Final = frozenset({"spublish", "ssubscribe", "sunsubscribe"})
"""Commands on the channels that announce ended tasks. Without these commands, clients must poll for
results."""

ROLES: Final[tuple[Role, ...]] = ("client", "server", "reader", "admin")

_COMMAND: Final = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?")


@cache
def scripts() -> tuple[str, ...]:
    """Return the sorted names of all scripts."""
    names = (entry.name for entry in (files("qsync.broker") / "lua").iterdir())
    return tuple(sorted(name.removesuffix(".lua") for name in names if name.endswith(".lua")))


def scripts_of(role: Role) -> tuple[str, ...]:
    """Return the names of the scripts that a role runs."""
    if role == "reader":
        return tuple(name for name in scripts() if load(name).text.startswith(_READS))
    return {"client": CLIENT, "server": SERVER}.get(role, scripts())


_READS: Final = "#!lua flags=no-writes"


def commands(role: Role, *, old: bool = False) -> tuple[str, ...]:
    """Return a role's commands, sorted and in lower case; `old` selects those for Redis before
    7.2."""
    needed = {*EVERYBODY, *PLAIN[role]}
    for name in scripts_of(role):
        text = load(name, flow=True).text
        needed |= {_command(*words) for words in _COMMAND.findall(text)}
    if role in ("client", "server"):
        needed -= RECORD
    return tuple(sorted(needed - ({"waitaof"} if old else set())))


def shortfall(refused: Iterable[str], prefix: str) -> str:
    """Return a message that names the refused commands, and the ACL SETUSER rule for channels that
    are missing."""
    commands = sorted(set(refused) - CHANNELS)
    channels = sorted(set(refused) & CHANNELS)
    missing = []
    if commands:
        missing.append(f"{', '.join(commands)} on the queues' keys")
    if channels:
        rule = f"&{{{prefix}:*}}:{DONE_CHANNEL}"
        missing.append(f"{', '.join(channels)} on their channels, which requires {rule}")
    return f"may not run {'; nor '.join(missing)}"


def _command(name: str, part: str) -> str:
    """Return a command's name in the form of ACL rules, e.g. `memory|usage` for a subcommand."""
    return f"{name}|{part}".lower() if part else name.lower()


def _shared_keys(role: Role, prefix: str) -> tuple[str, ...]:
    """Return the rules for the keys that belong to no queue and that the role's scripts use.

    Readers and admins may read all keys with the prefix, since an audit looks for unknown keys.
    """
    used = {key for name in scripts_of(role) for key in load(name).keys}
    used |= {"inbox"} if role == "server" else set()  # no script reads the inbox
    used -= {"events"} if role in ("client", "server") else set()
    patterns = [f"~{prefix}:{pattern}" for key, pattern in SHARED.items() if key in used]
    return (*patterns, f"%R~{prefix}:*") if role in ("reader", "admin") else tuple(patterns)


def checkable(role: Role) -> tuple[str, ...]:
    """Return the commands of a role that the script `permissions` checks.

    The script does not check EVAL, EVALSHA and PING. The result also omits WAIT and WAITAOF, since
    only durability waits need them.
    """
    return tuple(sorted(set(commands(role)) - {*EVERYBODY, "wait", "waitaof"}))


def rules(role: Role, prefix: str, *, old: bool = False, cluster: bool = False) -> tuple[str, ...]:
    """Return the ACL SETUSER rules for a role, without the password.

    redis-py sends CLIENT SETINFO and ignores a refusal. The rules allow the command because the
    store would otherwise record each refusal in its ACL LOG.
    """
    check_name("prefix", prefix)
    channels = (DONE_CHANNEL, WAKE_CHANNELS) if cluster and role != "reader" else (DONE_CHANNEL,)
    courtesy = () if old else ("client|setinfo",)
    allowed = [*commands(role, old=old), *courtesy, *(CLUSTER if cluster else ())]
    return (
        "resetkeys", f"~{{{prefix}:*}}:*", *_shared_keys(role, prefix),
        "resetchannels", *(f"&{{{prefix}:*}}:{channel}" for channel in channels),
        "-@all", *(f"+{command}" for command in allowed),
    )  # fmt: skip
