"""The programs in docs/limits.md do what the page says."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.server import until
from tests.support.stores import Store

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def program(number: int, store: Store, prefix: str) -> Any:
    """Return a program on the page as a module that uses this store."""
    text = PROGRAMS[number].replace("redis://localhost:6379", store.url)
    module = ModuleType(f"limits_{number}")
    exec(text.replace('"shop"', repr(prefix)), vars(module))  # noqa: S102 - a page of our own
    return module


async def test_rate_limited_api_gets_no_more_calls(valkey: Store, prefix: str) -> None:
    page = program(0, valkey, prefix)
    calls: list[float] = []
    page.TooManyRequests.retry_after = 0.3

    async def call_api(invoice: int) -> str:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 3:
            raise page.TooManyRequests
        return f"paid {invoice}"

    page.call_api = call_api
    async with page.app, page.app.server(sweep=0.5, concurrency=1, prefetch=0):
        handles = [await page.charge.enqueue(number) for number in range(40)]
        results = [await handle.result(20) for handle in handles]
        assert {(await handle.info()).attempt for handle in handles} == {1}
    assert results == [f"paid {number}" for number in range(40)]
    assert calls[3] - calls[2] >= 0.28
    assert calls[-1] - calls[3] >= 0.1, "a burst of 20, then one call every 10 ms"


async def test_at_most_two_exports_of_a_customer_run_at_the_same_time(
    valkey: Store, prefix: str
) -> None:
    page = program(1, valkey, prefix)
    running: Counter[int] = Counter()
    most: Counter[int] = Counter()

    async def watch(task: Any, call_next: Any) -> Any:
        customer = task.value()["customer_id"]
        running[customer] += 1
        most[customer] = max(most[customer], running[customer])
        await asyncio.sleep(0.05)
        running[customer] -= 1
        return await call_next()

    async with page.app, page.app.server(middleware=[watch]):
        handles = [await page.export.enqueue(number % 2) for number in range(8)]
        assert await handles[0].result(20) == "orders of 0"
        await until(lambda: not running[0] and not running[1] and sum(most.values()) == 4)
        assert [await handle.result(20) for handle in handles] == [
            f"orders of {number % 2}" for number in range(8)
        ]
    assert most == {0: 2, 1: 2}


@pytest.mark.parametrize("word", ["qsync limit list mail", "qsync limit set customer:42"])
def test_commands_of_the_page_are_those_of_the_reference(word: str) -> None:
    assert word in PAGE
    reference = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    assert " ".join(word.split()[:3]) in reference
