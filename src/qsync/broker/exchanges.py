"""The exchanges of calls, durability waits and probes, as generators without I/O.

A generator yields the commands of one exchange on a connection, and receives their replies,
including errors. Both brokers run the same generators.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Sequence
from typing import Any, Final

from qsync.broker import redis_errors
from qsync.broker.address import Address
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.error_mapping import Fault, classify, is_unsupported
from qsync.broker.slot_map import Node, SlotMap
from qsync.errors import ConfigError
from qsync.keys import hash_tag

log: Final = logging.getLogger("qsync.broker")

Command = tuple[Any, ...]
Exchanges = Generator[list[Command], list[Any], Any]
ClusterSteps = Generator[str | tuple[Node, Exchanges], Any, Any]

REDIRECTIONS = 5
"""Maximum number of nodes to which one attempt of a call is sent."""


def evalsha(call: Call[Any]) -> Command:
    """Return the command that runs a script by its digest."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def eval_(call: Call[Any]) -> Command:
    """Return the command that runs a script by its text, for a store that has not loaded the script
    yet."""
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.args)


def send_calls(calls: Sequence[Call[Any]], flow_queues: set[str]) -> Exchanges:
    """Make calls in one exchange; return one reply per call.

    Calls to queues in `flow_queues` use the flow variant of their script. If the store refuses the
    plain variant of a call, this function sends the flow variant and adds the queue to
    `flow_queues`.
    """
    if flow_queues:
        calls = [_adapted(call, flow_queues) for call in calls]
    replies = yield from _send(calls)
    return (yield from _repeat_refused(calls, replies, flow_queues))


def _repeat_refused(
    calls: Sequence[Call[Any]], replies: list[Any], flow_queues: set[str]
) -> Exchanges:
    """Repeat calls whose plain variant was refused; return one reply per call."""
    refused = [index for index, reply in enumerate(replies) if _needs_flow(calls[index], reply)]
    if refused:
        flow_queues.update(hash_tag(calls[index].keys[0]) for index in refused)
        again = yield from _send([calls[index].in_flow() for index in refused])
        for index, reply in zip(refused, again, strict=True):
            replies[index] = reply
    return replies


def lone_command(calls: Sequence[Call[Any]], flow_queues: set[str]) -> Command | None:
    """Return the first command that `send_calls` would send for one call without a durability wait.

    Return None for other calls. If the store replies with an error, pass it to `after_lone`.
    """
    if len(calls) > 1 or flow_queues or calls[0].wait is not None:
        return None
    return evalsha(calls[0])


def after_lone(calls: Sequence[Call[Any]], replies: list[Any], flow_queues: set[str]) -> Exchanges:
    """Continue a call after this reply to its `lone_command`; return the final reply, in a list."""
    replies = yield from _repeat_unknown(calls, replies)
    return (yield from _repeat_refused(calls, replies, flow_queues))


def _adapted(call: Call[Any], flow_queues: set[str]) -> Call[Any]:
    is_flow = call.script.is_plain and hash_tag(call.keys[0]) in flow_queues
    return call.in_flow() if is_flow else call


def _needs_flow(call: Call[Any], reply: Any) -> bool:
    """Return whether the plain variant was refused because the queue has flow control."""
    return (
        isinstance(reply, redis_errors.ResponseError)
        and call.script.is_plain
        and classify(reply) is Fault.SCHEMA
    )


def _send(calls: Sequence[Call[Any]]) -> Exchanges:
    """Make calls in one exchange; return one reply per call.

    Calls whose script the store does not know are repeated in a second exchange, as EVAL.
    """
    if (wait := calls[-1].wait) is not None:
        return (yield from with_confirmation(calls, wait))
    replies = yield [evalsha(call) for call in calls]
    return (yield from _repeat_unknown(calls, replies))


def _repeat_unknown(calls: Sequence[Call[Any]], replies: list[Any]) -> Exchanges:
    """Repeat calls whose script the store does not know, as EVAL; return one reply per call."""
    missing = [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, Exception) and isinstance(reply, redis_errors.NoScriptError)
    ]
    if missing:
        again = yield [eval_(calls[index]) for index in missing]
        for index, reply in zip(missing, again, strict=True):
            replies[index] = reply
    return replies


def send_redirected(call: Call[Any], *, asking: bool) -> Exchanges:
    """Make one call on a cluster node; return its reply.

    With `asking`, another node redirected the call here with ASK, since it is moving the keys to
    this node. Calls with a durability wait are not sent with ASKING.
    """
    if call.wait is not None:
        [reply] = yield from with_confirmation([call], call.wait)
        return reply
    reply = None
    for command in (evalsha, eval_):
        *_, reply = yield [("ASKING",), command(call)] if asking else [command(call)]
        if not isinstance(reply, redis_errors.NoScriptError):
            break
    return reply


def in_cluster(slots: SlotMap, call: Call[Any], flow_queues: set[str]) -> ClusterSteps:
    """Make a call on the node that holds its keys, following redirections; return its reply.

    Yields a key and receives the node that holds it, or yields a node with exchanges and receives
    their return value. This function chooses the variants of scripts as `send_calls` does.
    """
    call = _adapted(call, flow_queues)
    reply = yield from _on_holder(slots, call)
    if _needs_flow(call, reply):
        flow_queues.add(hash_tag(call.keys[0]))
        reply = yield from _on_holder(slots, call.in_flow())
    return reply


def _on_holder(slots: SlotMap, call: Call[Any]) -> ClusterSteps:
    reply: Any = None
    node: Node | None = None
    for _ in range(REDIRECTIONS):
        asking = isinstance(reply, redis_errors.AskError)
        asked = node or (yield call.keys[0])
        reply = yield asked, send_redirected(call, asking=asking)
        node = slots.redirect(reply, asked)
        if node is None or (call.wait is not None and isinstance(reply, redis_errors.AskError)):
            break
    return reply


def with_confirmation(calls: Sequence[Call[Any]], wait: Wait) -> Exchanges:
    """Make calls on one connection, with one durability wait for all; return one reply per call.

    Calls that fail with NOSCRIPT are sent again, as EVAL, in a second exchange. That exchange may
    reach another primary, so it has its own durability wait. The mark is always sent as EVAL.
    """
    replies: list[Any] = [None] * len(calls)
    unsent = list(range(len(calls)))
    for command in (evalsha, eval_):
        commands = [command(calls[index]) for index in unsent]
        *answers, marked, waited = yield [*commands, eval_(wait.mark), _wait_command(wait)]
        sure = not isinstance(marked, BaseException) and _confirmed(waited)
        for index, answer in zip(unsent, answers, strict=True):
            plain = calls[index].wait is None or isinstance(answer, BaseException)
            replies[index] = answer if plain else (answer, sure)
        unsent = [i for i in unsent if isinstance(replies[i], redis_errors.NoScriptError)]
        if not unsent:
            break
    return replies


def probe_durability(durability: Durability, address: Address) -> Exchanges:
    """Find out whether the store can confirm this durability; return False if unknown.

    Raises ConfigError if the store cannot confirm it. Writes nothing.
    """
    return _probe_fsync(address) if durability == "fsync" else _probe_replica(address)


def _probe_fsync(address: Address) -> Exchanges:
    [reply] = yield [("WAITAOF", 1, 0, 1)]
    if isinstance(reply, BaseException):
        text = str(reply)
        if is_unsupported(reply):
            raise _unable("fsync", address, "lacks WAITAOF, which needs Redis 7.2 or Valkey")
        if "appendonly is disabled" in text:
            raise _unable("fsync", address, "keeps no append-only file: set appendonly to yes")
        if classify(reply) is Fault.DENIED:
            raise _unable("fsync", address, f"refuses WAITAOF: {text}")
        return False
    [reply] = yield [("CONFIG", "GET", "appendfsync")]
    if isinstance(reply, list) and reply[1:] == [b"no"]:
        fault = "never syncs its append-only file: set appendfsync to everysec or always"
        raise _unable("fsync", address, fault)
    return True


def _probe_replica(address: Address) -> Exchanges:
    [reply] = yield [("WAIT", 0, 1)]
    if isinstance(reply, BaseException):
        if classify(reply) is Fault.DENIED or is_unsupported(reply):
            raise _unable("replica", address, f"refuses WAIT: {reply}")
        return False
    [reply] = yield [("INFO", "replication")]
    if isinstance(reply, bytes):
        replicas = re.search(rb"^connected_slaves:(\d+)", reply, re.MULTILINE)
        if replicas and int(replicas[1]) == 0:
            raise _unable("replica", address, "has no replica")
    return True


def _unable(durability: Durability, address: Address, fault: str) -> ConfigError:
    return ConfigError(f"durability: {durability!r}: the store at {address} {fault}")


def _wait_command(wait: Wait) -> Command:
    if wait.durability == "fsync":
        return ("WAITAOF", 1, 0, wait.timeout_ms)
    return ("WAIT", 1, wait.timeout_ms)


def _confirmed(reply: Any) -> bool:
    if isinstance(reply, redis_errors.ResponseError):
        log.warning("the store refuses to confirm durability: %s", reply)
    if isinstance(reply, BaseException):
        return False
    return bool((reply[0] if isinstance(reply, list) else reply) >= 1)
