"""What the store has to allow: the commands of each role, read from the scripts that it runs."""

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
    "enqueue",
    "register",
    "mark",
    "show",
    "cancel",
    "send",
    "queues",
    "servers",
    "record",
)
SERVER: Final = (
    *CLIENT, "permissions", "look", "listen", "fetch", "complete", "retry", "kill", "hand_back",
    "cancelled", "renew", "start", "progress", "abandon", "page", "tick", "begin_ticks", "publish",
    "announce", "describe",
)  # fmt: skip

PLAIN: Final[dict[Role, tuple[str, ...]]] = {
    "client": ("ssubscribe", "sunsubscribe", "wait", "waitaof"),
    "server": ("ssubscribe", "sunsubscribe", "wait", "waitaof", "blpop"),
    "reader": ("scan", "sscan", "pttl"),
    "admin": ("ssubscribe", "sunsubscribe", "wait", "waitaof", "scan", "sscan", "pttl"),
}
"""What is sent beside scripts. Redis before 7.2 does not know WAITAOF."""

EVERYBODY: Final = ("eval", "evalsha", "ping")
CLUSTER: Final = ("cluster|slots", "asking")

SHARED: Final = {
    "queues": "queues", "servers": "servers", "server": "server:*", "inbox": "inbox:*",
}  # fmt: skip
"""Keys outside of queues, as scripts name them -> what follows the prefix."""

CHANNELS: Final = frozenset({"spublish", "ssubscribe", "sunsubscribe"})
"""Commands on the channels of ended tasks: without them results are only noticed later."""

ROLES: Final[tuple[Role, ...]] = ("client", "server", "reader", "admin")

_COMMAND: Final = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?")


@cache
def scripts() -> tuple[str, ...]:
    """The names of all scripts."""
    found = (entry.name for entry in (files("qsync.broker") / "lua").iterdir())
    return tuple(sorted(name.removesuffix(".lua") for name in found if name.endswith(".lua")))


def scripts_of(role: Role) -> tuple[str, ...]:
    """The scripts that somebody in this role runs."""
    if role == "reader":
        return tuple(name for name in scripts() if load(name).text.startswith(_READS))
    return {"client": CLIENT, "server": SERVER}.get(role, scripts())


_READS: Final = "#!lua flags=no-writes"


def commands(role: Role, *, old: bool = False) -> tuple[str, ...]:
    """The commands that a role needs, sorted, in lower case; `old`: of a Redis before 7.2."""
    needed = {*EVERYBODY, *PLAIN[role]}
    for name in scripts_of(role):
        needed |= {_command(*found) for found in _COMMAND.findall(load(name).text)}
    return tuple(sorted(needed - ({"waitaof"} if old else set())))


def shortfall(refused: Iterable[str], prefix: str) -> str:
    """What a user may not do, and which rule of ACL SETUSER allows it."""
    commands = sorted(set(refused) - CHANNELS)
    channels = sorted(set(refused) & CHANNELS)
    missing = []
    if commands:
        missing.append(f"{', '.join(commands)} on the queues' keys")
    if channels:
        rule = f"&{{{prefix}:*}}:{DONE_CHANNEL}"
        missing.append(f"{', '.join(channels)} on their channels, which takes {rule}")
    return f"may not run {'; nor '.join(missing)}"


def _command(name: str, part: str) -> str:
    """As ACL rules name it, which of a command with parts allow one: `memory|usage`."""
    return f"{name}|{part}".lower() if part else name.lower()


def _shared_keys(role: Role, prefix: str) -> tuple[str, ...]:
    """Rules for the keys outside of queues: those of the scripts, and no others with the prefix.

    An audit also reads what other keys there are.
    """
    used = {key for name in scripts_of(role) for key in load(name).keys}
    used |= {"inbox"} if role == "server" else set()  # which it reads without a script
    found = [f"~{prefix}:{pattern}" for key, pattern in SHARED.items() if key in used]
    return (*found, f"%R~{prefix}:*") if role in ("reader", "admin") else tuple(found)


def checkable(role: Role) -> tuple[str, ...]:
    """The commands of a role whose rights the script `permissions` can look up.

    It is run by EVAL itself; the others of what is left out serve durability alone.
    """
    return tuple(sorted(set(commands(role)) - {*EVERYBODY, "wait", "waitaof"}))


def rules(role: Role, prefix: str, *, old: bool = False, cluster: bool = False) -> tuple[str, ...]:
    """The rules of ACL SETUSER for a role, without the password.

    CLIENT SETINFO, by which redis-py names itself, need not be allowed: a refusal is passed over.
    But the store would note each one in its ACL LOG.
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
