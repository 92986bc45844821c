"""Handlers and middleware are checked where they are registered."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from qsync import CallNext, ConfigError, Mux, Qsync, TaskInfo


def plain(task: TaskInfo) -> None: ...
async def on_loop(task: TaskInfo) -> None: ...


async def around(task: TaskInfo, call_next: CallNext) -> Any:
    return await call_next()


class Handler:
    def __call__(self, task: TaskInfo) -> None: ...
    def method(self, task: TaskInfo) -> None: ...


class AsyncHandler:
    async def __call__(self, task: TaskInfo) -> None: ...


def with_more(what: str, task: TaskInfo, *, often: int = 1) -> None: ...


async def with_anything(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (plain, "thread"),
        (on_loop, "loop"),
        (Handler(), "thread"),
        (Handler().method, "thread"),
        (AsyncHandler(), "loop"),
        (functools.partial(with_more, "a", often=2), "thread"),
        (with_anything, "loop"),
        (print, "thread"),
    ],
)
def test_any_callable_that_takes_a_task_may_be_a_handler(function: Any, place: str) -> None:
    mux = Mux()
    assert mux.handle("t")(function) is function
    assert [handler.place for handler in mux.handlers] == [place]


def generator(task: TaskInfo) -> Iterator[int]:
    yield 1


async def async_generator(task: TaskInfo) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (5, "5 is not callable"),
        (Handler, "is a class; pass an instance of it, or a function"),
        (generator, "is a generator function, whose body would never run"),
        (async_generator, "is a generator function, whose body would never run"),
        (lambda: None, "cannot be called with the task alone; a handler is `def (task)`"),
        (with_more, "cannot be called with the task alone"),
    ],
)
def test_unusable_handler_is_refused_at_registration(function: Any, says: str) -> None:
    """With such a handler, each task of its type would fail, or complete without having done
    anything."""
    mux = Mux()
    with pytest.raises(ConfigError, match=f"^handler of 't': .*{re.escape(says)}"):
        mux.handle("t")(function)
    assert mux.types == ()


@pytest.mark.parametrize("type", [plain, 5, "", "a\nb"])
def test_invalid_type_name_is_refused_at_once(type: Any) -> None:
    """`@mux.handle` without a name would silently register nothing."""
    with pytest.raises(ConfigError, match=r"^type: .*; e\.g\. @mux.handle\(\"reindex-file\"\)$"):
        Mux().handle(type)


def test_a_type_has_one_handler() -> None:
    mux = Mux()
    mux.handle("t")(plain)
    with pytest.raises(ConfigError, match="type 't' already has a handler: plain"):
        mux.handle("t")(on_loop)


@pytest.mark.parametrize("middleware", [5, around, [plain], [on_loop], [5]])
def test_invalid_middleware_is_refused_at_every_registration(middleware: Any) -> None:
    app = Qsync("redis://localhost:1")
    for register in (
        lambda: Mux().handle("t", middleware=middleware)(plain),
        lambda: app.task(name="t", middleware=middleware)(plain),
        lambda: app.periodic(every=5, middleware=middleware)(plain),
        lambda: app.server(middleware=middleware),
    ):
        with pytest.raises(ConfigError, match=r"^middleware: .*`async def \(task, call_next\)`$"):
            register()


class GeneratorHandler:
    def __call__(self, task: TaskInfo) -> Iterator[int]:
        yield 1


def generator_around(task: TaskInfo, call_next: Any) -> Iterator[None]:
    yield


async def async_generator_around(task: TaskInfo, call_next: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "function",
    [generator_around, async_generator_around, functools.partial(generator_around)],
)
def test_generator_functions_are_refused_wherever_a_function_is_registered(function: Any) -> None:
    app = Qsync("redis://localhost:1")
    for register in (
        lambda: Mux().handle("t", middleware=[function])(plain),
        lambda: app.server(middleware=[function]),
        lambda: app.server(on_error=function),
        lambda: app.on("failed")(function),
    ):
        with pytest.raises(ConfigError, match="is a generator function, whose body would never"):
            register()
    with pytest.raises(ConfigError, match="retry_delay: "):
        Mux().handle("t", retry_delay=function)
    with pytest.raises(ConfigError, match="is a generator function, whose body would never run"):
        Mux().handle("t")(GeneratorHandler())


def test_batch_decorators_without_parentheses_are_refused() -> None:
    def insert(tasks: list[TaskInfo]) -> None: ...

    app: Any = Qsync("redis://localhost:1")
    with pytest.raises(
        ConfigError, match=r"write the decorator with parentheses, e.g. @app.batch\(\)$"
    ):
        app.batch(insert)
    with pytest.raises(ConfigError, match=r"^name: must be 1 to 256 printable characters, not 5$"):
        app.batch(5)
    mux: Any = Mux()
    with pytest.raises(ConfigError, match=r'^type: .*; e\.g\. @mux.batch\("reindex-file"\)$'):
        mux.batch(insert)


def test_middleware_of_a_handler_may_be_any_iterable() -> None:
    mux = Mux()
    mux.handle("t", middleware=iter([around]))(plain)
    assert [handler.middleware for handler in mux.handlers] == [(around,)]


def test_non_mux_is_refused() -> None:
    wrong: Any = {"default": 1}
    for make in (
        lambda: Qsync("redis://localhost:1", mux=wrong),
        lambda: Qsync("redis://localhost:1").server(wrong),
    ):
        with pytest.raises(ConfigError, match=r"^mux: \{'default': 1\} is not a Mux$"):
            make()
