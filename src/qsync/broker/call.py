"""A round trip to the store as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qsync.broker.script import Script

T = TypeVar("T")

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One round trip to the store, described and not yet made.

    All keys are in one cluster slot. Running a call twice has the effect of running it once.
    """

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]
    decode: Callable[[Any], T]
