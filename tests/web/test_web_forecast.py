"""Forecasts of a backlog, and the problems at the top of the overview."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from qsync import Task
from qsync.inspector import Pause, QueueInfo
from qsync.state import TaskState
from qsync.web import create_app
from qsync.web.forecast import Steps, forecast, problems_of
from qsync.web.problems import SHOWN_PER_KIND
from qsync.web.sampler import CHARTED_QUEUES, Figures
from tests.support.dashboard import SAME, TRACE, visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.stores import Store


def steps(*pending: int | None, seconds: float = 5.0, **last: int) -> Steps:
    """Return one interval for each number of tasks that were pending at the end of the interval.
    None stands for a missing sample. `last` replaces figures of the last interval."""
    found: list[tuple[float, Figures] | None] = [
        None if count is None else (seconds, Figures(0, 0, 0, 0, 0.0, count, 0))
        for count in pending
    ]
    if last and found[-1] is not None:
        found[-1] = (seconds, found[-1][1]._replace(**last))
    return found


def queue(pending: int, *, paused: bool = False) -> QueueInfo:
    states = dict.fromkeys(TaskState, 0) | {TaskState.PENDING: pending}
    note = Pause(by="ann", why="", at=datetime.now(UTC)) if paused else None
    return QueueInfo(
        name="mail", states=states, latency=0.0, bytes=None, paused=note, counters={}, today={},
        days=[], rate=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pending", "said"),
    [
        ([700 - 10 * n for n in range(30)], "empty in about 3 min"),
        ([12 * n for n in range(20)], "grows by 2.4/s"),
        ([1000 + n for n in range(20)], "grows by 12/min"),
        ([500] * 20, "steady"),
        ([10**9 - n for n in range(20)], "steady"),
        ([5, 6, 7], ""),  # too few samples
        ([0] * 20, ""),
        ([], ""),
        ([None] * 20, ""),
        ([None, 100, None, *[100 - 2 * n for n in range(1, 20)], None], "empty in about 2 min"),
    ],
)
def test_forecast_says_when_a_backlog_is_drained(pending: list[int | None], said: str) -> None:
    known = [count for count in pending if count is not None]
    assert forecast(steps(*pending), known[-1] if known else 0) == said


def test_old_samples_do_not_count() -> None:
    rose, falls = [10 * n for n in range(120)], [1190 - 5 * n for n in range(70)]
    assert forecast(steps(*rose, *falls), falls[-1]).startswith("empty in about")


def texts(info: QueueInfo, given: Steps) -> list[str]:
    return [problem.text for problem in problems_of(info, given)]


def test_a_growing_queue_is_a_problem_unless_it_is_small_paused_or_drains() -> None:
    grows = steps(*[100 * n for n in range(30)])
    assert texts(queue(2900), grows) == ["the backlog grows by 20/s and will not drain."]
    assert texts(queue(2900, paused=True), grows) == []
    assert texts(queue(60), steps(*range(31, 61))) == []
    assert texts(queue(2900), steps(*[5800 - 100 * n for n in range(30)])) == []
    assert texts(queue(10**6), steps(*[10**6 + n for n in range(30)])) == []


def test_deaths_and_crashes_are_problems() -> None:
    given = steps(0, 0, dead=1, crashed=3)
    assert texts(queue(0), given) == [
        "servers died 3 times in the last 5 min while running its tasks.",
    ]
    assert texts(queue(0), []) == []


async def page(app: Any, path: str) -> str:
    async with visiting(app) as client:
        return str((await client.get(path)).text)


async def test_the_overview_begins_with_the_problems(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("mail"))
        await made.serve("w", types=["mail"])
        async with create_app(made.inspector, auth="host") as app:
            await app.site.sampler.sample()
            assert "Nothing needs attention." in await page(app, "/")
            await made.dead(*[Task("mail")] * 3, error=TRACE)
            await app.site.sampler.sample()
            app.site.error_scanner.forget()
            await app.site.error_scanner.read()
            text = await page(app, "/")
            assert re.search(r"4 tasks died, .* nor acknowledged\. 1 error\. <a", text)
            await made.dead(Task("bill"), error=TRACE)
            app.site.error_scanner.forget()
            await app.site.error_scanner.read()
            assert "nor acknowledged. 2 different errors. <a" in await page(app, "/")
            assert 'href="/errors">Open' in text
            assert "Nothing needs attention." not in text
            assert "Acknowledge" not in text  # read-only
        await died_until_acknowledged(made)


async def test_queues_without_a_server_do_not_hide_dead_tasks(valkey: Store, prefix: str) -> None:
    options: dict[str, Any] = {"auth": "host", "read_only": False}
    async with bed(valkey.url, prefix) as made:
        await made.dead(Task("mail"), error=TRACE)
        for number in range(CHARTED_QUEUES):
            await made.enqueue(Task("mail"), queue=f"archive-{number}")
        await made.serve("s1", queues=["other"])
        async with create_app(made.inspector, **options) as app, visiting(app) as client:
            text = (await client.get("/")).text
    assert text.count("no running server takes its tasks.") == SHOWN_PER_KIND
    assert f"{CHARTED_QUEUES - SHOWN_PER_KIND} more problems like these." in text
    assert re.search(r"1 task died .* and was neither re-run nor acknowledged", text)
    assert "Acknowledge</button>" in text


async def test_suggested_command_serves_a_queue_whose_name_begins_with_a_hyphen(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("mail"), queue="--help")
        async with create_app(made.inspector, auth="host") as app, visiting(app) as client:
            assert "MODULE:APP --queues=--help=1<" in (await client.get("/queue?queue=--help")).text


async def died_until_acknowledged(made: Bed) -> None:
    """Dead tasks are listed as a problem until an operator acknowledges them."""
    options: dict[str, Any] = {"auth": "host", "read_only": False}
    async with create_app(made.inspector, **options) as app, visiting(app) as client:
        [until] = re.findall(r'name="until" value="(.*?)"', (await client.get("/")).text)
        await made.dead(Task("mail"), error=TRACE)  # the task dies after the page was read
        form = {"queue": "default", "until": html.unescape(until)}
        for _ in range(2):
            answer = await client.post("/dead/acknowledge", data=form, headers=SAME)
            assert answer.headers["location"] == "/"
        text = (await client.get("/")).text
        assert re.search(r"1 task died .* and was neither re-run nor acknowledged", text)
        form["until"] = "x"
        await client.post("/dead/acknowledge", data=form, headers=SAME)
        assert "Not a time: x" in (await client.get("/")).text
        info = await made.inspector.queue("default")
        assert info is not None
        assert info.died is not None
        assert (info.died.number, info.states["dead"]) == (1, 6)
        assert await made.inspector.acknowledge_dead("default") == 1
        assert "nor acknowledged" not in (await client.get("/")).text
        later = await made.inspector.queue("default")
        assert later is not None
        assert later.died is None
        await made.inspector.run_dead("default")
        await made.kill(await made.lease(), TRACE)  # the tasks die again
        again = await made.inspector.queue("default")
        assert again is not None
        assert again.died is not None
        actions = [(event.action, event.number) for event in await made.inspector.events()]
        assert actions.count(("dead.acknowledge", 5)) == 1


async def test_latency_target_and_flooding_keys_are_shown(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        flood = [Task("mail", id=f"m{n}", fairness_key="big one") for n in range(600)]
        await made.enqueue(*flood, Task("sms", id="s", fairness_key="small"), queue="mail")
        await made.enqueue(Task("t"))
        await made.serve("w", queues=("mail",), types=["mail"])
        app = create_app(made.inspector, auth="host", read_only=False)
        async with app, visiting(app) as client:

            async def say(target: str) -> str:
                form = {"queue": "mail", "target": target}
                done = await client.post("/queue/target", data=form, headers=SAME)
                return (await client.get(done.headers["location"])).text

            assert "Latency target saved." in await say("3600")
            page = (await client.get("/queue?queue=mail")).text
            assert "target 1 h" in page
            assert "sample of 500" in page
            assert "q=type%3Amail+queue%3Amail+state%3Apending" in page
            assert ">100%<" in page
            assert ">h-1</a>" in page
            assert "the target is" not in (await client.get("/")).text
            await say("0.001")
            assert "target missed:" in (await client.get("/queues")).text
            assert "the oldest pending task has waited" in (await client.get("/")).text
            assert "is not a number of seconds" in await say("soon")
            assert "is not a number of seconds" in await say("-1")
            await say("")
            assert "target missed" not in (await client.get("/queues")).text
        composition = await made.inspector.composition("mail")
        assert (composition.pending, composition.sampled) == (601, 500)
        assert composition.types == {"mail": 499, "sms": 1}
        assert (await made.inspector.composition("none")).sampled == 0
        assert (await made.inspector.set_latency_target("none", 5)).outcome == "not_found"
