"""Packs the request that clients send most: the enqueue of one task without options.

The request is the same command that a call from `ops` sends for such a task. Encoding it here takes
a third of the time that the general functions need.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from qsync.broker.call import Call
from qsync.broker.exchanges import evalsha
from qsync.broker.script import load
from qsync.keys import QueueKeys, names_beside
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask

CREATED_REPLY: Final = b"$7\r\ncreated\r\n"
"""Reply with which the store confirms that it has created the task, as sent over the connection."""


def pack_enqueue(keys: QueueKeys, task: NewTask, sender: str, number: int) -> bytes:
    """Return the encoded request that stores a task without options."""
    id, message, digits = task.id.encode(), task.message, b"%d" % number
    return b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        _head(keys.base, sender), len(digits), digits, len(id), id, len(message), message,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _head(base: str, sender: str) -> bytes:
    """Return the part of the request that precedes the number of the call."""
    from qsync.broker.protocol import pack_begin  # imports redis-py

    script = load("enqueue_one")
    call = Call(script, names_beside(f"{base}:", script.keys), ("", ENVELOPE_HEAD, sender), bool)
    return pack_begin(evalsha(call), 3)
