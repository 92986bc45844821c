"""A round trip to the store as a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from qsync.broker.op_values import MAX_TASKS_PER_CALL
from qsync.broker.script import Script, load
from qsync.keys import QueueKeys, names_beside

T = TypeVar("T")

Argument = str | bytes | int

Durability = Literal["fsync", "replica"]
"""Failure that a confirmed task survives. With `fsync`, the task survives a crash of the store's
machine if the disk stays intact. With `replica`, the task survives the loss of the machine."""


class Call(msgspec.Struct, Generic[T], frozen=True):
    """A description of one round trip to the store; a broker runs it.

    All keys are in one cluster slot. Running a call twice has the same effect as running it once.
    With `wait`, `decode` receives a pair: the reply, and whether the wait confirmed it.
    """

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]
    decode: Callable[[Any], T]
    wait: Wait | None = None
    flow_args: tuple[Argument, ...] | None = None
    """Arguments of the script's flow variant; None if they are the same as `args`."""

    def in_flow(self) -> Call[T]:
        """Return the same call with the script's flow variant, for a queue with flow control."""
        script = self.script.flow()
        args = self.args if self.flow_args is None else self.flow_args
        keys = names_beside(self.keys[0], script.keys)
        return Call(script, keys, args, self.decode, self.wait)

    def at(self, now_us: int) -> Call[T]:
        """Return the call with `now` set to this time; return the call unchanged if it already has
        a time or takes none."""
        if not self.script.timed or self.args[0] != "":
            return self
        more = None if self.flow_args is None else (now_us, *self.flow_args[1:])
        return replace(self, args=(now_us, *self.args[1:]), flow_args=more)


class Wait(msgspec.Struct, frozen=True):
    """A durability wait that follows a call on its connection, for at most `timeout_ms`.

    The store waits until the connection's last write is durable. A call that is repeated because
    its reply was lost may write nothing, so the `mark`, which always writes, is sent before the
    wait.
    """

    durability: Durability
    timeout_ms: int
    mark: Call[Any]


def queue_call(
    script: str, keys: QueueKeys, args: Sequence[Argument], decode: Callable[[Any], T]
) -> Call[T]:
    """Return a call that runs a script on the keys of a queue."""
    loaded = load(script)
    return Call(loaded, keys.names(loaded.keys), tuple(args), decode)


def queue_query(
    script: str, keys: QueueKeys, args: Sequence[Argument], decode: Callable[[dict[str, Any]], T]
) -> Call[T]:
    """Return a call whose `decode` receives the script's reply as a dict of named fields."""
    reply = load(script).reply
    return queue_call(script, keys, args, lambda values: decode(reply(values)))


def bounded(items: Sequence[T]) -> Sequence[T]:
    """Return the items; raise ValueError if there are too many for `unpack` in Lua."""
    if len(items) > MAX_TASKS_PER_CALL:
        msg = f"{len(items)} tasks in one call are over the limit of {MAX_TASKS_PER_CALL}"
        raise ValueError(msg)
    return items


def now_argument(now_us: int | None) -> Argument:
    """Return the argument `now` for a script; it is empty if the script should use the store's
    clock."""
    return "" if now_us is None else now_us


def text_of(value: bytes) -> str:
    """Decode a value from the store; escape invalid UTF-8 instead of raising an error."""
    return value.decode(errors="backslashreplace")


def texts_of(reply: Any) -> list[Any]:
    """Decode a list of strings. The caller states the type of the strings, e.g. a Literal."""
    return [text_of(outcome) for outcome in reply]


def pairs_of(reply: Any) -> Any:
    """Decode a flat list of strings as a list of pairs."""
    texts = texts_of(reply)
    return list(zip(texts[::2], texts[1::2], strict=True))


def text_tuple(reply: Any) -> Any:
    """Decode a list of strings as a tuple."""
    return tuple([text_of(part) for part in reply])
