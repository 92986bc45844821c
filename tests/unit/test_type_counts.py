"""Statistics of types: counts, quantiles, blocks, and how reports become blocks."""

from __future__ import annotations

import zlib
from bisect import bisect_left

import pytest

from qsync import codec
from qsync.server_starts import (
    decode_start,
    decode_starts,
    encode_starts,
    merge_starts,
    start_report,
)
from qsync.slow_runs import DaySlowest, SlowRun, decode_slow_runs, encode_slow_report, slowest
from qsync.times import DAY_US
from qsync.type_counts import (
    BOUNDS,
    TypeCounts,
    decode_block,
    decode_report,
    encode_block,
    encode_report,
    quantile,
    sum_of,
)
from qsync.type_rolls import (
    DIRECTORY,
    KEPT_DAYS,
    KEPT_HOURS,
    OTHER,
    TRIMMED_MOST,
    TYPES,
    Directory,
    decode_directory,
    hours_of,
    merged_reports,
    minutes_of,
    needed_fields,
    roll,
    slow_runs_of,
)

NOON = 29_000_000 // 1440 * 1440 + 720


def counts(started: int, *runs_s: float, dead: int = 0) -> TypeCounts:
    made = TypeCounts(started)
    made.outcomes[0], made.outcomes[2] = len(runs_s) - dead, dead
    for took in runs_s:
        made.runs[bisect_left(BOUNDS, took)] += 1
        made.waits[bisect_left(BOUNDS, took / 10)] += 1
    return made


def rolled(
    stored: dict[str, bytes], reports: dict[str, bytes], now_minute: int
) -> dict[str, bytes]:
    """Roll reports up as a server does; return what the store then holds."""
    directory = decode_directory(stored.get(DIRECTORY))
    merged = merged_reports(reports, directory.types)
    blocks = {field: stored.get(field) for field in needed_fields(merged, reports)}
    after = dict(stored)
    for field, data in roll(directory, merged, reports, blocks, now_minute).fields.items():
        if data is None:
            after.pop(field, None)
        else:
            after[field] = data
    return after


def test_quantile_lies_in_its_bucket() -> None:
    assert quantile(TypeCounts().runs, 0.5) is None
    some = counts(4, 0.2, 0.2, 0.2, 20.0)
    assert quantile(some.runs, 0.5) == pytest.approx(0.1 + 0.15 * 2 / 3)
    assert quantile(some.runs, 0.95) == pytest.approx(10 + 20 * 0.8)
    assert quantile(counts(1, 9999.0).runs, 0.5) == BOUNDS[-1]


def test_report_and_block_keep_counts_exactly_and_histograms_nearly() -> None:
    row = counts(1000, *[0.02] * 900, *[0.7] * 60, *[4.0] * 40, dead=7)
    assert decode_report(encode_report({"a": row})) == {"a": row}
    empty = TypeCounts(3)
    read = decode_block(encode_block({59: row, 0: empty}))
    assert read.keys() == {0, 59}
    assert (read[59].started, read[59].outcomes) == (1000, row.outcomes)
    assert sum(read[59].runs) == pytest.approx(1000)
    for share in (0.5, 0.95):
        assert quantile(read[59].runs, share) == pytest.approx(quantile(row.runs, share), rel=0.3)
    assert (read[0].started, sum(read[0].runs)) == (3, 0)


@pytest.mark.parametrize(
    "data",
    [None, b"", b"no block", zlib.compress(b"\xc1"), zlib.compress(codec.encode([2, [1], {}])),
     zlib.compress(b"\0" * (1 << 22))],
)  # fmt: skip
def test_damaged_block_report_and_directory_are_empty(data: bytes | None) -> None:
    assert decode_block(data) == {}
    assert decode_report(data or b"") == {}
    assert decode_directory(data) == Directory()


def test_block_with_a_column_of_wrong_length_is_read_without_it() -> None:
    data = zlib.compress(codec.encode([1, [4, 5], {0: [1, 2], 1: [1]}]))
    assert [row.started for row in decode_block(data).values()] == [1, 2]


def test_reports_of_servers_become_minutes_and_hours() -> None:
    hour, day = NOON // 60, NOON // 1440
    first = {
        f"{NOON}:s": encode_report({"a": counts(2, 0.2, 0.2), "b": counts(1)}),
        f"{NOON}:t": encode_report({"a": counts(1, 0.2)}),
        f"{NOON + 1}:s": encode_report({"a": counts(5)}),
        "strange": b"x",
    }
    stored = rolled({}, first, NOON + 2)
    late = {f"{NOON}:u": encode_report({"a": counts(4, 0.2, dead=1)})}
    stored = rolled(stored, late, NOON + 61)
    minutes = decode_block(stored[minutes_of(hour, "a")])
    assert {at: row.started for at, row in minutes.items()} == {0: 7, 1: 5}
    assert minutes[0].outcomes[:3] == [3, 0, 1]
    hours = decode_block(stored[hours_of(day, "a")])
    assert {at: row.started for at, row in hours.items()} == {12: 12}
    assert sum_of(minutes.values()).outcomes == hours[12].outcomes
    directory = decode_directory(stored[DIRECTORY])
    assert (directory.types, directory.number) == ({"a": hour, "b": hour}, 2)


def test_types_beyond_the_limit_share_one_name() -> None:
    rows = {f"t{n:03}": counts(1) for n in range(TYPES + 20)}
    stored = rolled({}, {f"{NOON}:s": encode_report(rows)}, NOON + 1)
    known = decode_directory(stored[DIRECTORY]).types
    assert len(known) == TYPES + 1
    [other] = decode_block(stored[minutes_of(NOON // 60, OTHER)]).values()
    assert other.started == 20


def test_old_minutes_and_hours_are_deleted_and_their_types_forgotten() -> None:
    report = {f"{NOON}:s": encode_report({"a": counts(1)})}
    stored = rolled({}, report, NOON + 1)
    hour, minute = NOON // 60, NOON
    for _ in range(KEPT_HOURS):
        minute += 60
        stored = rolled(stored, {f"{minute}:s": encode_report({"b": counts(1)})}, minute + 1)
    assert minutes_of(hour, "a") in stored
    stored = rolled(stored, {}, minute + 61)
    assert minutes_of(hour, "a") not in stored
    assert hours_of(NOON // 1440, "a") in stored
    later = minute + (KEPT_DAYS + 1) * 1440
    for _ in range(1 + 3 * KEPT_DAYS * 24 // TRIMMED_MOST):
        stored = rolled(stored, {f"{later}:s": encode_report({"c": counts(1)})}, later + 1)
    assert set(decode_directory(stored[DIRECTORY]).types) == {"c"}
    assert set(stored) == {
        DIRECTORY, minutes_of(later // 60, "c"), hours_of(later // 1440, "c"),
    }  # fmt: skip


def test_slowest_runs_of_two_days_are_kept() -> None:
    day = 20_000
    seen = DaySlowest()
    for number in range(30):
        run = SlowRun(number, f"t{number}", day * DAY_US)
        if number / 1e6 > seen.floors.get("a", -1.0):
            seen.add("a", run)
    seen.add("a", SlowRun(3, "short", day * DAY_US))
    assert [run.run_us for run in seen.fresh()["a"]] == [*range(20, 30)]
    assert seen.floors == {"a": 20 / 1e6}
    seen.forget_fresh()
    assert seen.fresh() == {}
    reports = {
        f"s{NOON}:x": encode_slow_report({"a": [SlowRun(1, "a", day * DAY_US)]}),
        f"s{NOON}:y": encode_slow_report({"a": [SlowRun(2, "b", day * DAY_US)]}),
        f"s{NOON}:z": b"?",
        f"{NOON}:x": encode_report({"a": counts(1)}),
    }
    now = day * 1440
    reports = {field.replace(str(NOON), str(now)): data for field, data in reports.items()}
    stored = rolled({}, reports, now + 1)
    kept = decode_slow_runs(stored[slow_runs_of("a")])
    assert [(run.id, run.server) for run in kept] == [("b", "y"), ("a", "x")]
    more = [SlowRun(number, f"c{number}", (day + 1) * DAY_US) for number in range(15)]
    assert slowest([*kept, *more, *more], day + 1) == [*more[:4:-1], *kept]
    assert slowest([*kept, *more], day + 2) == more[:4:-1]
    seen.begin_day((day + 1) * DAY_US)
    assert seen.floors == {}
    assert decode_slow_runs(b"?") == []
    for _ in range(4):
        stored = rolled(stored, {}, now + 95 * 1440)
    assert [*stored] == [DIRECTORY], "it goes with its type"


def test_starts_of_one_version_within_an_hour_are_one_entry() -> None:
    hour = 3_600_000_000
    starts = [
        start_report(at * hour // 2, version, types)
        for at, version, types in (
            (10, "1", ["a"]), (11, "1", ["a"]), (12, "2", ["a"]), (12, "1", ["a"]),
            (20, "1", ["a"]), (20, "1", ["b"]), (21, "2", [f"t{number}" for number in range(101)]),
        )
    ]  # fmt: skip
    entries = merge_starts([], starts, 0)
    assert [(each.version, each.servers) for each in entries] == [
        ("1", 3), ("2", 1), ("1", 1), ("1", 1), ("2", 1),
    ]  # fmt: skip
    assert [each.concerns("b") for each in entries] == [False, False, False, True, True]
    late = 90 * 24 * hour + 11 * hour
    assert [each.version for each in merge_starts(entries, [], late)] == []
    many = [start_report(number * 3 * hour, str(number), []) for number in range(300)]
    assert next(each.version for each in merge_starts([], many, 0)) == "100"
    assert decode_starts(encode_starts(entries)) == entries
    assert decode_starts(b"?") == []
    assert decode_start(b"?") is None
