"""The limits of histories: their rules, and the tasks that have them."""

from __future__ import annotations

from typing import Final

from qsync.limit import LimitRule

LIMITED: Final = (["slot:a"], ["slot:b"], ["slot:a", "rate"], ["rate"], ["slot:b", "rate", "none"])
"""Limits of tasks; `none` has no rule."""

RULES: Final = {
    "slot": LimitRule(concurrency=2),
    "rate": LimitRule(rate=20, per_us=1_000_000, burst=2),
}
"""Rules of the program that servers publish."""
