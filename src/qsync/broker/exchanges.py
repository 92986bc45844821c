"""The exchanges of calls, durability waits and probes, as generators without I/O.

A generator yields the commands of an exchange on one connection, and is sent their replies, errors
included.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Sequence
from typing import Any

import redis.exceptions as failures

from qsync.broker.address import Address
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.error_mapping import Fault, classify
from qsync.errors import ConfigError

log = logging.getLogger("qsync.broker")

Command = tuple[Any, ...]
Exchanges = Generator[list[Command], list[Any], Any]


def evalsha(call: Call[Any]) -> Command:
    """Return the command that runs a script by its digest."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def eval_(call: Call[Any]) -> Command:
    """Return the command that runs a script by its text, for a store that does not know it yet."""
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.args)


def making(call: Call[Any], *, asking: bool) -> Exchanges:
    """Make one call; return its reply.

    `asking`: another node redirected the call here with ASK, since it is moving the keys to this
    node. Calls with a wait are not sent with ASKING.
    """
    if call.wait is not None:
        [reply] = yield from waiting([call], call.wait)
        return reply
    reply = None
    for make in (evalsha, eval_):
        *_, reply = yield [("ASKING",), make(call)] if asking else [make(call)]
        if not isinstance(reply, failures.NoScriptError):
            break
    return reply


def waiting(calls: Sequence[Call[Any]], wait: Wait) -> Exchanges:
    """Make calls on one connection, with one wait for all; return one reply per call.

    Calls whose script the store does not know are repeated in a second exchange, as EVAL. It may
    reach another primary, so each exchange has its own wait. The mark is sent as EVAL, which never
    fails with NOSCRIPT.
    """
    replies: list[Any] = [None] * len(calls)
    open_ = list(range(len(calls)))
    for make in (evalsha, eval_):
        commands = [make(calls[at]) for at in open_]
        *answers, marked, waited = yield [*commands, eval_(wait.mark), _command(wait)]
        sure = not isinstance(marked, BaseException) and _confirmed(waited)
        for at, answer in zip(open_, answers, strict=True):
            plain = calls[at].wait is None or isinstance(answer, BaseException)
            replies[at] = answer if plain else (answer, sure)
        open_ = [at for at in open_ if isinstance(replies[at], failures.NoScriptError)]
        if not open_:
            break
    return replies


def probing(durability: Durability, address: Address) -> Exchanges:
    """Find out whether the store can confirm this durability; return False if unknown.

    Raises ConfigError if it cannot. Writes nothing.
    """
    return _probing_fsync(address) if durability == "fsync" else _probing_replica(address)


def _probing_fsync(address: Address) -> Exchanges:
    [reply] = yield [("WAITAOF", 1, 0, 1)]
    if isinstance(reply, BaseException):
        text = str(reply)
        if "unknown command" in text.lower():
            raise _unable("fsync", address, "does not know WAITAOF: that takes Redis 7.2 or Valkey")
        if "appendonly is disabled" in text:
            raise _unable("fsync", address, "keeps no append-only file: set appendonly to yes")
        if classify(reply) is Fault.DENIED:
            raise _unable("fsync", address, f"refuses WAITAOF: {text}")
        return False
    [reply] = yield [("CONFIG", "GET", "appendfsync")]
    if isinstance(reply, list) and reply[1:] == [b"no"]:
        what = "never syncs its append-only file: set appendfsync to everysec or always"
        raise _unable("fsync", address, what)
    return True


def _probing_replica(address: Address) -> Exchanges:
    [reply] = yield [("WAIT", 0, 1)]
    if isinstance(reply, BaseException):
        if classify(reply) is Fault.DENIED:
            raise _unable("replica", address, f"refuses WAIT: {reply}")
        return False
    [reply] = yield [("INFO", "replication")]
    if isinstance(reply, bytes):
        replicas = re.search(rb"^connected_slaves:(\d+)", reply, re.MULTILINE)
        if replicas and int(replicas[1]) == 0:
            raise _unable("replica", address, "has no replica")
    return True


def _unable(durability: Durability, address: Address, what: str) -> ConfigError:
    return ConfigError(f"durability: {durability!r}: the store at {address} {what}")


def _command(wait: Wait) -> Command:
    if wait.durability == "fsync":
        return ("WAITAOF", 1, 0, wait.timeout_ms)
    return ("WAIT", 1, wait.timeout_ms)


def _confirmed(reply: Any) -> bool:
    if isinstance(reply, failures.ResponseError):
        log.warning("the store does not wait for what it was given: %s", reply)
    if isinstance(reply, BaseException):
        return False
    return bool((reply[0] if isinstance(reply, list) else reply) >= 1)
