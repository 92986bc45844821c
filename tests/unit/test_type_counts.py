"""Statistics of types: counts, quantiles, and the blocks into which reports are rolled up."""

from __future__ import annotations

import math
import random
import zlib
from itertools import pairwise
from statistics import quantiles

import pytest

from qsync import codec
from qsync.histogram import BOUNDS, BUCKETS, CELL_BOUNDS, HIGH, LONGEST_S, MEDIAN, Histogram
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
    STEPS,
    TypeCounts,
    decode_block,
    decode_report,
    encode_block,
    encode_report,
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
        made.runs.count(took)
        made.waits.count(took / 10)
    return made


def rolled(
    stored: dict[str, bytes], reports: dict[str, bytes], now_minute: int
) -> dict[str, bytes]:
    """Roll up reports as a server does; return the fields in the store afterwards."""
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


def test_cells_divide_the_buckets_and_are_narrow() -> None:
    assert {*BOUNDS} <= {*CELL_BOUNDS}
    ratios = [b / a for a, b in pairwise(CELL_BOUNDS)]
    assert max(ratios) <= 1.15
    row = counts(3, 0.001, 0.0011, 9e9)
    assert [n for n, weight in enumerate(row.runs.buckets()) if weight] == [0, 1, BUCKETS - 1]


def near(estimate: float | None, exact: float, *, rel: float = 0.08) -> bool:
    """Return whether an estimate is close to the exact value. Times below 0.1 ms are not
    compared."""
    return estimate == pytest.approx(exact, rel=rel, abs=0.0001)


def test_quantile_of_counts_is_off_by_8_percent_at_most() -> None:
    assert Histogram().quantile(0.5) is None
    assert counts(1, 9e9).runs.quantile(0.5) == LONGEST_S
    chance = random.Random(5)
    for _ in range(30):
        middle, width = chance.uniform(-8, 9), chance.choice([0.001, 0.3, 1.5])
        times = sorted(math.exp(chance.gauss(middle, width)) for _ in range(101))
        runs = counts(101, *times).runs
        assert near(runs.quantile(MEDIAN), min(times[50], LONGEST_S)), times
        assert near(runs.quantile(HIGH), min(times[95], LONGEST_S)), times


@pytest.mark.parametrize(
    "took_s", [0.0004, 0.011, 0.3, 1.01, 7.0, 30.02, 60.02, 200.0, 1500.0, 9000.0]
)
def test_stored_runs_of_equal_duration_show_that_duration(took_s: float) -> None:
    """The estimates are equally precise for a minute, for an hour of such minutes, and for a day
    that also has runs of another duration."""
    minute = decode_block(encode_block({0: counts(20, *[took_s] * 20)}))[0]
    hour = sum_of(
        decode_block(encode_block({n: counts(9, *[took_s] * 9) for n in range(60)})).values()
    )
    day = decode_block(encode_block({5: hour}))[5]
    for row in (minute, hour, day):
        assert near(row.runs.quantile(MEDIAN), took_s)
        assert near(row.runs.quantile(HIGH), took_s)
    day.add(decode_block(encode_block({0: counts(5000, *[3 * took_s] * 5000)}))[0])
    assert near(day.runs.quantile(MEDIAN), 3 * took_s)


def test_stored_histogram_is_off_by_15_percent_at_most() -> None:
    """The bound holds for minutes, hours and weeks, and for many distributions."""
    chance = random.Random(7)
    for _ in range(40):
        width, middle = chance.choice([0.02, 0.4, 1.0]), chance.uniform(-5, 6)
        everything, hours = list[float](), dict[int, TypeCounts]()
        for hour in range(6):
            shift, minutes = chance.uniform(0, width / 2), dict[int, TypeCounts]()
            for minute in range(10):
                times = [math.exp(chance.gauss(middle + shift, width)) for _ in range(100)]
                everything += times
                minutes[minute] = counts(100, *times)
                read = decode_block(encode_block({0: minutes[minute]}))[0].runs
                for share, index in ((MEDIAN, 50), (HIGH, 95)):
                    assert near(read.quantile(share), sorted(times)[index - 1], rel=0.15)
            hours[hour] = sum_of(decode_block(encode_block(minutes)).values())
        whole = sum_of(decode_block(encode_block(hours)).values()).runs
        exact = quantiles(everything, n=20)
        assert near(whole.quantile(MEDIAN), exact[9], rel=0.15), (width, middle)
        assert near(whole.quantile(HIGH), exact[18], rel=0.15), (width, middle)


def test_records_of_the_previous_version_are_read_with_wider_buckets() -> None:
    """The earlier version writes only buckets, and ignores the cells in records of this version."""
    old = {"a": {0: 4, 1: 4, 8 + 3: 4, 26 + 15: 4}}
    row = decode_report(codec.encode(old))["a"]
    assert row.runs.buckets()[15] == 4
    assert 60 < (row.runs.quantile(MEDIAN) or 0) < 300
    block = zlib.compress(codec.encode([1, [7], {0: [4], 1: [4], 8 + 3: [12], 26 + 15: [12]}]))
    [read] = decode_block(block).values()
    assert read.runs == row.runs
    read.add(counts(400, *[60.5] * 400))
    assert near(read.runs.quantile(MEDIAN), 60.5)
    format, numbers, columns = codec.decode(zlib.decompress(encode_block({7: read})))
    assert (format, numbers, columns[26 + 15]) == (1, [7], [STEPS])
    new = codec.decode(encode_report({"a": counts(3, 61.0, 62.0, 0.02)}))["a"]
    assert {column: new[column] for column in new if column < 44} == {
        0: 3, 1: 3, 8 + 1: 1, 8 + 12: 2, 26 + 4: 1, 26 + 15: 2,
    }  # fmt: skip


def test_report_and_block_keep_counts_exactly_and_histograms_nearly() -> None:
    row = counts(1000, *[0.02] * 900, *[0.7] * 60, *[4.0] * 40, dead=7)
    assert decode_report(encode_report({"a": row})) == {"a": row}
    empty = TypeCounts(3)
    read = decode_block(encode_block({59: row, 0: empty}))
    assert read.keys() == {0, 59}
    assert (read[59].started, read[59].outcomes) == (1000, row.outcomes)
    assert read[59].runs.total == pytest.approx(1000)
    for share in (MEDIAN, HIGH):
        assert read[59].runs.quantile(share) == row.runs.quantile(share)
    assert (read[0].started, read[0].runs.total) == (3, 0)


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
    assert [*stored] == [DIRECTORY], "the runs are deleted with their type"


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
