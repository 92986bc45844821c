"""Tests qsync.contrib.sentry with the real SDK, whose transport collects envelopes instead of
sending them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from qsync import ConfigError, Qsync, Retry, SkipRetry, Snooze
from qsync.contrib import opentelemetry, sentry
from qsync.contrib.sentry.instrumentation import config_of, slug_of
from qsync.schedule import Cron, Every
from tests.support.stores import Store, wait_until_async


class Collector(Transport):
    """A transport that keeps the items of envelopes instead of sending them."""

    items: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        super().__init__()
        self.items = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.payload.json is not None:
                self.items.append((item.type or "", item.payload.json))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [payload for type, payload in self.items if type == kind]


@pytest.fixture
def collected() -> Iterator[Collector]:
    collector = Collector()
    begin(collector)
    yield collector
    sentry_sdk.init()


def begin(collector: Collector, **options: Any) -> None:
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:1/1", transport=collector, traces_sample_rate=1.0,
        default_integrations=False, **options,
    )  # fmt: skip


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix, retry_delay=0.02, sweep=0.05)


async def test_each_failure_is_an_event_with_the_task(app: Qsync, collected: Collector) -> None:
    sentry.instrument(app)

    @app.task(name="send", retry=1, queue="mail")
    async def send(invoice: int) -> None:
        sentry_sdk.add_breadcrumb(message=f"looked up {invoice}")
        raise ValueError("secret 7")

    async with app, app.server(queues=["mail"], server_id="one"):
        handle = await send.enqueue(7)
        await wait_until_async(lambda: len(collected.of("event")) == 2)
    first, last = collected.of("event")
    assert [first["level"], last["level"]] == ["warning", "error"]
    assert [event["tags"]["qsync.final"] for event in (first, last)] == ["false", "true"]
    for number, event in enumerate((first, last), 1):
        assert event["fingerprint"] == ["send", "ValueError"]
        assert event["transaction"] == "send"
        assert event["contexts"]["qsync"] == {
            "id": handle.id, "type": "send", "queue": "mail", "attempt": number, "retry": 1,
            "crashes": 0, "worker": "one",
        }  # fmt: skip
        [error] = event["exception"]["values"]
        assert (error["type"], error["value"]) == ("ValueError", "secret 7")
        assert error["mechanism"] == {"type": "qsync", "handled": False}
        assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == ["looked up 7"]
    runs = {run["contexts"]["trace"]["span_id"] for run in collected.of("transaction")}
    assert {event["contexts"]["trace"]["span_id"] for event in (first, last)} == runs


async def test_only_final_failures_are_reported_on_request(
    app: Qsync, collected: Collector
) -> None:
    sentry.instrument(app, report="final")

    @app.task(name="fail", retry=1)
    def fail() -> None:
        raise KeyError("x")

    @app.task(name="ask", retry=1)
    async def ask(how: str) -> None:
        if how == "snooze":
            raise Snooze(60)
        raise Retry if how == "retry" else SkipRetry("never")

    async with app, app.server():
        await ask.enqueue("snooze")
        await ask.enqueue("skip")
        await ask.enqueue("retry")
        await fail.enqueue()
        await wait_until_async(lambda: len(collected.of("event")) == 2)
    events = {event["transaction"]: event for event in collected.of("event")}
    assert events["fail"]["contexts"]["qsync"]["attempt"] == 2
    assert events["ask"]["fingerprint"] == ["ask", "Retry"]  # reported, since no attempts are left
    runs = [one for one in collected.of("transaction") if one["transaction"] == "ask"]
    assert {run["contexts"]["trace"]["status"] for run in runs} == {"aborted"}  # no errors


async def test_a_task_that_did_not_run_in_time_is_reported(
    app: Qsync, collected: Collector
) -> None:
    sentry.instrument(app)

    @app.task(name="late")
    async def late() -> None: ...

    @app.task(name="slow", retry=0, timeout=0.05)
    async def slow() -> None:
        await wait_until_async(lambda: False)

    async with app:
        soon = datetime.now(UTC) + timedelta(seconds=0.05)
        await late.options(deadline=soon).enqueue()
        await slow.enqueue()
        await wait_until_async(lambda: datetime.now(UTC) > soon)
        async with app.server():
            await wait_until_async(lambda: len(collected.of("event")) == 2)
    events = {event["transaction"]: event for event in collected.of("event")}
    assert "deadline" in events["late"]["exception"]["values"][-1]["value"]
    assert events["slow"]["fingerprint"] == ["slow", "TimeoutError"]


@pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated")
@pytest.mark.parametrize("pii", [False, True])
async def test_payload_needs_send_default_pii(
    app: Qsync, collected: Collector, *, pii: bool
) -> None:
    begin(collected, send_default_pii=pii)
    sentry.instrument(app)

    @app.task(name="send", retry=0)
    async def send(invoice: int, text: str) -> None:
        raise ValueError

    async with app, app.server():
        await send.enqueue(7, "x" * 10_000)
        await wait_until_async(lambda: collected.of("event"))
    [event] = collected.of("event")
    payload = event["contexts"]["qsync"].get("payload")
    assert (payload is not None) == pii
    if payload is not None:
        assert payload.startswith("{'invoice': 7, 'text': 'xxx")
        assert len(payload) < 2100


async def test_a_trace_continues_from_the_enqueue_through_all_tasks(
    app: Qsync, collected: Collector
) -> None:
    opentelemetry.instrument(app)  # an app may have both integrations
    sentry.instrument(app)

    @app.task(name="inner")
    def inner() -> None: ...

    @app.task(name="outer")
    def outer() -> None:
        inner.enqueue_sync()

    async with app, app.server():
        with sentry_sdk.start_transaction(name="request") as request:
            await outer.options(headers={"baggage": "user=7,sentry-old=1"}).enqueue()
        await wait_until_async(lambda: len(collected.of("transaction")) == 3)
    by_name = {one["transaction"]: one for one in collected.of("transaction")}
    assert {one["contexts"]["trace"]["trace_id"] for one in by_name.values()} == {request.trace_id}
    for sender, name in (("request", "outer"), ("outer", "inner")):
        [publish] = by_name[sender]["spans"]
        assert (publish["op"], publish["description"]) == ("queue.publish", name)
        assert publish["data"]["messaging.destination.name"] == "default"
        trace = by_name[name]["contexts"]["trace"]
        assert (trace["op"], trace["status"]) == ("queue.process", "ok")
        assert trace["parent_span_id"] == publish["span_id"]
        assert trace["data"]["messaging.message.id"] == publish["data"]["messaging.message.id"]


async def test_headers_of_the_task_are_kept(app: Qsync, collected: Collector) -> None:
    sentry.instrument(app)
    seen: list[Any] = []
    app.on("completed")(lambda task: seen.append(task.headers))

    @app.task(name="t", headers={"baggage": "user=7,sentry-old=1", "mine": "x"})
    async def t() -> None: ...

    async with app, app.server():
        with sentry_sdk.start_transaction(name="request"):
            await t.enqueue()
        # The headers have no space left for the trace.
        await t.options(headers={"mine": "x" * 4000}).enqueue()
        await wait_until_async(lambda: len(seen) == 2)
    seen.sort(key=len)
    assert seen[0] == {"mine": "x" * 4000}
    assert seen[1]["mine"] == "x"
    assert seen[1]["baggage"].startswith("user=7,sentry-")
    assert "sentry-old" not in seen[1]["baggage"]


async def test_periodic_tasks_are_monitors(app: Qsync, collected: Collector) -> None:
    sentry.instrument(app)
    fails = 2

    @app.periodic(cron="*/1 * * * *", name="shop.Close:day", retry=1)
    async def close() -> None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise ValueError

    @app.task(name="other")
    async def other() -> None: ...

    async with app, app.server():
        for minute in (1, 2):  # the first tick uses up all attempts
            id = f"shop.Close:day@2026-11-24T02:0{minute}:00Z"
            await close.options(id=id).enqueue()
            await wait_until_async(lambda: len(collected.of("check_in")) == 2 * minute)  # noqa: B023 - awaited here
        await other.enqueue()
        await wait_until_async(
            lambda: "other" in [one["transaction"] for one in collected.of("transaction")]
        )
    checks = collected.of("check_in")
    assert [check["status"] for check in checks] == ["in_progress", "error", "in_progress", "ok"]
    assert [check["check_in_id"] for check in checks[::2]] == [
        check["check_in_id"] for check in checks[1::2]
    ]
    assert {check["monitor_slug"] for check in checks} == {"shop-close-day"}
    assert checks[0]["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "*/1 * * * *"}, "timezone": "UTC",
    }  # fmt: skip


def test_schedules_are_described_as_sentry_expects() -> None:
    tokyo = config_of(Cron("0 9 * * *", tz="Asia/Tokyo"))
    assert tokyo["timezone"] == "Asia/Tokyo"
    for seconds, value, unit in ((60, 1, "minute"), (7200, 2, "hour"), (86_400, 1, "day")):
        every = config_of(Every(seconds))["schedule"]
        assert every == {"type": "interval", "value": value, "unit": unit}
    assert config_of(Every(90)) is None
    assert config_of(Cron("*/10 * * * * *")) is None
    assert slug_of("shop.tasks.Report") == "shop-tasks-report"
    assert slug_of(".") == "schedule"


async def test_monitors_can_be_turned_off(app: Qsync, collected: Collector) -> None:
    sentry.instrument(app, monitors=False)

    @app.periodic(every=60, name="minutely")
    async def minutely() -> None: ...

    async with app, app.server():
        await minutely.options(id="minutely@2026-11-24T02:00:00Z").enqueue()
        await wait_until_async(lambda: collected.of("transaction"))
    assert collected.of("check_in") == []


def test_wrong_use_is_refused(app: Qsync) -> None:
    with pytest.raises(ConfigError, match="report: 'some' is neither 'all' nor 'final'"):
        sentry.instrument(app, report="some")  # type: ignore[arg-type]
    sentry.instrument(app)
    with pytest.raises(ConfigError, match="already has the extension 'sentry'"):
        sentry.instrument(app)
    with pytest.raises(ConfigError, match="app: 'shop:app' is not a Qsync"):
        sentry.instrument("shop:app")  # type: ignore[arg-type]
