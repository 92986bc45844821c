"""Errors for mistakes that new users make. Each error says what was wrong and what to do."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from qsync import ConfigError, InvalidTask, Mux, Qsync, Task, TaskInfo
from qsync.new_task import new_task
from qsync.task_function import TaskFunction
from qsync.worker.load_app import TargetError, load

app = Qsync("redis://localhost:1")


def test_time_zone_may_be_an_object_with_a_name() -> None:
    made = Qsync("redis://localhost:1")

    @made.periodic(cron="0 9 * * *", tz=ZoneInfo("Europe/Moscow"), name="a")
    async def tick() -> None: ...

    [periodic] = made.periodics
    assert "Europe/Moscow" in str(periodic.periodic.schedule)


@pytest.mark.parametrize("tz", [UTC, 3, "Moscow", ZoneInfo.from_file])
def test_error_about_a_time_zone_without_a_name_says_what_to_pass(tz: Any) -> None:
    with pytest.raises(ConfigError, match=r'tz=.*use a name such as "Europe/Moscow"'):
        app.periodic(cron="0 9 * * *", tz=tz)


class Service:
    def method(self, number: int) -> None: ...

    @classmethod
    def of_class(cls, number: int) -> None: ...

    @staticmethod
    @app.task(name="static")
    def static(number: int) -> int:
        return number


def test_method_is_refused_with_an_alternative() -> None:
    for method in (Service.method, Service().method, Service.of_class):
        with pytest.raises(ConfigError, match=r"is a method.*function at the top of its module"):
            app.task(name="m")(method)
        with pytest.raises(ConfigError, match=r"batch: .*is a method.*function at the top"):
            app.batch(name="m", max_size=3)(method)
    with pytest.raises(ConfigError, match="is a method of class Inner; "):

        class Inner:
            @app.task
            def method(self) -> None: ...

    with pytest.raises(ConfigError, match=r"batch: .* is a method of class Other; "):

        class Other:
            @app.batch(max_size=3)
            def method(self, tasks: list[TaskInfo]) -> None: ...

    assert isinstance(Service.static, TaskFunction)
    assert Service.static(3) == 3


def test_argument_that_is_called_self_is_an_argument_like_any_other() -> None:
    @app.task(name="plain")
    def plain(number: int) -> int:
        return number

    @app.task(name="selfish")
    def selfish(self: int) -> int:
        return self

    with pytest.raises(InvalidTask, match="'self'"):
        plain.build(self=3)  # type: ignore[call-arg]  # the point
    assert selfish.build(self=3).payload == {"self": 3}
    assert selfish(self=3) == 3


def test_function_instead_of_a_task_explains_how_to_declare_one() -> None:
    @app.task(name="shown")
    def shown(number: int) -> int:
        return number

    client: Any = app.client()
    for call in (lambda: client.enqueue(shown), lambda: client.enqueue_many([shown])):
        with pytest.raises(InvalidTask, match=r"pass shown\.build\(\.\.\.\), or call"):
            call()


def test_mux_includes_only_a_mux() -> None:
    wrong: Any = app
    with pytest.raises(ConfigError, match=r"mux: .* is not a Mux"):
        Mux().include(wrong)


PROGRAM = """
from qsync import Qsync
app = Qsync("redis://localhost:1")

@app.task
def add(a: int) -> int:
    return a

print(add.name)
"""


def test_task_from_standard_input_explains_what_to_do() -> None:
    for command in (["-"], ["/dev/stdin"]):
        done = subprocess.run(
            [sys.executable, *command], input=PROGRAM, capture_output=True, text=True, check=False
        )
        assert "the program came from standard input" in done.stderr, done
        assert "@app.task(name=...)" in done.stderr


@pytest.mark.parametrize("value", [2**64, [2**70], "x\ud800", {"\ud800": 1}])
def test_value_that_msgpack_cannot_hold_is_named(value: Any) -> None:
    @app.task(name=f"t{id(value)}")
    def untyped(value): ...  # type: ignore[no-untyped-def]  # the point

    with pytest.raises(InvalidTask) as caught:
        new_task(untyped.build(value), b"nonce123")
    text = str(caught.value)
    assert "'value'" in text
    assert "pass this one as a string" in text or "not valid Unicode" in text
    with pytest.raises(InvalidTask, match=r"headers: .*not valid Unicode"):
        Task("t", headers={"a": "x\ud800"})


def test_module_with_a_mux_but_no_app_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "muxes.py").write_text("from qsync import Mux\nhandlers = Mux()\n")
    with pytest.raises(TargetError, match=r"Qsync\(mux=handlers\)"):
        load("muxes:handlers")
    with pytest.raises(TargetError, match=r"has a Mux: write app = Qsync\(mux=handlers\)"):
        load("muxes:app")
    assert Mux().types == ()
