"""The program in docs/structlog.md logs the lines that the page shows."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.stores import Store, wait_until_async

PAGE = (Path(__file__).parents[2] / "docs" / "structlog.md").read_text("utf-8")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield the page's program as a module."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "structlog_shop.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    import structlog_shop

    yield structlog_shop
    del sys.modules["structlog_shop"]
    root.handlers[:], root.level = before
    structlog.reset_defaults()


async def test_lines_name_their_task(
    shop: Any, valkey: Store, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.getLogger().handlers[0]
    handler.setStream(sys.stderr)
    app = shop.Qsync(valkey.url, prefix=prefix, middleware=[shop.bind_task], log_errors="message")
    task = app.task(name="shop.send", retry=0)(shop.send.__wrapped__)
    lines: list[dict[str, Any]] = []

    def logged() -> bool:
        text = capsys.readouterr().err
        lines.extend(json.loads(line) for line in text.splitlines() if line.startswith("{"))
        return any("is dead" in line["event"] for line in lines)

    async with app, app.server():
        handle = await task.enqueue(7)
        failing = await task.enqueue(-1)
        await wait_until_async(logged)
    [sending] = [line for line in lines if line["event"] == "sending" and line["invoice"] == 7]
    known = {key: sending[key] for key in ("task_id", "task_type", "queue", "attempt", "level")}
    assert known == {
        "task_id": handle.id, "task_type": "shop.send", "queue": "default", "attempt": 1,
        "level": "info",
    }  # fmt: skip
    [shown] = re.findall(r"^```json\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert json.loads(shown).keys() == sending.keys()
    [dead] = [line for line in lines if "is dead" in line["event"]]
    assert (dead["task_id"], dead["final"], dead["level"]) == (failing.id, True, "error")
    assert dead["error_class"] == "ValueError"
