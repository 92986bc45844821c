"""Retry rules of a task: which failures are retried, and after which delays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsync import ConfigError, InvalidTask, Mux, Qsync, Retry, Task, TaskFailed, TaskInfo
from qsync.backoff import ExponentialBackoff
from qsync.retry_policy import retry_rules
from tests.support.stores import Store, wait_until_async


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix)


@pytest.mark.parametrize(
    ("error", "options", "is_final"),
    [
        (KeyError(), {}, False),
        (KeyError(), {"retry_for": (OSError,)}, True),
        (ConnectionError(), {"retry_for": OSError}, False),
        (TimeoutError(), {"retry_for": [ConnectionError, TimeoutError]}, False),
        (KeyError(), {"dont_retry_for": (LookupError,)}, True),
        (OSError(), {"dont_retry_for": (LookupError,)}, False),
        (ConnectionError(), {"retry_for": OSError, "dont_retry_for": ConnectionError}, True),
        (Retry(), {"retry_for": (OSError,)}, False),
        (Retry(), {"dont_retry_for": (Exception,)}, False),
        (KeyError(), {"retry_for": ()}, True),
    ],
)
def test_rules_say_which_errors_are_final(
    error: Exception, options: dict[str, Any], is_final: bool
) -> None:
    assert retry_rules(**options).is_final(error) is is_final


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry_for": "ValueError"}, "retry_for: 'ValueError' is not an exception class"),
        (
            {"dont_retry_for": [ValueError()]},
            "dont_retry_for: ValueError() is not an exception class",
        ),
        ({"retry_for": int}, "retry_for: <class 'int'>"),
        ({"retry_delay": lambda: 1}, "retry_delay: "),
        ({"retry_delay": ExponentialBackoff}, "retry_delay: ExponentialBackoff is a class; pass"),
    ],
)
def test_wrong_rules_are_refused_at_once(app: Qsync, options: dict[str, Any], says: str) -> None:
    async def task() -> None: ...

    with pytest.raises(ConfigError) as caught:
        app.task(name="t", **options)(task)
    assert says in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Mux().handle("t", **options)
    assert says in str(caught.value)


def test_callable_delay_is_for_the_decorator_not_for_one_task(app: Qsync) -> None:
    @app.task(name="t", retry_delay=lambda attempt, error: 1)
    async def task() -> None: ...

    with pytest.raises(InvalidTask, match="cannot be stored with a task"):
        task.options(retry_delay=lambda attempt, error: 1)
    assert task.build().retry_delay is None
    assert task.options(retry_delay=5).build().retry_delay == 5

    @app.task(name="u", retry_delay=ExponentialBackoff(first=2))
    async def other() -> None: ...

    assert other.build().retry_delay == ExponentialBackoff(first=2)


def test_task_with_rules_is_retried_or_dies(app: Qsync) -> None:
    """The task has a function for the delay, an error that is not retried, and an error that is
    retried."""
    asked: list[tuple[int, str]] = []
    runs: list[str] = []

    def delay(attempt: int, error: Exception) -> float:
        asked.append((attempt, type(error).__name__))
        return 0.01

    @app.task(
        name="t", retry=3, retention=60, retry_delay=delay, retry_for=OSError,
        dont_retry_for=(PermissionError,),
    )  # fmt: skip
    async def work(how: str) -> int:
        runs.append(how)
        if how == "connection" and runs.count(how) < 3:
            raise ConnectionError
        if how == "permission":
            raise PermissionError
        if how == "other":
            raise ValueError
        return runs.count(how)

    @app.task(name="slow", retry=3, retention=60, timeout=0.05, dont_retry_for=TimeoutError)
    async def slow() -> None:
        runs.append("slow")
        await asyncio.sleep(60)

    async def use() -> None:
        async with app, app.server():
            assert await (await work.enqueue("connection")).result(30) == 3
            for how in ("permission", "other"):
                with pytest.raises(TaskFailed):
                    await (await work.enqueue(how)).result(30)
                assert runs.count(how) == 1
            with pytest.raises(TaskFailed, match="timed out"):
                await (await slow.enqueue()).result(30)
            assert runs.count("slow") == 1

    asyncio.run(use())
    assert asked == [(1, "ConnectionError"), (2, "ConnectionError")]


@pytest.mark.parametrize("raised", [asyncio.CancelledError, GeneratorExit, SystemExit, ValueError])
@pytest.mark.parametrize("option", ["retry_delay", "backoff", "retry_for"])
def test_any_error_of_a_rule_is_logged_and_the_task_retried(
    app: Qsync, caplog: pytest.LogCaptureFixture, option: str, raised: type[BaseException]
) -> None:
    runs: list[int] = []

    def delay(attempt: int, error: Exception) -> float:
        raise raised

    class BrokenBackoff(ExponentialBackoff, frozen=True):
        def __call__(self, attempt: int, error: object = None) -> float:
            raise raised

    class BrokenMeta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise raised

    class BrokenClass(Exception, metaclass=BrokenMeta): ...

    rules: dict[str, Any] = {
        "retry_delay": {"retry_delay": delay},
        "backoff": {"retry_delay": None},
        "retry_for": {"retry_for": BrokenClass, "retry_delay": lambda attempt, error: 0},
    }

    @app.task(name="t", retry=1, retention=60, **rules[option])
    async def work() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise OSError
        return len(runs)

    async def use() -> None:
        policy: Any = BrokenBackoff() if option == "backoff" else None
        async with app, app.server(concurrency=1, retry_delay=policy):
            assert await (await work.enqueue()).result(30) == 2

    asyncio.run(use())
    name = "retry_for or dont_retry_for" if option == "retry_for" else "retry_delay"
    assert f"{name} raised {raised.__name__} at" in caplog.text


def test_handler_of_a_mux_has_rules_too(app: Qsync) -> None:
    mux = Mux()
    finals: list[bool] = []

    @mux.handle("t", dont_retry_for=ValueError)
    def handler(task: TaskInfo) -> None:
        raise ValueError

    def tell(error: BaseException, task: TaskInfo) -> None:
        finals.append(task.final)

    async def use() -> None:
        async with app, app.server(mux, on_error=tell), app.async_client() as client:
            handle = await client.enqueue(Task("t", retention=60))
            with pytest.raises(TaskFailed):
                await handle.result(30)
            await wait_until_async(lambda: bool(finals))

    asyncio.run(use())
    assert finals == [True]


def test_periodic_task_takes_rules(app: Qsync) -> None:
    @app.periodic(every=60, name="p", retry_for=OSError)
    async def tick() -> None: ...

    assert tick.handler.rules.is_final(ValueError())
    with pytest.raises(ConfigError, match="retry_for"):
        app.periodic(every=60, name="q", retry_for=OSError)(tick)


def test_periodic_task_gets_its_arguments(app: Qsync) -> None:
    runs: list[tuple[str, bool]] = []

    @app.periodic(every=0.2, name="clean-us", arguments={"region": "us", "full": True})
    @app.periodic(every=0.2, name="clean-eu", arguments={"region": "eu"})
    @app.task(name="clean")
    async def clean(region: str, full: bool = False) -> None:
        runs.append((region, full))

    async def use() -> None:
        async with app, app.server():
            await wait_until_async(lambda: {("eu", False), ("us", True)} <= set(runs))

    asyncio.run(use())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (None, "parameter 'region' gets no value; pass arguments={'region': ...}"),
        ({}, "parameter 'region' gets no value"),
        ({"region": 5}, "argument 'region'"),
        ({"region": "eu", "size": 1}, "'size'"),
        (["eu"], "arguments: ['eu'] is not a dict"),
    ],
)
def test_wrong_arguments_of_a_schedule_are_refused_at_once(
    app: Qsync, arguments: Any, says: str
) -> None:
    async def clean(region: str) -> None: ...

    with pytest.raises(ConfigError) as caught:
        app.periodic(every=60, name="clean", arguments=arguments)(clean)
    assert says in str(caught.value)


def raised(retry: Retry, error: BaseException, *, chain: str) -> Retry:
    """Raise the Retry from the error, while handling the error, or from None; return it."""
    try:
        try:
            raise error
        except BaseException as caught:
            if chain == "from":
                raise retry from caught
            if chain == "none":
                raise retry from None
            raise retry  # noqa: B904 - the case under test
    except Retry as again:
        return again


def test_text_of_a_retry_is_its_message_or_its_cause() -> None:
    boom = LookupError("no order 7")
    assert str(Retry()) == str(raised(Retry(), boom, chain="none")) == "retry"
    assert str(raised(Retry("later"), boom, chain="from")) == "later"
    for chain in ("from", "while"):
        assert str(raised(Retry(delay=2), boom, chain=chain)) == "LookupError: no order 7"
    assert str(raised(Retry(), TimeoutError(), chain="from")) == "TimeoutError"
