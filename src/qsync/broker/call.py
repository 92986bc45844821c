"""A round trip to the store as a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import msgspec

from qsync.broker.script import Script

T = TypeVar("T")

Argument = str | bytes | int

Durability = Literal["fsync", "replica"]
"""What a task outlives once it is confirmed: `fsync`: the crash of the store's machine, its disk
kept; `replica`: the loss of that machine."""


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One round trip to the store, described and not yet made.

    All keys are in one cluster slot. Running a call twice has the effect of running it once.
    With `wait`, `decode` is given a pair: the reply, and whether the wait confirmed it.
    """

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]
    decode: Callable[[Any], T]
    wait: Wait | None = None


class Wait(msgspec.Struct, frozen=True):
    """What a call waits for on its connection after it: at most `timeout_ms`.

    The store counts from the last write of the connection, and a call that is made again because
    its reply was lost writes nothing: so a write that is always one, the `mark`, goes between.
    """

    durability: Durability
    timeout_ms: int
    mark: Call[Any]
