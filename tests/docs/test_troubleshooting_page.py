"""Each command in docs/troubleshooting.md runs and prints the output that the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from qsync import Task
from tests.support.cli import living
from tests.support.stores import Store, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text("utf-8")
WAITING, RUNNING = "q0PvXpLNd-B7mXyFPzZ6cF", "75WuI04GoXXKOPagrAzW_u"
COMMANDS = re.findall(r"^\$ qsync (.*)$", PAGE, re.MULTILINE)
WITHIN_TEXT = re.findall(r"`qsync ([^`]*)`", PAGE)
REFERENCE = set(
    re.findall(r"^#+ qsync (.*)$", (Path(__file__).parents[2] / "docs/cli.md").read_text(), re.M)
)


def test_commands_of_the_page_run_with_the_described_output(valkey: Store, prefix: str) -> None:
    assert len(COMMANDS) >= 14
    with living(valkey.url, prefix) as live:
        live.serve(queues=["default"], concurrency=1)
        live.enqueue(Task("hold", id=RUNNING, timeout=60))
        wait_until(lambda: live.began == [RUNNING])
        wait_until(lambda: "1/1 " in live.ok("server", "list").out)  # the next heartbeat shows it
        live.enqueue(Task("send", id=WAITING, queue="mail"))
        outputs = {}
        for command in COMMANDS:
            ran = live.run(*shlex.split(command))
            assert ran.code in ((0, 1) if command == "doctor" else (0,)), (command, ran.err)
            outputs[command] = ran.out
    assert "mail: no running server takes its tasks; start one" in outputs["stats"]
    assert RUNNING in outputs["server list --tasks"]
    assert "no running server" in outputs[f"task explain {WAITING}"].lower()
    assert "await live.released.wait()" in outputs[f"task show {RUNNING} --stack"]


def test_commands_within_the_text_are_those_of_the_reference() -> None:
    for command in WITHIN_TEXT:
        words = command.split()
        assert {words[0], " ".join(words[:2])} & REFERENCE, command
