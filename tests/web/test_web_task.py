"""What the page of a task shows: its type, its attempts as bars, the link to its trace, and the
operator who retried it."""

from __future__ import annotations

import html
import re

import pytest

from qsync import ConfigError, Task, codec
from qsync.broker import ops
from qsync.broker.op_values import Killed, Retried
from qsync.message import FailedAttempt, Failure, Result
from qsync.web import create_app
from tests.support.dashboard import visiting
from tests.support.inspector_driver import S, bed
from tests.support.stores import Store

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SERVER = "vm-8b5a210123456789abcdef01"
AT = 1_700_000_000 * S


def attempt(number: int, begun: float, ended: float) -> FailedAttempt:
    begun_us, ended_us = AT + int(begun * S), AT + int(ended * S)
    return FailedAttempt(number, ended_us, SERVER, f"boom {number}", begun_us)


async def test_attempts_are_bars_and_the_trace_is_linked(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        parent = f"00-{TRACE}-00f067aa0ba902b7-01"
        await made.enqueue(
            Task("mail.send", id="d", headers={"traceparent": parent}),
            Task("plain", id="p", retention=900),
        )
        held = {one.id: one for one in await made.lease()}
        history = (attempt(1, 0, 3), attempt(2, 13, 33))
        record = codec.encode(Failure(2, "boom 2", AT + 33 * S, history=history))
        await made.broker.run(ops.retry(made.keys(), [Retried(*held["d"], 60 * S, record)]))
        await made.complete([held["p"]], 900, codec.encode(Result(value=b"", begun_us=AT)))
        url = "https://traces.test/{trace_id}?from=queue"
        app = create_app(made.inspector, auth="host", trace_url=url)
        async with app, visiting(app) as client:
            text = html.unescape((await client.get("/task?id=d")).text)
            head = text.index("<h1>")
            assert head < text.index("mail.send", head) < text.index('id="task-id">d<')
            assert f'href="https://traces.test/{TRACE}?from=queue"' in text
            assert "waited 10 s, ran 20 s" in text
            assert 'title="vm-8b5a210123456789abcdef01">vm-8b5a21…<' in text
            widths = re.findall(r'class="ran" x="([\d.]+)" width="([\d.]+)"', text)
            assert widths == [("33.33", "66.67"), ("0.0", "10.0")], "the latest first"
            assert text.count("boom 1") == 1, "said once"
            plain = html.unescape((await client.get("/task?id=p")).text)
            assert "traces.test" not in plain
            assert 'class="bar-line completed"' in plain
        for wrong in ("https://traces.test/", "javascript:{trace_id}", 5):
            with pytest.raises(ConfigError, match="trace_url"):
                create_app(made.inspector, auth="host", trace_url=wrong)  # type: ignore[arg-type]


async def test_an_attempt_names_the_operator_who_retried_it(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.dead(Task("mail", id="d"), error="ValueError: boom\n\n  File", queue="slow")
        await made.inspector.acting("ann").run("d", queue="slow")
        held = await made.lease(queue="slow")
        now_us = int((await made.inspector.overview()).at.timestamp() * S)
        failure = (await made.inspector.task("d", queue="slow")).history  # type: ignore[union-attr]
        second = FailedAttempt(1, now_us + 2 * S, "w", "ValueError: bang", now_us)
        first = FailedAttempt(1, now_us - 60 * S, "w", failure[0].error, now_us - 70 * S)
        record = codec.encode(
            Failure(1, "ValueError: bang\n\n  File", now_us, history=(first, second))
        )
        await made.broker.run(ops.kill(made.keys("slow"), [Killed(*held[0], True, record)]))
        async with create_app(made.inspector, auth="host") as app, visiting(app) as client:
            text = html.unescape((await client.get("/task?id=d&queue=slow")).text)
            assert text.count("re-run by ann, waited") == 1
            assert text.index("re-run by ann") < text.index("ValueError: boom"), "the second one"
            shown = re.sub(r"<title>.*?</title>", "", text)
            assert shown.count("ValueError: bang") == 2, (
                "the error is in the sentence and in the traceback"
            )


async def test_explanation_marks_its_times_for_the_time_zone_of_the_reader(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t", id="later", delay=3600))
        async with create_app(made.inspector, auth="host") as app, visiting(app) as client:
            text = (await client.get("/task?id=later")).text
    [explained] = re.findall(r'<p class="explain">(.*?)</p>', text)
    time = r'<time datetime="\S+\+00:00" title="\S+ \S+ UTC" data-local>\S+ \S+ UTC</time>'
    assert re.search(rf"^Scheduled for {time}", explained)
