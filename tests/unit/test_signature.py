"""Arguments are encoded as a payload and decoded unchanged. Errors name the arguments that cannot
be encoded."""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from qsync import codec
from qsync.errors import ConfigError, InvalidTask, QsyncError
from qsync.message import Result
from qsync.new_task import new_task
from qsync.signature import Signature
from qsync.task import Task, TaskInfo, TaskStatus

if TYPE_CHECKING:
    from fractions import Fraction


def sent(payload: object) -> TaskInfo:
    """Return the task as a server decodes it."""
    packed = codec.encode(payload)
    assert packed in new_task(Task("t", payload), b"nonce123").message
    return info(packed)


def info(payload: bytes, *, is_value: bool = True) -> TaskInfo:
    return TaskInfo(
        id="1", type="t", payload=payload, queue="default", retry=3, attempt=1, crashes=0,
        enqueued_at_us=0, is_value=is_value,
    )  # fmt: skip


def through(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function with arguments that have been through the store."""
    signature = Signature("t", function)
    given, named = signature.arguments(sent(signature.bind(args, kwargs)))
    return function(*given, **named)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str


class Struct(msgspec.Struct):
    at: datetime
    colour: Colour


@dataclass
class Data:
    number: Decimal
    path: Path | None = None


@attrs.define
class Attrs:
    names: set[str]


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    size: int = pydantic.Field(alias="theSize", gt=0)
    link: pydantic.HttpUrl | None = None
    where: Path = Path("/")
    raw: bytes = b""
    at: datetime | None = None
    ids: set[UUID] = set()

    @pydantic.computed_field
    def double(self) -> int:
        return self.size * 2


@dataclass
class Holder:
    model: Model


UserId = NewType("UserId", int)
Positive = Annotated[int, msgspec.Meta(gt=0)]
NOW = datetime(2026, 11, 24, 2, 0, 0, 123456, tzinfo=UTC)
ONE = UUID("12345678123456781234567812345678")
MODEL = Model(
    theSize=3, link=pydantic.HttpUrl("https://example.org/"), where=Path("/a"), raw=b"\xff", at=NOW,
    ids={ONE},
)  # fmt: skip


MSGSPEC = tuple(int(part) for part in msgspec.__version__.split(".")[:2])

# Annotations and values that must come back equal and of the same type.
ROUND_TRIPS: list[tuple[Any, Any]] = [
    (int, 5),
    (float, 1.5),
    (str, "text"),
    (bytes, b"\x00\xff"),
    (bool, True),
    (None, None),
    (datetime, NOW),
    (date, NOW.date()),
    (timedelta, timedelta(days=1, microseconds=1)),
    (UUID, ONE),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (Point, Point(1, 2)),
    (Movie, {"title": "t"}),
    (Struct, Struct(NOW, Colour.RED)),
    (Data, Data(Decimal("1.0"), Path("/srv"))),
    (Attrs, Attrs({"a", "b"})),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (tuple[UUID, ...], (ONE, ONE)),
    (dict[int, list[Struct]], {1: [Struct(NOW, Colour.RED)]}),
    *([(Literal["a", 1], 1)] if MSGSPEC >= (0, 22) else []),  # older msgspec rejects mixed types
    (UserId, 7),
    (Positive, 7),
    (int | str | None, "x"),
    (Path, Path("/srv/x")),
    (PurePosixPath | None, PurePosixPath("a/b")),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("127.0.0.1")),
    (dict[str, ipaddress.IPv6Network], {"a": ipaddress.IPv6Network("fe80::/64")}),
    (object, [1, "a"]),
    (list[object], [1, "a"]),
    (Any, {"a": [1, None]}),
    (Model, MODEL),
    (Model | None, MODEL),
    (Model | int, 5),
    (list[Model], [MODEL, MODEL]),
    (dict[str, tuple[Model, ...]], {"a": (MODEL,)}),
    (Holder, Holder(MODEL)),
    (Annotated[int, pydantic.Field(gt=3)], 4),
    (pydantic.PositiveInt, 4),
    (pydantic.HttpUrl, pydantic.HttpUrl("https://example.org/")),
]


@pytest.mark.parametrize(
    ("annotation", "value"), ROUND_TRIPS, ids=[str(one[0])[:40] for one in ROUND_TRIPS]
)
def test_arguments_round_trip_unchanged(annotation: Any, value: Any) -> None:
    """A value of an annotated type keeps its value and type as an argument and as a result."""

    def function(it):  # type: ignore[no-untyped-def]  # annotated below
        return it

    function.__annotations__ = {"it": annotation, "return": annotation}
    signature = Signature("t", function)
    [got], _ = signature.arguments(sent(signature.bind([value], {})))
    assert got == value
    assert type(got) is type(value)
    record = Result(value, False) if type(value) is bytes else Result(codec.encode(value))
    result = signature.result_of(record)
    assert result == value
    assert type(result) is type(value)


def everything(
    a: int, /, b: str, c: float = 0.5, *rest: UUID, d: set[int], e: int = 5, **more: Colour
) -> Any:
    return a, b, c, rest, d, e, more


def test_all_kinds_of_parameters_are_carried() -> None:
    """Positional-only and keyword-only parameters, defaults, *args and **kwargs get their
    arguments."""
    assert through(everything, 1, "b", d={1}) == (1, "b", 0.5, (), {1}, 5, {})
    assert through(everything, 1, d={1}, b="b", e=6) == (1, "b", 0.5, (), {1}, 6, {})
    everywhere = (1, "b", 2.5, ONE, ONE)
    assert through(everything, *everywhere, d={2}, red=Colour.RED, other=Colour.RED) == (
        1, "b", 2.5, (ONE, ONE), {2}, 5, {"red": Colour.RED, "other": Colour.RED},
    )  # fmt: skip


def test_defaults_are_those_of_the_server() -> None:
    """A default in a later version of the function applies to tasks that were enqueued before."""

    def before(a: int, b: int = 1, *rest: int, c: int = 2) -> None: ...

    def after(a: int, b: int = 10, *rest: int, c: int = 20, d: int = 30) -> None: ...

    payload = Signature("t", before).bind([1], {})
    assert payload == {"a": 1}
    assert Signature("t", after).arguments(sent(payload)) == ([1, 10], {})


def test_the_payload_is_plain_data_by_name() -> None:
    """The payload contains names and values, so that programs in other languages can write it."""
    signature = Signature("t", everything)
    payload = signature.bind([1, "b", 2.5, ONE], {"d": {1}, "red": Colour.RED})
    assert payload == {"a": 1, "b": "b", "c": 2.5, "rest": [ONE], "d": [1], "red": "red"}
    assert codec.decode(codec.encode(payload))["rest"] == [str(ONE)]


def test_payload_of_another_program_is_accepted() -> None:
    """A payload that another program encodes in msgpack is accepted, and so is an empty payload if
    no argument is required."""

    def function(a: int = 1) -> None: ...

    signature = Signature("t", function)
    assert signature.arguments(info(b"", is_value=False)) == ([1], {})
    assert signature.arguments(info(codec.encode({"a": 2}), is_value=False)) == ([2], {})


def test_task_info_is_injected_as_first() -> None:
    """The server passes TaskInfo to the first parameter with this annotation; callers do not see
    the parameter."""

    def function(task: TaskInfo, /, a: int, **more: int) -> Any:
        return task.id, a, more

    signature = Signature("t", function)
    assert signature.takes_info
    assert signature.bind([5], {"b": 6}) == {"a": 5, "b": 6}
    assert through(function, 5, b=6) == ("1", 5, {"b": 6})
    with pytest.raises(InvalidTask, match="'task' is the name of another parameter"):
        signature.bind([5], {"task": 6})


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "'a'"),
        ((1,), {"d": {1}}, "'b'"),
        ((1, "b"), {}, "'d'"),
        ((1, "b"), {"b": "c", "d": {1}}, "'b'"),
        ((1, "b"), {"d": {1}, "rest": 1}, "'rest' is the name of another parameter"),
        ((1, "b"), {"d": {1}, "a": 1}, "'a'"),
        ((1, 1j), {"d": {1}}, "argument 'b': a value of type complex cannot be encoded"),
        ((1, "b"), {"d": {1}, "red": iter([])}, "argument 'red'"),
    ],
)
def test_a_call_that_does_not_bind_names_the_parameter(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidTask, match=re.escape(says)):
        Signature("t", everything).bind(args, kwargs)


def test_call_with_too_many_arguments_is_refused() -> None:
    def function(a: int) -> None: ...

    signature = Signature("mod.function", function)
    with pytest.raises(InvalidTask, match=r"^task 'mod\.function': too many .* it takes \(a\)$"):
        signature.bind([1, 2], {})
    with pytest.raises(InvalidTask, match="'b'"):
        signature.bind([1], {"b": 2})
    says = (
        r"'delay' is an option, not a parameter; use function.options\(delay=...\).enqueue\(...\)"
    )
    with pytest.raises(InvalidTask, match=says):
        signature.bind([1], {"delay": 60})


def checked(
    count: int = 0,
    names: list[str] | None = None,
    model: Model | None = None,
    holder: Holder | None = None,
    where: Path | None = None,
    *rest: int,
    **more: bool,
) -> None: ...


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"count": "1"}, "argument 'count': Expected `int`, got `str`"),
        ({"count": 1.0}, "argument 'count': Expected `int`, got `float`"),
        ({"count": None}, "argument 'count': Expected `int`, got `None`"),
        ({"names": ["a", 1]}, "argument 'names': Expected `str`, got `int` - at `$[1]`"),
        ({"model": {"theSize": -1}}, "argument 'model': theSize: Input should be greater than 0"),
        ({"model": {"theSize": 1, "colour": 1}}, "argument 'model': ...: Extra inputs"),
        ({"holder": {"model": {}}}, "argument 'holder': "),
        ({"where": 1}, "argument 'where': "),
        ({"rest": 1}, "argument 'rest': Expected `array`, got `int`"),
        ({"rest": [1, "2"]}, "argument 'rest': Expected `int`, got `str` - at `$[1]`"),
        ({"extra": 1}, "an argument of **more: Expected `bool`, got `int`"),
        ([1], "not a map of its arguments"),
        ({1: 1}, "not a map of its arguments"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_parameter(payload: Any, says: str) -> None:
    with pytest.raises(InvalidTask, match=re.escape(says)):
        Signature("t", checked).arguments(sent(payload))


@pytest.mark.parametrize("raw", [b"\xc1", b"\x81\xa1a", b"text", b"\xdf\xff\xff\xff\xff"])
def test_invalid_msgpack_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidTask, match="not a map of its arguments"):
        Signature("t", checked).arguments(info(raw, is_value=False))


def test_missing_and_unknown_arguments_are_named() -> None:
    def function(a: int, *, b: int) -> None: ...

    signature = Signature("t", function)
    with pytest.raises(InvalidTask, match="argument 'b' is missing"):
        signature.arguments(sent({"a": 1}))
    with pytest.raises(InvalidTask, match=r"no parameter for 1 of .* parameters: a, b"):
        signature.arguments(sent({"a": 1, "b": 2, "c": 3}))


def test_pydantic_does_not_quote_the_input() -> None:
    """Errors appear in logs and on pages, so they must not quote the payload."""
    with pytest.raises(InvalidTask) as caught:
        Signature("t", checked).arguments(sent({"model": {"theSize": "hunter2"}}))
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__


def test_equal_arguments_have_one_canonical_encoding() -> None:
    """As unique locks require, sets, dicts and extra arguments give the same bytes in any order."""

    def function(a: set[str], b: dict[str, int], **more: int) -> None: ...

    signature = Signature("t", function)
    names = [f"name {n}" for n in range(50)]
    pairs = [(name, n) for n, name in enumerate(names)]
    one = signature.bind([set(names), dict(pairs)], {"x": 1, "y": 2}, sort=True)
    back = {name for name in reversed(names)}  # noqa: C416 - made in another order
    two = signature.bind([back, dict(reversed(pairs))], {"y": 2, "x": 1}, sort=True)
    assert codec.encode(one) == codec.encode(two)


def info_second(a: int, task: TaskInfo) -> None: ...
def info_optional(task: TaskInfo | None) -> None: ...
def info_by_keyword(*, task: TaskInfo) -> None: ...
def info_many(*tasks: TaskInfo) -> None: ...
def info_inside(tasks: list[TaskInfo]) -> None: ...
def info_kind(task: TaskStatus) -> None: ...
def unresolved(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the point
def unresolved_inside(a: list[Fraction]) -> None: ...
def unresolved_result() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821 - the point
def unfit(a: Iterable[int]) -> None: ...
def unfit_inside(a: dict[str, complex]) -> None: ...
def unfit_function(a: Callable[[int], int]) -> None: ...
def unfit_union(a: int | Path) -> None: ...
def unfit_model(a: list[Model | Signature]) -> None: ...
def no_annotation(a: 5) -> None: ...  # type: ignore[valid-type]  # the point


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (info_second, "parameter 'task': only the first"),
        (info_optional, "parameter 'task': only the first"),
        (info_by_keyword, "parameter 'task': only the first"),
        (info_many, "parameter 'tasks': only the first"),
        (info_inside, "parameter 'tasks': only the first"),
        (info_kind, "parameter 'task': only the first"),
        (unresolved, "the annotation of parameter 'a', 'Missing', cannot be resolved"),
        (unresolved_inside, "the annotation of parameter 'a', 'list[Fraction]', cannot be"),
        (unresolved_result, "the annotation of the return type, 'Missing', cannot be resolved"),
        (unfit, "parameter 'a': Iterable is not a type"),
        (unfit_inside, "parameter 'a': complex is not a type"),
        (unfit_function, "parameter 'a': Callable is not a type"),
        (unfit_union, "parameter 'a': "),
        (unfit_model, "parameter 'a': "),
        (no_annotation, "parameter 'a': Type '5' is not supported"),
    ],
)
def test_unsupported_value_is_refused_at_once(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Signature("t", function)


def test_a_result_of_another_type_is_an_error() -> None:
    def function() -> int:
        return 1

    with pytest.raises(QsyncError, match="'t' is done, but its result does not match"):
        Signature("t", function).result_of(Result(codec.encode("text")))


def test_return_type_that_no_payload_can_hold_is_ignored() -> None:
    """Results without an annotation come back as msgpack decodes them."""

    def function() -> Iterable[int]:
        return [1]

    assert Signature("t", function).result_of(Result(codec.encode([1]))) == [1]


@pytest.mark.parametrize(
    ("annotation", "values", "says"),
    [
        (int, (1, "2"), "[1]: expected int, got str"),
        (int, (True,), "[0]: expected int, got bool"),
        (int, (2.0,), "[0]: expected int, got float"),
        (float, (1, "1"), "[1]: expected float, got str"),
        (list[int], ([1], "x"), "[1]: expected list[int], got str"),
        (list[int], ((1, 2),), "[0]: expected list, got tuple"),
        (Colour, ("red",), "[0]: expected Colour, got str"),
        (Any, ((1, 2), {3}, Colour.RED), "[2]: Colour would arrive as str; annotate it"),
    ],
)
def test_each_value_of_args_is_checked_when_it_is_passed(
    annotation: Any, values: tuple[Any, ...], says: str
) -> None:
    def task(*rest: Any) -> None: ...

    task.__annotations__["rest"] = annotation
    with pytest.raises(InvalidTask, match=re.escape(f"argument 'rest': {says}")):
        Signature("t", task).bind(values, {})


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (int, (1, 2)),
        (float, (1, 2.5)),
        (Colour, (Colour.RED,)),
        (Any, ((1, 2), {3}, "x", UUID(int=1))),
    ],
)
def test_values_of_args_arrive_unchanged(annotation: Any, values: tuple[Any, ...]) -> None:
    def task(*rest: Any) -> Any:
        return rest

    task.__annotations__["rest"] = annotation
    assert through(task, *values) == values
