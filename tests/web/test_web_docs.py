"""The programs in docs/dashboard.md run, and the page describes every option."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import typer.main

from qsync import Qsync, Task, codec
from qsync.cli.main import app as command_line
from qsync.web import create_app
from tests.support.dashboard import visiting
from tests.support.stores import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dashboard.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_every_option_is_documented() -> None:
    command: Any = typer.main.get_command(command_line).commands["dashboard"]  # type: ignore[attr-defined]
    options = {name for one in command.params for name in one.opts if name != "--help"}
    assert {name for name in options if f"`{name}`" not in PAGE} == set()
    parameters = set(inspect.signature(create_app).parameters) - {"inspector"}
    assert {name for name in parameters if f"| `{name}` |" not in PAGE} == set()


def test_images_of_the_page_exist() -> None:
    for name in re.findall(r"\]\((images/[^)]*)\)", PAGE):
        assert (ROOT / "docs" / name).stat().st_size < 200_000, name


def test_dashboard_is_mounted_as_the_page_describes(valkey: Store, prefix: str) -> None:
    names: dict[str, Any] = {}
    text = (
        PROGRAMS[0].replace("redis://localhost:6379", valkey.url).replace('"shop"', f'"{prefix}"')
    )
    exec(text, names)  # noqa: S102 - the page's own program

    async def main() -> None:
        async with names["queue"].async_client() as client:
            await client.enqueue(Task("t", id="a"))
        async with names["lifespan"](names["app"]), visiting(names["app"]) as web:
            assert (await web.get("/ops/queue/")).headers["location"] == "/sign-in"
            web.cookies.set("user", "mallory")
            assert (await web.get("/ops/queue/")).status_code == 403
            web.cookies.set("user", "ann")
            page = await web.get("/ops/queue/tasks")
            assert (page.status_code, 'href="/ops/queue/dead"' in page.text) == (200, True)
            assert (await web.get("/ops/queue/static/script.js")).status_code == 200

    asyncio.run(main())
    queue: Qsync = names["queue"]
    queue.close()


def test_mask_hides_what_the_page_describes() -> None:
    names: dict[str, Any] = {}
    exec(PROGRAMS[2], names)  # noqa: S102 - the page's own program
    assert names["hide"]("pay.card", codec.encode({"card": "4111", "sum": 3})) == "sum: 3"
    assert names["hide"]("mail", b"x") == b"x"
