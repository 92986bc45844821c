"""A call or decorator in a wrong form raises an error that shows the right form."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qsync import ConfigError, InvalidTask, Mux, Qsync, Task, TaskInfo


@pytest.fixture
def app() -> Qsync:
    return Qsync("redis://127.0.0.1:1")


def nightly() -> None: ...


def several(tasks: list[TaskInfo]) -> None: ...


@pytest.mark.parametrize("unnamed", [nightly, "0 9 * * *", 60])
def test_periodic_without_a_named_time_shows_the_form(app: Qsync, unnamed: Any) -> None:
    periodic: Any = app.periodic
    shown = "<function nightly" if unnamed is nightly else repr(unnamed)
    with pytest.raises(
        ConfigError, match=rf"periodic: {re.escape(shown)}.* without a name"
    ) as said:
        periodic(unnamed)
    assert 'write @app.periodic(cron="0 9 * * *") or @app.periodic(every=60)' in str(said.value)


def test_batch_without_parentheses_shows_the_form(app: Qsync) -> None:
    batch: Any = app.batch
    with pytest.raises(ConfigError, match=r"is a function; write .* with parentheses.*@app\.batch"):
        batch(several)
    mux: Any = Mux()
    with pytest.raises(ConfigError, match=r"type: must be .*<function several.*@mux\.batch\("):
        mux.batch(several)
    assert app.batch(name="several")(several).name == "several"


def test_task_without_parentheses_after_build_is_explained(app: Qsync) -> None:
    @app.task
    def export(tenant: str) -> None: ...

    enqueue: Any = app.client().enqueue
    for method in (export.build, export.enqueue, app.batch()(several).build):
        name = method.__self__.__name__
        with pytest.raises(
            InvalidTask, match=rf"method is not a Task; pass {name}\.build\(\.\.\.\)"
        ):
            enqueue(method)


async def test_wrong_with_statement_names_the_right_one(app: Qsync) -> None:
    client: Any = app.client()
    with pytest.raises(ConfigError, match=r"Client: use `with`, or `async with app\.async_client"):
        async with client:
            pass
    for opened in (app.async_client(), app.inspector()):
        wrong: Any = opened
        with pytest.raises(ConfigError, match="use `async with` instead of `with`"), wrong:
            pass


def test_id_that_is_too_long_is_named_with_its_length() -> None:
    with pytest.raises(
        InvalidTask, match=r"id: 'xxx.* has 129 characters, more than the maximum of 128"
    ):
        Task("t", id="x" * 129)
    assert Task("t", id="x" * 128).id == "x" * 128
