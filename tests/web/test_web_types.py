"""The pages of types, without a browser: the list, the charts of a type, and the form that pauses a
type."""

from __future__ import annotations

import html
import re

import pytest

from qsync import Task, codec
from qsync.broker import ops, type_ops
from qsync.broker.op_values import Killed
from qsync.histogram import cell_of
from qsync.message import FailedAttempt, Failure
from qsync.server_starts import encode_start, start_report
from qsync.slow_runs import SlowRun, encode_slow_report
from qsync.type_counts import TypeCounts, encode_report
from qsync.type_rolls import report_field
from tests.support.inspector_driver import S
from tests.support.stores import Store
from tests.web.test_web_actions import Visitor, said, visitor


async def page(web: Visitor, path: str, **query: str) -> str:
    answer = await web.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.text)))


async def report(web: Visitor, **rows: TypeCounts) -> None:
    """Report rows as a server does, for this minute and for the same minute a day ago."""
    now = int((await web.bed.inspector.overview()).at.timestamp()) // 60
    for minute in (now, now - 1440):
        reports = {report_field(minute, "s"): encode_report(rows)}
        await web.bed.broker.run(type_ops.report_types(web.bed.keys(), reports))


def counts(started: int, completed: int, dead: int) -> TypeCounts:
    row = TypeCounts(started)
    row.outcomes[0], row.outcomes[2] = completed, dead
    row.waits.cells = {cell_of(0.08): started}
    row.runs.cells = {cell_of(60.02): completed + dead}
    return row


async def test_types_are_listed_sorted_and_shown_with_charts(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        assert "No types yet" in await page(web, "/types")
        await web.bed.enqueue(Task("mail", b"1"), Task("mail", b"2"), Task("<b>new</b>"))
        await report(web, mail=counts(1200, 900, 300), bill=counts(60, 60, 0))
        text = await page(web, "/types", queue="default")
        assert "<b>new</b> 0 – 0 – – – 1 0" in text
        assert "mail 1,200 0.33/s 300 25% 81 ms / 81 ms 1 min 4 s / 1 min 4 s 2 0" in text
        assert text.index("bill") < text.index("mail")
        assert "3 types" in text
        text = await page(web, "/types", sort="failed", period="24h")
        assert text.index("mail 1,200") < text.index("bill 60")
        answer = await web.client.get("/type", params={"queue": "default", "type": "mail"})
        plain = html.unescape(answer.text)
        assert plain.count("<figure") == 3
        assert "yesterday at this time" in plain
        assert len(re.findall(r'class="line earlier" d="M', plain)) == 6
        assert re.search(
            r"<li><span>\d\d:\d\d UTC: tasks completed 900, failed attempts 300</span></li>", plain
        )
        assert re.search(
            r"<li><span>\d\d:\d\d UTC: tasks completed 0, failed attempts 0</span></li>", plain
        )
        assert "the scale ends at 1,000" in plain
        assert plain.count("<tr>") == 2, "the header row, and the interval with runs"
        for period in ("24h", "7d", "90d"):
            assert "1,200" in await page(web, "/type", type="mail", period=period)
        assert "No runs in this period." in await page(web, "/type", type="unknown")
        assert "Types of this queue" in await page(web, "/queue", queue="default")


@pytest.mark.parametrize("name", ["mail", "<b>&'\" ж"])
async def test_type_is_paused_and_resumed_after_a_confirmation(
    store: Store, prefix: str, name: str
) -> None:
    async with visitor(store, prefix) as web:
        await web.bed.enqueue(Task(name))
        asked = await web.send("/type/pause", queue="default", type=name, why="provider is down")
        assert html.escape(f"Pause type {name}?") in asked.replace("&#34;", "&quot;").replace(
            "&#39;", "&#x27;"
        )
        assert await web.bed.inspector.paused_types() == []
        text = await web.press(asked, "Pause type")
        assert html.unescape(said(text)) == f"Type {name} is paused."
        [paused] = await web.bed.inspector.paused_types()
        assert (paused.pause.why, paused.pause.by) == ("provider is down", "dashboard")
        await web.bed.enqueue(Task(name), Task(name))
        assert "2 tasks are set aside." in await page(web, "/type", type=name)
        assert "paused" in await page(web, "/types")
        asked = await web.press(text, "Resume…")
        assert "2 tasks were set aside: they return to their places" in asked
        text = await web.press(asked, "Resume type")
        assert html.unescape(said(text)) == f"Type {name} is resumed."
        assert await web.bed.inspector.paused_types() == []
        text = await web.send("/type/pause", queue="nope", type=name, why="", sure="yes")
        assert "There is no queue nope." in text


async def test_slow_dead_task_is_found_behind_newer_dead_tasks(store: Store, prefix: str) -> None:
    async with visitor(store, prefix) as web:
        bed = web.bed
        now_us = int((await bed.inspector.overview()).at.timestamp() * S)
        attempt = FailedAttempt(1, now_us, "w", "boom", now_us - 90 * S)
        record = codec.encode(Failure(1, "boom", now_us, history=(attempt,)))
        await bed.enqueue(Task("mail", id="slow"))
        await bed.broker.run(
            ops.kill(bed.keys(), [Killed(*lease, True, record) for lease in await bed.lease()])
        )
        await bed.dead(*[Task("bill")] * 400)
        assert [task.id for task in await bed.inspector.slow_tasks("mail")] == ["slow"]


async def test_type_shows_slow_tasks_and_when_its_servers_started(
    store: Store, prefix: str
) -> None:
    async with visitor(store, prefix) as web:
        bed = web.bed
        now_us = int((await bed.inspector.overview()).at.timestamp() * S)
        await bed.enqueue(Task("mail", id="died"), Task("bill", id="other"))
        attempt = FailedAttempt(1, now_us, "w", "boom", now_us - 90 * S)
        record = codec.encode(Failure(1, "boom", now_us, history=(attempt,)))
        dying = [Killed(*lease, True, record) for lease in await bed.lease()]
        await bed.broker.run(ops.kill(bed.keys(), dying))
        await bed.enqueue(Task("mail", id="runs"), Task("mail", id="unknown-start"))
        await bed.lease(server="w")
        since = codec.encode([["default", "runs", now_us - 400 * S], ["else", "died", 1]])
        await bed.serve("w", types=["mail"], uptime_s=1200, version="1.2.3", since=since)
        await bed.serve("v", types=["mail"], uptime_s=10**6, version="1.2.2")
        await bed.serve("u", types=["mail"], uptime_s=60, version="1.2.3", app_version="b2f")
        await bed.serve("t", types=["mail"], uptime_s=10**18, version="hostile")
        quick, gone = SlowRun(5, "quick", now_us), SlowRun(100 * S, "gone", now_us)
        other = SlowRun(999 * S, "other", now_us)
        runs = {"mail": [quick, gone], "bill": [other]}
        minute, key = now_us // S // 60, web.bed.keys()
        starts = {
            f"v{minute}:{number}": encode_start(start_report(now_us - age * S, version, [type]))
            for number, (age, version, type) in enumerate(
                [(50, "b2f", "mail"), (60, "b2f", "mail"), (1500, "a1e", "mail"), (9, "c", "bill")]
            )
        }
        reports = {f"s{minute}:w": encode_slow_report(runs), **starts, "v1:x": b"?", "s1:x": b"?"}
        await bed.broker.run(type_ops.report_types(key, reports))
        slow = await bed.inspector.slow_tasks("mail")
        assert [(task.id, task.state, task.server, task.stored) for task in slow] == [
            ("runs", "active", "w", True), ("gone", "completed", "w", False),
            ("died", "dead", "w", True), ("quick", "completed", "w", False),
        ]  # fmt: skip
        assert [task.seconds for task in slow[1:]] == [100, 90, 0.000005]
        assert 400 <= slow[0].seconds < 460
        text = await page(web, "/type", type="mail", queue="default")
        assert "Slowest tasks: running, dead, or completed today or yesterday" in text
        assert "up to 1,000 running tasks and the newest 1,000 dead tasks of the queue" in text
        assert text.index("runs active") < text.index("gone completed") < text.index("died dead")
        assert re.search(
            r"e\.g\. after a deploy: \d\d:\d\d UTC a1e \(1 server\); "
            r"\d\d:\d\d UTC qsync 1\.2\.3 \(1 server\); \d\d:\d\d UTC b2f \(2 servers\)",
            text,
        )
        answer = await web.client.get("/type?type=mail")
        assert 'id=gone"' not in answer.text
        assert answer.text.count('class="grid mark" d="M') == 3
        text = await page(web, "/type", type="bill", queue="default")
        assert re.search(r"e\.g\. after a deploy: \d\d:\d\d UTC c \(1 server\) ", text)
        assert "after a deploy" not in await page(web, "/type", type="else", queue="default")
