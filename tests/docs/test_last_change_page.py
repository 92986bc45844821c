"""The programs in docs/last-change.md do what the page says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.server import until
from tests.support.stores import Store

PAGE = (Path(__file__).parents[2] / "docs" / "last-change.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def program(number: int, store: Store, prefix: str) -> Any:
    """Return a program on the page as a module that uses this store."""
    text = PROGRAMS[number].replace("redis://localhost:6379", store.url)
    text = text.replace("debounce=5, debounce_max=60", "debounce=0.2, debounce_max=5")
    module = ModuleType(f"last_change_{number}")
    exec(text.replace('"shop"', repr(prefix)), vars(module))  # noqa: S102 - a page of our own
    return module


async def test_only_the_last_change_is_indexed(valkey: Store, prefix: str) -> None:
    page = program(0, valkey, prefix)
    runs: list[str] = []
    running, go_on = asyncio.Event(), asyncio.Event()

    async def watch(task: Any, call_next: Any) -> Any:
        runs.append(task.value()["text"])
        running.set()
        if len(runs) == 1:
            await go_on.wait()
        return await call_next()

    async with page.app, page.app.server(middleware=[watch]):
        for text in ("a", "ab", "abc"):
            await page.save(7, text)
        await asyncio.wait_for(running.wait(), 20)
        assert runs == ["abc"]
        for text in ("abcd", "abcde"):
            await page.save(7, text)
        assert page.index == {}, "the first run continues"
        go_on.set()
        await until(lambda: page.index == {7: "abcde"})
    assert runs == ["abc", "abcde"]


async def test_last_change_survives_a_failure_of_the_previous_run(
    valkey: Store, prefix: str
) -> None:
    page = program(0, valkey, prefix)
    attempts: list[tuple[str, int]] = []
    running, fail = asyncio.Event(), asyncio.Event()

    async def watch(task: Any, call_next: Any) -> Any:
        attempts.append((task.value()["text"], task.attempt))
        running.set()
        if task.value()["text"] == "old":
            await fail.wait()
            raise ValueError
        return await call_next()

    async with page.app, page.app.server(middleware=[watch]):
        await page.save(7, "old")
        await asyncio.wait_for(running.wait(), 20)
        await page.save(7, "new")
        fail.set()
        await until(lambda: page.index == {7: "new"})
    assert attempts == [("old", 1), ("new", 1)]


async def test_reminder_is_postponed(valkey: Store, prefix: str) -> None:
    page = program(1, valkey, prefix)
    async with page.app:
        await page.remind(7, 60)
        await page.remind(7, 3600)
        async with page.app.inspector() as inspector:
            [row] = (await inspector.tasks("default", "scheduled")).tasks
            assert row.due_at is not None
            assert row.enqueued_at is not None
            assert 3500 < (row.due_at - row.enqueued_at).total_seconds() < 3700


async def test_export_with_a_higher_priority_runs_first(valkey: Store, prefix: str) -> None:
    page = program(2, valkey, prefix)
    ran: list[int] = []

    async def watch(task: Any, call_next: Any) -> Any:
        ran.append(task.value()["customer"])
        return await call_next()

    async with page.app:
        await page.enqueue_all(1, 2)
        async with page.app.server(middleware=[watch], concurrency=1, prefetch=0):
            await until(lambda: len(ran) == 2)
    assert ran == [1, 2]
