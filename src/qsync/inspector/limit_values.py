"""The values that the inspector returns about limits."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from qsync.limit import LimitRule


class OperatorRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that an operator set, for a name or for one limit; `by` and `at` say who and when."""

    limit: str
    rule: LimitRule
    by: str
    at: datetime | None


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of a queue at one moment. A name without tasks has only a rule.

    rule          the rule in effect; None means the limit allows everything
    source        who set this rule
    program       rule of the program for the name
    operator      rule of an operator for the limit, or else for its name
    in_use        tasks that run with the limit, or that a server has leased
    ready         tasks that the limit allows to start, and that wait for a server
    waiting       tasks that wait for the limit; a task counts at one of its limits only
    opens_at      when the first waiting task is tried; None means when another ends, or none waits
    closed_until  until when a handler has closed the limit with RateLimited
    holders       ids of tasks in use and ready, as far as they were read; only for a single limit
    """

    queue: str
    limit: str
    rule: LimitRule | None
    source: Literal["program", "operator"] | None
    program: LimitRule | None
    operator: OperatorRule | None
    in_use: int = 0
    ready: int = 0
    waiting: int = 0
    opens_at: datetime | None = None
    closed_until: datetime | None = None
    holders: list[str] = []

    @property
    def taken(self) -> int:
        """Number of slots that are in use, or that a pending task has been given."""
        return self.in_use + self.ready

    @property
    def full(self) -> bool:
        """Whether all slots are in use."""
        maximum = self.rule.concurrency if self.rule else None
        return maximum is not None and self.taken >= maximum


class LimitPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the limits of a queue; the last page has the cursor None."""

    limits: list[LimitInfo]
    cursor: str | None
