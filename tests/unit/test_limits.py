"""The limits of a task: how they are validated, and how arguments fill their placeholders."""

from __future__ import annotations

import asyncio
import enum
import uuid
from datetime import timedelta
from typing import Any

import pytest

from qsync import ConfigError, InvalidTask, Qsync, Task, TaskInfo
from qsync.contrib.outbox.rows import make_row
from qsync.limit import LimitRule, limit_name, limit_rule
from qsync.message import ENVELOPE_HEAD, decode_message
from qsync.new_task import new_task


@pytest.fixture
def app() -> Qsync:
    return Qsync("redis://localhost:1")


# Rules.


def test_default_burst_is_a_tenth_of_the_rate() -> None:
    assert limit_rule("x", rate=100, per=1) == LimitRule(rate=100, per_us=1_000_000, burst=10)
    assert limit_rule("x", rate=3, per=timedelta(minutes=1)).burst == 1
    assert limit_rule("x", rate=3, per=1, burst=20).burst == 20
    assert limit_rule("x", concurrency=2) == LimitRule(concurrency=2)
    both = limit_rule("x", rate=1, per=0.5, concurrency=7)
    assert (both.rate, both.per_us, both.concurrency) == (1, 500_000, 7)
    assert str(both) == "1 per 0.5 s, 1 at once; 7 at a time"
    assert limit_name("customer:42:7") == "customer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"limit 'x': pass rate= and per=, or concurrency=, or all three"),
        ({"rate": 1}, r"limit 'x': rate: 1 needs per="),
        ({"per": 1}, r"limit 'x': per: 1 needs rate="),
        ({"burst": 5, "concurrency": 1}, r"limit 'x': burst: 5 needs rate="),
        ({"concurrency": 0}, r"limit 'x': concurrency: 0 is not a whole number from 1 to 1000000"),
        ({"concurrency": 1.5}, r"concurrency: 1.5 is not a whole number"),
        ({"concurrency": True}, r"concurrency: True is not a whole number"),
        ({"rate": 0, "per": 1}, r"rate: 0 is not a whole number"),
        ({"rate": 1, "per": 0}, r"per: 0 is not between 0.001 and"),
        ({"rate": 1, "per": "1s"}, r"per: '1s' is neither a number of seconds nor a timedelta"),
        ({"rate": 1, "per": 1, "burst": 0}, r"burst: 0 is not a whole number"),
        (
            {"rate": 1000000, "per": 0.001},
            r"rate: 1000000 in 0.001 s is more than one per microsecond",
        ),
        ({"concurrency": 1, "per_queue": 1}, r"limit 'x': per_queue: 1 is not True or False"),
    ],
)
def test_wrong_rule_names_field_and_value(
    app: Qsync, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        app.limit("x", **options)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "x" * 129, 7, None, "a\0", "{a}"])
def test_wrong_name_of_a_limit_is_refused(app: Qsync, name: Any) -> None:
    with pytest.raises(ConfigError, match=r"limit: must be 1 to 128 of the characters"):
        app.limit(name, concurrency=1)


def test_limit_is_declared_once(app: Qsync) -> None:
    app.limit("x", concurrency=1)
    with pytest.raises(ConfigError, match="limit 'x': the app already has a limit with this name"):
        app.limit("x", concurrency=2)


# Limits of a Task.


def stored_limits(task: Task) -> tuple[str, ...] | None:
    new = new_task(task, b"12345678")
    options = decode_message(ENVELOPE_HEAD + bytes(8) + new.message).options
    assert (new.flow is None) == (options is None or options.limits is None)
    if new.flow is not None and options is not None:
        assert new.flow.limits == options.limits
    return None if options is None else options.limits


def test_limits_go_with_the_message() -> None:
    assert stored_limits(Task("t", limits=["stripe", "customer:{42}"])) == (
        "stripe", "customer:{42}",
    )  # fmt: skip
    assert stored_limits(Task("t", limits=("a:b:c",))) == ("a:b:c",)
    assert stored_limits(Task("t", limits=[])) is None
    assert stored_limits(Task("t", limits=["x:" + "y" * 254])) == ("x:" + "y" * 254,)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("stripe", r"limits: 'stripe' is not a list of strings"),
        ({"a"}, r"limits: {'a'} is not a list of strings"),
        (["a", "b", "c", "d", "e"], r"limits: 5 are more than the maximum of 4: \['a', 'b'"),
        (["a", 7], r"limits: 7 is not a string"),
        (["a", "b", "a"], r"limits: 'a' is listed twice"),
        ([""], r"limits: the name in '' must be"),
        (["a b"], r"limits: the name in 'a b' must be"),
        ([":42"], r"limits: the name in ':42' must be"),
        (["customer:"], r"limits: 'customer:' has no value after its colon"),
        (["customer:a\0b"], r"has unprintable characters after its colon"),
        (["customer:\ud800"], r"has unprintable characters after its colon"),
        (["x:" + "y" * 255], r"limits: 'x:yyy.* has 257 characters, over 256"),
    ],
)
def test_wrong_limits_of_a_task_name_the_value(limits: Any, message: str) -> None:
    with pytest.raises(InvalidTask, match=message):
        Task("t", limits=limits)


# Limits of a function.


class Colour(enum.Enum):
    RED = "red"


ID = uuid.UUID(int=7)


def test_arguments_and_defaults_complete_limits(app: Qsync) -> None:
    @app.task(limits=["stripe", "customer:{customer_id}-{region}"])
    def charge(info: TaskInfo, customer_id: int | str, *, region: str = "eu") -> None: ...

    @app.task(limits=["id:{id}", "colour:{colour}"])
    def paint(id: uuid.UUID, colour: Colour = Colour.RED) -> None: ...

    assert charge.build(42).limits == ["stripe", "customer:42-eu"]
    assert charge.build(customer_id="a:b", region="us").limits == ["stripe", "customer:a:b-us"]
    assert paint.build(ID).limits == [f"id:{ID}", "colour:red"]
    assert charge.options(limits=None).build(1).limits is None
    assert charge.options(limits=["x:{region}"]).build(1).limits == ["x:eu"]
    assert charge.options(delay=5).build(1).limits == ["stripe", "customer:1-eu"]


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"unique": True, "unique_key": "export:{tenant}"}, r"unique_key: 'export:\{tenant\}'"),
    ({"unique": True, "unique_key": "{tenant!r}"}, r"unique_key: '\{tenant!r\}'"),
    ({"fairness_key": "{tenant}"}, r"fairness_key: '\{tenant\}'"),
]


@pytest.mark.parametrize(("options", "message"), KEYS)
def test_key_that_looks_like_a_template_is_refused(
    app: Qsync, options: dict[str, Any], message: str
) -> None:
    def export(tenant: str = "acme") -> None: ...

    def exports(tasks: list[TaskInfo]) -> None: ...

    task = app.task(export)
    text = rf"{message}: \{{tenant\}} is not filled from the arguments; set the key for each call"
    for register in (
        lambda: app.task(name="export", **options)(export),
        lambda: app.periodic(name="export", every=60, **options)(export),
        lambda: app.periodic(every=60, **options)(task),
        lambda: app.batch(**options)(exports),
    ):
        with pytest.raises(ConfigError, match=text):
            register()
    assert not app.periodics
    assert not app.batches
    assert task.options(**options).build("acme").type == task.name  # a key of this call


def test_other_braces_in_a_key_are_literal(app: Qsync) -> None:
    @app.task(unique=True, unique_key="export:{eu}:{}", fairness_key="{")
    def export(tenant: str) -> None: ...

    assert export.build("acme").unique_key == "export:{eu}:{}"


def test_escaped_braces_are_literal(app: Qsync) -> None:
    @app.task(limits=["x:{{a}}"])
    def fixed(a: int) -> None: ...

    assert fixed.build(1).limits == ["x:{a}"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            ["c:{custmer_id}"],
            "no parameter 'custmer_id', only customer_id; did you mean 'customer_",
        ),
        (["c:{args}"], "no parameter 'args', only customer_id"),
        (["c:{info}"], "no parameter 'info'"),
        (["c:{}"], "no parameter '', only"),
        (["c:{customer_id.name}"], "no parameter 'customer_id.name'"),
        (["c:{customer_id!r}"], r"write \{customer_id\} without a conversion or a format"),
        (["c:{customer_id:>5}"], "without a conversion or a format"),
        (["c:{customer_id"], "limits: 'c:{customer_id': expected '}'"),
        (["{customer_id}"], "the name in '{customer_id}' must be"),
        ("c", "is not a list of strings"),
        (["a", "b", "c", "d", "e"], "5 are more than the maximum of 4"),
    ],
)
def test_wrong_template_is_refused_at_definition(app: Qsync, limits: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):

        @app.task(limits=limits)
        def charge(info: TaskInfo, customer_id: int, *args: int) -> None: ...


@pytest.mark.parametrize("value", [None, 1.5, True, ["a"]])
def test_argument_that_is_not_a_string_is_refused_at_the_enqueue(app: Qsync, value: Any) -> None:
    @app.task(limits=["customer:{customer_id}"])
    def charge(customer_id: Any = None) -> None: ...

    with pytest.raises(
        InvalidTask,
        match=r"argument 'customer_id' is .*, which is not a string, whole number or UUID, or an "
        "enum of these$",
    ):
        charge.build(value)


def test_limit_that_arguments_make_too_long_or_empty_is_refused(app: Qsync) -> None:
    @app.task(limits=["customer:{name}"])
    def charge(name: str) -> None: ...

    where = r"limits: 'customer:\{name\}' with name="
    with pytest.raises(InvalidTask, match=f"{where}'y+.*: 'customer:y.* has 259 characters, over"):
        charge.build("y" * 250)
    with pytest.raises(InvalidTask, match=f"{where}'': 'customer:' has no value after its colon"):
        charge.build("")
    with pytest.raises(InvalidTask, match=rf"{where}'a\\nb': 'customer:a\\nb' has unprintable"):
        charge.build("a\nb")
    assert charge.build("a:").limits == ["customer:a:"]


# Limits of an app.


def test_server_refuses_a_limit_that_is_not_declared(app: Qsync) -> None:
    app.limit("stripe", concurrency=1)

    @app.task(name="pay", limits=["stipe"])
    def pay() -> None: ...

    with pytest.raises(ConfigError) as refused:
        app.server()
    assert str(refused.value) == (
        "task 'pay': limits: the app declares no limit 'stipe', only stripe; did you mean 'stripe'?"
    )


def test_options_refuse_a_limit_that_is_not_declared(app: Qsync) -> None:
    @app.task(name="pay")
    def pay() -> None: ...

    @app.batch("mails")
    def mails(tasks: list[TaskInfo]) -> None: ...

    assert pay.options(limits=["strpe"]).build().limits == ["strpe"], "another app declares it"
    app.limit("stripe", concurrency=1)
    for task in (pay, mails):
        with pytest.raises(InvalidTask, match=r"no limit 'strpe', only .*mean 'stripe'\?"):
            task.options(limits=["strpe:7"])
        assert task.options(limits=["stripe:7"]).options(priority=9).build().limits == ["stripe:7"]


def test_limit_of_two_queues_is_refused(app: Qsync) -> None:
    app.limit("stripe", concurrency=1)

    @app.task(name="pay", limits=["stripe"])
    def pay() -> None: ...

    with pytest.raises(
        ConfigError,
        match="limit 'stripe': task 'pay' of queue 'default' and task 'refund' of queue 'money'",
    ):

        @app.task(name="refund", queue="money", limits=["stripe"])
        def refund() -> None: ...

    with pytest.raises(InvalidTask, match="of queue 'default' and task 'pay' of queue 'money'"):
        pay.options(queue="money")


def test_task_enqueued_to_another_queue_than_its_limit_counts_in_is_refused() -> None:
    app = Qsync("redis://127.0.0.1:1")  # nothing is sent
    app.limit("stripe", concurrency=1)
    app.limit("customer", concurrency=1)
    app.limit("each", concurrency=1, per_queue=True)

    @app.task(name="pay", limits=["stripe"])
    def pay() -> None: ...

    both = "limit 'stripe': task 'pay' of queue 'default' and task 'x' of queue 'money'"
    row = make_row(Task("x", limits=["customer:7", "each"]), app._connections)
    assert row.queue == "default", (
        "a limit without a function belongs to the queue of its first task"
    )
    with app.client() as client:
        for task, queue, message in [
            (Task("x", queue="money", limits=["stripe"]), None, both),
            (Task("x", limits=["stripe:a"]), "money", both),
            (pay.build(), "money", both.replace("task 'x'", "task 'pay'")),
            (Task("y", limits=["customer:8"]), "money", "task 'x' of queue 'default' and task 'y'"),
        ]:
            with pytest.raises(InvalidTask, match=message):
                client.enqueue(task, queue=queue)
        with pytest.raises(InvalidTask, match=rf"^tasks\[1\]: {both}"):
            client.enqueue_many([Task("x"), Task("x", queue="money", limits=["stripe"])])
    with pytest.raises(InvalidTask, match=both):
        make_row(Task("x", queue="money", limits=["stripe"]), app._connections)
    assert make_row(Task("x", queue="b", limits=["each", "unknown"]), app._connections).queue == "b"


def test_limit_of_two_queues_is_refused_when_it_is_declared_later(app: Qsync) -> None:
    @app.task(name="pay", limits=["stripe"])
    def pay() -> None: ...

    @app.periodic(name="tick", every=60, queue="money", limits=["stripe"])
    def tick() -> None: ...

    with pytest.raises(ConfigError, match="per_queue=True"):
        app.limit("stripe", concurrency=1)


def test_limit_per_queue_may_have_several(app: Qsync) -> None:
    app.limit("stripe", concurrency=1, per_queue=True)

    @app.task(name="pay", limits=["stripe"])
    def pay() -> None: ...

    @app.task(name="refund", queue="money", limits=["stripe"])
    def refund() -> None: ...

    assert pay.options(queue="other").build().queue == "other"
    asyncio.run(built(app))


async def built(app: Qsync) -> None:
    app.server()
