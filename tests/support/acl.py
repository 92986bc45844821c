"""Runs tests as a store user that has the rights of one role and no others.

With QSYNC_TEST_ACL=1, the URL of the fixture `store` names such a user. The test file decides the
role of the user. The setup and the checks of a test run with all rights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from qsync.broker import acl
from qsync.broker.acl import Role
from tests.support.stores import Store

LIMITED: Final = os.environ.get("QSYNC_TEST_ACL") == "1"

ROLES: Final[dict[str, Role]] = {
    "test_client": "client",
    "test_handle": "client",
    "test_server": "server",
    "test_periodic": "server",
    "test_inspector": "admin",
    "test_inspector_explain": "admin",
    "test_inspector_live": "admin",
    "test_views": "reader",
    "test_counts": "reader",
}
"""Role whose rights are enough for the code under test, by test file. Files that are not listed
run with all rights."""

OPTIONAL: Final = {"info", "client|setinfo", "config|get"}
"""Commands that the store may deny without any effect on the code under test."""

LOOKING: Final = ("keys", "type", "lrange", "smembers", "hgetall", "zrange")
"""Commands that the dump of a store needs."""

_CREDENTIALS: Final = re.compile(r"//[^@/]*@")


class AsUser:
    """A store whose URL names a user with the rights of a role on one prefix."""

    def __init__(self, store: Store, role: Role, prefix: str) -> None:
        self._store = store
        self.user = f"as-{role}"
        old = rights_are_old(store)
        rules = [*acl.rules(role, prefix, old=old)]
        if role == "admin":  # tests of this role also run servers
            rules += [f"+{command}" for command in acl.commands("server", old=old)]
        store.command("ACL", "SETUSER", self.user, "reset", "on", ">secret", *rules)
        store.command("ACL", "LOG", "RESET")

    @property
    def url(self) -> str:
        return self._store.url.replace("//", f"//{self.user}:secret@")

    def refused(self) -> set[str]:
        """Return the commands that were denied to the user."""
        entries = [_fields(entry) for entry in self._store.command("ACL", "LOG")]
        return {entry["object"] for entry in entries if entry["username"] == self.user}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@contextmanager
def as_user(store: Store, module: str, prefix: str) -> Iterator[Any]:
    """Yield the store for a test in this file; afterwards, check that no required command was
    refused."""
    role = ROLES.get(module.rpartition(".")[2])
    if not LIMITED or role is None:
        yield store
        return
    limited = AsUser(store, role, prefix)
    yield limited
    if store.running:
        refused = limited.refused()
        store.command("ACL", "DELUSER", limited.user)
        assert refused <= OPTIONAL, f"the role {role} was refused {refused - OPTIONAL}"


def user_of_rigs(store: Store, prefix: str) -> str:
    """Return the credentials of a user that may also dump the store, for tests of single calls."""
    made = AsUser(store, "admin", prefix)
    store.command("ACL", "SETUSER", made.user, *(f"+{command}" for command in LOOKING))
    return f"{made.user}:secret@"


def unlimited(url: str) -> str:
    """Return a URL of the same store for a user with all rights."""
    return _CREDENTIALS.sub("//", url) if "//as-" in url else url


def rights_are_old(store: Store) -> bool:
    """Return whether the store is a Redis before 7.2, which has fewer commands."""
    info = store.command("INFO", "server")
    version = tuple(map(int, info["redis_version"].split(".")[:2]))
    return "valkey_version" not in info and version < (7, 2)


def _fields(entry: Any) -> dict[str, str]:
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {_text(key): _text(value) for key, value in pairs}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
