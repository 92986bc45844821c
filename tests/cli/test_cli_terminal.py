"""At a terminal, commands ask before they destroy data, refresh their output and use colours, and
shells complete the words of commands."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Self

import pytest
from typer.testing import CliRunner

from qsync import Task
from qsync.cli import completion
from qsync.cli.main import app as command_line
from tests.support.cli import Live, living
from tests.support.stores import Cluster, Store, wait_until

QSYNC: Final = str(Path(sys.executable).with_name("qsync"))


class Terminal:
    """A command that runs in a terminal with 100 columns and 30 rows."""

    def __init__(self, live: Live, *words: str) -> None:
        self._main, self._other = pty.openpty()
        termios.tcsetwinsize(self._other, (30, 100))
        self.before = termios.tcgetattr(self._other)
        self.seen = self.raw = ""
        """Output so far; `seen` leaves out colours and cursor movements."""
        self.process = subprocess.Popen(
            [QSYNC, *words],
            stdin=self._other,
            stdout=self._other,
            stderr=self._other,
            start_new_session=True,
            env={**environment(live), "TERM": "xterm-256color"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self._other)

    def shows(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Wait until the output matches the pattern."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, (pattern, self.seen)
            self._read(0.1)
        return found

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def interrupted(self) -> int:
        """Press Ctrl-C at a prompt, once per second; return the exit code.

        A signal that arrives just before Python reads a line is deferred until the next signal.
        """
        end = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen
            self.interrupt()
            again = time.monotonic() + 1
            while self.process.poll() is None and time.monotonic() < again:
                self._read(0.05)
        return self.ends()

    def ends(self) -> int:
        """Read the rest of the output; return the exit code."""
        end = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen
            self._read(0.05)
        self._read(0.1)
        assert termios.tcgetattr(self._other) == self.before, "the terminal's settings are restored"
        return self.process.returncode

    def _read(self, patience: float) -> None:
        while select.select([self._main], [], [], patience)[0]:
            written = os.read(self._main, 65536).decode(errors="replace")
            self.raw += written
            self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
            patience = 0


def environment(live: Live) -> dict[str, str]:
    return {**os.environ, "QSYNC_URL": live.url, "QSYNC_PREFIX": live.prefix}


@pytest.fixture(params=["valkey", "cluster"])
def live(request: pytest.FixtureRequest, prefix: str) -> Iterator[Live]:
    with living(request.getfixturevalue(request.param).url, prefix) as live:
        yield live


def dead(live: Live) -> None:
    live.serve()
    live.enqueue(*(Task("bill", b"1", id=f"d{n}", retry=0) for n in range(3)))
    for n in range(3):
        live.reaches(f"d{n}", "dead")


QUESTIONS: Final = {
    "purge": (["queue", "purge", "default", "-s", "dead"], r"Delete 3 dead tasks of queue default"),
    "dead": (["dead", "delete", "--all"], "Delete 3 dead tasks"),
    "task": (["task", "delete", "d0", "d1", "d2"], "Delete tasks d0, d1, d2"),
}


@pytest.mark.parametrize(("words", "question"), QUESTIONS.values(), ids=QUESTIONS)
def test_destructive_command_asks_first(
    valkey: Store, prefix: str, words: list[str], question: str
) -> None:
    with living(valkey.url, prefix) as live:
        dead(live)
        with Terminal(live, *words) as terminal:
            terminal.shows(rf"{question}\? \[y/N\]")
            terminal.type("\r")
            assert terminal.ends() == 1
            assert "Nothing was changed." in terminal.seen
        with Terminal(live, *words) as terminal:
            terminal.shows(question)
            assert terminal.interrupted() == 130
            assert "Traceback" not in terminal.seen
            assert "Nothing was changed." in terminal.seen
        with Terminal(live, *words) as terminal:
            terminal.shows(question)
            terminal.type("\x04")  # Ctrl-D
            assert terminal.ends() == 1
            assert "Nothing was changed." in terminal.seen
        assert [live.state(f"d{n}") for n in range(3)] == ["dead"] * 3
        with Terminal(live, *words) as terminal:
            terminal.shows(question)
            terminal.type("y\r")
            assert terminal.ends() == 0
        assert [live.state(f"d{n}") for n in range(3)] == [None] * 3


def test_top_follows_until_q_is_pressed(live: Live) -> None:
    live.enqueue(*[Task("note")] * 5)
    with Terminal(live, "top", "--interval", "0.2") as terminal:
        terminal.shows(r"default +5 ")
        live.enqueue(*[Task("note")] * 4)
        terminal.shows(r"default +9 ")
        live.serve()
        terminal.shows(r"default +0 ")
        assert "QUEUE v" in terminal.seen
        terminal.type(">")
        terminal.shows("PENDING v")
        terminal.type("<<")
        terminal.shows("FAIL/S v")
        terminal.type("q")
        assert terminal.ends() == 0
        assert "\x1b[?1049l" in terminal.raw, "the previous screen is restored"
    with Terminal(live, "top", "--interval", "0.2") as terminal:
        terminal.shows("qsync top")
        terminal.interrupt()
        assert terminal.ends() == 0
        assert "Traceback" not in terminal.seen


def test_top_continues_after_an_outage_of_the_store(own_store: Store, prefix: str) -> None:
    with living(own_store.url, prefix) as live:
        live.enqueue(*[Task("note")] * 5)
        with Terminal(live, "top", "--interval", "0.2") as terminal:
            terminal.shows(r"default +5 ")
            own_store.kill()
            terminal.shows("refused|not available|cannot")
            terminal.seen = ""
            own_store.restart()
            terminal.shows(r"default +5 ")
            terminal.type("q")
            assert terminal.ends() == 0


def test_colours_are_printed_to_terminals_only(live: Live) -> None:
    dead(live)
    with Terminal(live, "queue", "list") as terminal:
        assert terminal.ends() == 0
        assert "\x1b[" in terminal.raw
    piped = subprocess.run(
        [QSYNC, "queue", "list"], env=environment(live), capture_output=True, text=True, check=True
    )
    assert "\x1b" not in piped.stdout


def completed(live: Live, line: str, shell: str = "bash") -> list[str]:
    """Return the shell's completions for the last word of a command line."""
    variables = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    asked = {
        "QSYNC_URL": live.url, "QSYNC_PREFIX": live.prefix,
        "_QSYNC_COMPLETE": f"complete_{shell}", **variables,
    }  # fmt: skip
    found = CliRunner().invoke(
        command_line, [], env=asked, prog_name="qsync", catch_exceptions=False
    )
    assert found.stderr == ""
    return [line for line in found.stdout.splitlines() if line]


def test_output_that_cannot_be_written_is_one_line(live: Live) -> None:
    command = f"{QSYNC} stats >/dev/full; echo $?; {QSYNC} stats >&-; echo $?"
    ran = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(live),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["1", "0"]
    line = "qsync stats: cannot write to standard output: No space left on device\n"
    assert ran.stderr == line


def test_names_in_the_store_are_completed(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "STORE_TIMEOUT_S", 20.0)  # long enough for a busy machine
    server = live.serve(queues={"mail": 1, "default": 1}, server_id="server-1")
    live.app.periodic(cron="0 3 * * *", name="night")(_night)
    live.serve(server_id="other-2")
    live.enqueue(Task("note", delay=600))
    wait_until(lambda: live.do(live.inspector.schedules()))
    assert completed(live, "qsync queue pause ma") == ["mail"]
    assert completed(live, "qsync task list --queue d") == ["default"]
    assert completed(live, "qsync stats ") == ["default", "mail"]
    assert completed(live, "qsync server stop s") == [server.id]
    assert completed(live, "qsync schedule trigger ni") == ["night"]
    assert completed(live, "qsync task list --state sch") == ["scheduled"]
    assert completed(live, "qsync sch") == ["schedule"]
    asked = {**environment(live), "_QSYNC_COMPLETE": "complete_bash", "COMP_WORDS": "qsync stats m",
             "COMP_CWORD": "2"}  # fmt: skip
    command = partial(subprocess.run, [QSYNC], env=asked, capture_output=True, check=False)
    wait_until(lambda: command().stdout == b"mail\n", timeout=30)
    for shell in ("zsh", "fish"):
        assert "mail" in "".join(completed(live, "qsync queue pause ma", shell))


async def _night() -> None: ...


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_each_shell(shell: str) -> None:
    asked = {**os.environ, "_QSYNC_COMPLETE": f"source_{shell}"}
    shown = subprocess.run([QSYNC], env=asked, capture_output=True, text=True, check=True).stdout
    assert f"_QSYNC_COMPLETE=complete_{shell}" in shown


def test_completion_without_a_store_prints_nothing(cluster: Cluster) -> None:
    with living(cluster.url, "none") as live:
        live.url = "redis://127.0.0.1:1"
        started = time.monotonic()
        assert completed(live, "qsync queue pause ma") == []
        assert time.monotonic() - started < 10
        live.url = "nonsense"
        assert completed(live, "qsync queue pause ma") == []


def test_command_imports_nothing_of_the_other_commands() -> None:
    program = (
        "import sys; from qsync.cli.main import main; sys.argv = ['qsync', 'stats', '--help'];"
        "import atexit; atexit.register(lambda: print('modules:', *sys.modules)); main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "Usage: qsync stats" in shown
    modules = shown.partition("modules:")[2].split()
    assert "qsync.cli.stats" in modules
    assert not {"qsync.cli.worker", "qsync.cli.task", "qsync.server.server"} & {*modules}


def test_command_with_valid_options_does_not_import_pydantic() -> None:
    """From 0.29 on, typer converts values with pydantic, whose import takes a third of a short
    command's time."""
    program = (
        "import sys; from qsync.cli.main import main; sys.argv = ['qsync', *sys.argv[1:]];"
        "import atexit; atexit.register(lambda: print('pydantic' in sys.modules)); main()"
    )
    arguments = ["stats", "a", "b", "--url", "redis://127.0.0.1:1", "-o", "json", "--sort"]
    for column, imports, code in (("pending", "False", 3), ("nonsense", "True", 2)):
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments, column],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout.split()[-1]) == (code, imports), ended.stderr
