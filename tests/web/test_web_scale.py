"""With a million tasks, every page of the dashboard is fast and no script in the store runs for
long."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import httpx
import pytest

from qsync import Task
from qsync.web import create_app
from tests.guarantees.probes import slow_scripts
from tests.inspector.test_inspector_scale import fill
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import bed
from tests.support.ping_probe import run_at_once
from tests.support.stores import Store, wait_until
from tests.support.web_process import WebProcess

PAGES = (
    "/", "/queues", "/queue?queue=default", "/tasks?queue=default&state=pending",
    "/tasks?queue=default&state=pending&limit=1e9", "/tasks?queue=default&state=pending&type=none",
    "/tasks?queue=default&state=active", "/dead?queue=default&limit=1e9",
    "/dead?queue=default&error=no+luck", "/dead?queue=default&error=none&age=1d", "/task?id=p5000",
    "/task?id=d100", "/find?id=p5000", "/servers", "/server?id=w", "/schedules", "/events",
    "/types", "/types?period=7d", "/type?type=t&period=90d",
    "/metrics", "/health", "/queue?queue=default&days=1e9",
)  # fmt: skip

FORMS: dict[str, dict[str, object]] = {
    "/queue/pause": {"queue": "default"},
    "/queue/resume": {"queue": "default"},
    "/task/run": {"id": "d4999", "queue": "default"},
    "/task/cancel": {"id": "p9000", "queue": "default"},
    "/task/delete": {"id": "p9001", "queue": "default", "sure": "yes"},
    "/dead/run": {"queue": "default", "id-ticked": [f"d{n}" for n in range(100)]},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_page_is_fast_beside_a_million_tasks(prefix: str) -> None:
    """With 1,000,000 pending and 100,000 dead tasks, a page takes under 300 ms and no script takes
    over 10 ms."""

    async def look(store: Store) -> dict[str, float]:
        took = {}
        async with bed(store.url, prefix) as made:
            app = create_app(made.inspector, auth="host", read_only=False)
            async with app, visiting(app) as client:
                await client.get("/")  # the first request compiles templates
                for path in PAGES:
                    await client.get(path)
                    began = time.perf_counter()
                    answer = await client.get(path)
                    took[path] = 1000 * (time.perf_counter() - began)
                    assert answer.status_code in (200, 303), path
                for path, form in FORMS.items():
                    began = time.perf_counter()
                    answer = await client.post(path, data=form, headers=SAME)
                    took[path] = 1000 * (time.perf_counter() - began)
                    assert answer.status_code == 303, path
        return took

    async def work(store: Store) -> float:
        """Purge many tasks; return the duration of the longest request, in seconds."""
        longest = 0.0
        async with bed(store.url, prefix) as made:
            app = create_app(made.inspector, auth="host", read_only=False)
            async with app, visiting(app) as client:
                path, form = "/queue/purge", {"queue": "default", "state": "pending", "sure": "yes"}
                for _ in range(3):
                    began = time.perf_counter()
                    answer = await client.post(path, data=form, headers=SAME)
                    longest = max(longest, time.perf_counter() - began)
                    assert answer.headers["location"].startswith("/more?"), answer.headers
                    page = await client.get(answer.headers["location"])
                    assert "There are more" in page.text
                    cursor = page.text.partition('name="cursor" value="')[2].partition('"')[0]
                    form["cursor"] = cursor
        return longest

    with Store("valkey") as store:
        run_at_once(store.pid)
        asyncio.run(fill(store.url, prefix, pending=1_000_000, dead=100_000))
        with store.client() as client:
            client.config_set("slowlog-log-slower-than", 10_000)
            client.slowlog_reset()
        took = asyncio.run(look(store))
        print({path: round(ms, 1) for path, ms in took.items()})  # noqa: T201 - shown with -s, and when it fails
        assert slow_scripts(store) == {}
        assert max(took.values()) < 300, took
        longest = asyncio.run(work(store))
        print(f"the longest request of a purge took {longest:.2f} s")  # noqa: T201 - as above
        assert longest < 2
        assert slow_scripts(store) == {}


TABS = 20
REFRESH_S = 5
WATCHED_S = 30.0
ERRORS = 50


async def fill_with_errors(url: str, prefix: str, *, pending: int, dead: int) -> None:
    """Enqueue pending tasks, and add dead tasks that have 50 different errors."""
    await fill(url, prefix, pending=pending, dead=0)
    async with bed(url, prefix) as made:
        for number in range(ERRORS):
            error = f'ValueError: {"x" * number}\n\n  File "a.py", line {number}, in f'
            tasks = [Task(f"type-{number}")] * (dead // ERRORS)
            await made.dead(*tasks, error=error, queue="failed")


async def watch(url: str, seconds: float) -> tuple[int, float]:
    """Refresh 20 tabs with the overview or the errors; return the number of requests and the
    duration of the longest request, in ms."""
    numbers: list[float] = []

    async def tab(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            await asyncio.sleep(REFRESH_S * number / TABS)
            while time.monotonic() < end:
                began = time.monotonic()
                answer = await client.get("/errors" if number % 4 == 0 else "/")
                numbers.append(1000 * (time.monotonic() - began))
                assert answer.status_code == 200
                await asyncio.sleep(REFRESH_S)

    end = time.monotonic() + seconds
    await asyncio.gather(*[tab(number) for number in range(TABS)])
    return len(numbers), max(numbers)


def seconds_of(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_tabs_cost_little_beside_a_million_tasks(prefix: str, tmp_path: Path) -> None:
    """With 1,000,000 pending tasks and 100,000 dead tasks with 50 errors, 20 tabs take under 5 % of
    a core and no script takes over 10 ms."""
    tabs_beside(prefix, tmp_path, pending=1_000_000, dead=100_000)


def tabs_beside(prefix: str, folder: Path, *, pending: int, dead: int) -> None:
    """Measure a dashboard in its own process, after its scan of errors has ended."""
    with Store("valkey") as store:
        run_at_once(store.pid)
        asyncio.run(fill_with_errors(store.url, prefix, pending=pending, dead=dead))
        with store.client() as client:
            client.config_set("slowlog-log-slower-than", 10_000)
            client.slowlog_reset()
        words = ("qsync", "dashboard", "--port", "{port}", "--prefix", prefix)
        with WebProcess(folder, folder / "log", *words, QSYNC_URL=store.url) as web:
            web.wait_ready()

            def is_scanned() -> bool:
                answer = web.get("/errors")
                return answer is not None and "updates by itself" not in answer.text

            wait_until(is_scanned, 300)
            before, of_store = seconds_of(web.process.pid), seconds_of(store.pid)
            requests, longest = asyncio.run(watch(web.url, WATCHED_S))
            used = (seconds_of(web.process.pid) - before) / WATCHED_S
            store_used = (seconds_of(store.pid) - of_store) / WATCHED_S
        print(  # noqa: T201 - shown with -s, and when it fails
            f"{requests} requests, the longest {longest:.0f} ms; {100 * used:.1f} % of a core, "
            f"the store {100 * store_used:.1f} %"
        )
        assert slow_scripts(store) == {}
        assert used < 0.05
        assert longest < 300
