"""How the rules for limits and the limits of a task are validated."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from qsync import InvalidTask
from qsync.limit import LimitRule, check_limits, limit_name, limit_rule


def test_default_burst_is_a_tenth_of_the_rate() -> None:
    assert limit_rule("x", rate=100, per=1) == LimitRule(rate=100, per_us=1_000_000, burst=10)
    assert limit_rule("x", rate=3, per=timedelta(minutes=1)).burst == 1
    assert limit_rule("x", rate=3, per=1, burst=20).burst == 20
    assert limit_rule("x", concurrency=2) == LimitRule(concurrency=2)
    both = limit_rule("x", rate=1, per=0.5, concurrency=7)
    assert (both.rate, both.per_us, both.concurrency) == (1, 500_000, 7)
    assert str(both) == "1 per 0.5 s, 1 at once; 7 at a time"
    assert limit_name("customer:42:7") == "customer"


@pytest.mark.parametrize(
    ("per", "shown"),
    [
        (0.001, "0.001 s"),
        (1, "1 s"),
        (1.25, "1.25 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (3661, "3,661 s"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (90_060, "90,060 s"),
        (365 * 86_400, "365 d"),
    ],
)
def test_period_is_written_exactly_and_in_large_units(per: float, shown: str) -> None:
    assert str(limit_rule("x", rate=1, per=per)) == f"1 per {shown}, 1 at once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"limit x: pass rate= and per=, or concurrency=, or all three"),
        ({"rate": 1}, r"limit x: rate: 1 needs per="),
        ({"per": 1}, r"limit x: per: 1 needs rate="),
        ({"burst": 5, "concurrency": 1}, r"limit x: burst: 5 needs rate="),
        ({"concurrency": 0}, r"limit x: concurrency: 0 is not a whole number from 1 to 1000000"),
        ({"concurrency": 1.5}, r"concurrency: 1.5 is not a whole number"),
        ({"concurrency": True}, r"concurrency: True is not a whole number"),
        ({"rate": 0, "per": 1}, r"rate: 0 is not a whole number"),
        ({"rate": 1, "per": 0}, r"per: 0 is not between 0.001 and"),
        ({"rate": 1, "per": "1s"}, r"per: '1s' is neither a number of seconds nor a timedelta"),
        ({"rate": 1, "per": 1, "burst": 0}, r"burst: 0 is not a whole number"),
        (
            {"rate": 1000000, "per": 0.001},
            r"rate: 1000000 in 0.001 s is more than one per microsecond",
        ),
    ],
)
def test_wrong_rule_names_field_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTask, match=message):
        limit_rule("limit x", **options)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("stripe", r"limits: 'stripe' is not a list of strings"),
        ({"a"}, r"limits: {'a'} is not a list of strings"),
        (["a", "b", "c", "d", "e"], r"limits: 5 are more than the maximum of 4: \['a', 'b'"),
        (["a", 7], r"limits: 7 is not a string"),
        (["a", "b", "a"], r"limits: 'a' is listed twice"),
        ([""], r"limits: the name in '' must be"),
        (["a b"], r"limits: the name in 'a b' must be"),
        ([":42"], r"limits: the name in ':42' must be"),
        (["customer:"], r"limits: 'customer:' has no value after its colon"),
        (["customer:a\0b"], r"has unprintable characters after its colon"),
        (["customer:\ud800"], r"has unprintable characters after its colon"),
        (["x:" + "y" * 255], r"limits: 'x:yyy.* has 257 characters, over 256"),
    ],
)
def test_wrong_limits_of_a_task_name_the_value(limits: Any, message: str) -> None:
    with pytest.raises(InvalidTask, match=message):
        check_limits(limits)


def test_task_has_up_to_four_limits() -> None:
    assert check_limits(["stripe", "customer:{4 2}"]) == ("stripe", "customer:{4 2}")
    assert check_limits(("a:b:c",)) == ("a:b:c",)
    assert check_limits(["x:" + "y" * 254]) == ("x:" + "y" * 254,)
    assert check_limits([]) is None
    assert check_limits(None) is None
