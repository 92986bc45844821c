"""Values arrive unchanged, including their types, or the call raises an error."""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from pydantic.dataclasses import dataclass as pydantic_dataclass

from qsync import codec, msgpack_extensions
from qsync.errors import ConfigError, InvalidTask, QsyncError
from qsync.inspector.msgpack_json import preview
from qsync.message import Result, decode_message
from qsync.new_task import new_task
from qsync.results import decode_result
from qsync.server.error_text import ResultNotKept
from qsync.server.invoke import encode_result
from qsync.signature import Signature
from qsync.task import Task, TaskInfo
from qsync.value_transport import difference


def seen(payload: object) -> TaskInfo:
    """Return the task as a server decodes it."""
    sent = new_task(Task("t", payload), b"nonce123").message
    message = decode_message(b"\x98\x01\xcf" + bytes(8) + sent)
    return TaskInfo(
        id="1", type="t", payload=message.payload, queue="default", retry=3, attempt=1, crashes=0,
        enqueued_at_us=0, is_value=message.is_value,
    )  # fmt: skip


def function_of(annotation: Any = Any) -> Signature:
    """Return the signature of a task that takes and returns a value of the annotated type."""

    def function(it):  # type: ignore[no-untyped-def]  # annotated below
        return it

    if annotation is not None:
        function.__annotations__ = {"it": annotation, "return": annotation}
    return Signature("t", function)


def through(value: Any, annotation: Any = Any) -> Any:
    """Return the argument that a handler gets."""
    signature = function_of(annotation)
    [got], _ = signature.arguments(seen(signature.bind([value], {})))
    return got


def returned(value: Any, annotation: Any = Any) -> Any:
    """Return the result that a handle returns."""
    signature = function_of(annotation)
    record = codec.decode(encode_result(value, signature.carried_result), Result)
    assert record.error is None, record.error
    return signature.result_of(record)


def check_same(sent: Any, got: Any) -> None:
    assert type(got) is type(sent)
    assert difference(sent, got) is None


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    A = "a"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Invoice:
    amount: Decimal
    at: datetime
    extra: Any = None
    ids: tuple[UUID, ...] = ()


class Secret(pydantic.BaseModel):
    shown: int
    hidden: str = pydantic.Field(default="none", exclude=True)
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    extra: Any = None
    named: int = pydantic.Field(default=0, alias="theName")


class Struct(msgspec.Struct, rename="camel", tag=True):
    first_name: str
    at: datetime
    extra: Any = None


class Options(TypedDict, total=False):
    colour: Colour
    amount: Decimal


offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
zones = st.sampled_from(
    [UTC, None, ZoneInfo("Europe/Moscow"), ZoneInfo("UTC"), ZoneInfo("America/New_York")]
)
datetimes = st.datetimes(timezones=st.one_of(offsets, zones)) | st.datetimes()
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - the point
leaves: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(),
    str: st.text(),
    bytes: st.binary(),
    bool: st.booleans(),
    datetime: datetimes,
    date: st.dates(),
    time: st.times() | st.times(timezones=offsets),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False),
    UUID: st.uuids(),
    bytearray: st.binary().map(bytearray),
    Path: st.from_regex(r"[a-z/]{1,9}", fullmatch=True).map(Path),
    PurePosixPath: st.from_regex(r"[a-z/]{1,9}", fullmatch=True).map(PurePosixPath),
    PureWindowsPath: st.from_regex(r"[a-z]/?[a-z]{1,9}", fullmatch=True).map(PureWindowsPath),
    ipaddress.IPv4Address: st.ip_addresses(v=4),
    ipaddress.IPv6Address: st.ip_addresses(v=6),
    ipaddress.IPv4Network: st.ip_addresses(v=4).map(ipaddress.IPv4Network),
    ipaddress.IPv6Interface: st.ip_addresses(v=6).map(ipaddress.IPv6Interface),
    type(None): st.none(),
}
hashable = st.one_of(*(one for cls, one in leaves.items() if cls is not bytearray))
anything = st.recursive(
    st.one_of(*leaves.values()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
    ),
    max_leaves=8,
)
everything = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@everything
@given(value=anything)
def test_value_without_annotation_arrives_as_sent(value: Any) -> None:
    """Arguments, results and payloads come back equal, with the same types at every level."""
    check_same(value, through(value))
    check_same(value, through(value, None))
    check_same({"a": value}, through({"a": value}, dict[str, Any]))
    check_same(value, returned(value))
    if not isinstance(value, bytes | bytearray):
        check_same(value, seen(value).value())
        check_same(value, decode_result(codec.decode(encode_result(value), Result)))


@everything
@given(data=st.data(), cls=st.sampled_from([*leaves]))
def test_annotated_value_arrives_as_sent(data: st.DataObject, cls: Any) -> None:
    value = data.draw(leaves[cls])
    if isinstance(value, time) and value.tzinfo is not None and value.utcoffset() is None:
        return
    check_same(value, through(value, cls))
    check_same([value], through([value], list[cls]))
    check_same((value, value), through((value, value), tuple[cls, cls]))
    check_same({"a": value}, through({"a": value}, dict[str, cls | None]))
    if cls is not bytearray:
        check_same({value}, through({value}, set[cls]))
    check_same(value, returned(value, cls))
    check_same([value], returned([value], list[cls]))


@everything
@given(
    amount=st.decimals(allow_nan=False),
    at=datetimes,
    extra=anything,
    ids=st.lists(st.uuids(), max_size=3),
)
def test_record_arrives_as_sent(amount: Decimal, at: datetime, extra: Any, ids: list[UUID]) -> None:
    for value in (
        Invoice(amount, at, extra, tuple(ids)),
        Secret(shown=1, hidden="kept", at=at, extra=extra, theName=5),
        Struct("a", at, extra),
    ):
        check_same(value, through(value, type(value)))
        check_same([value], through([value], list[type(value)]))  # type: ignore[misc]  # at run time
        check_same(value, returned(value, type(value)))


def test_excluded_field_of_a_model_keeps_its_value() -> None:
    """Unlike `difference`, this test does not use the code under test to read the fields of the
    model."""
    value = Secret(shown=1, hidden="kept", theName=5)
    for got in (
        through(value, Secret),
        through([value], list[Secret])[0],
        returned(value, Secret),
    ):
        assert (got.shown, got.hidden) == (1, "kept")


@pytest.mark.parametrize("value", [NAIVE.replace(fold=1), time(1, 30, fold=1)])
def test_second_pass_through_an_hour_differs_from_the_first(value: Any) -> None:
    """`fold` matters if a time zone is set later, so it must be kept, but `==` does not compare
    it."""
    cls = type(value)
    assert through(value).fold == returned(value).fold == 1
    assert through(value, cls).fold == returned(value, cls).fold == 1
    assert through([value], list[cls])[0].fold == 1
    assert [one.fold for one in through({value}, set[cls])] == [1]
    assert [one.fold for one in through({value: 1}, dict[cls, int])] == [1]
    assert through(Struct("a", NAIVE.replace(fold=1)), Struct).at.fold == 1
    assert through(value.replace(fold=0), cls).fold == 0


def test_second_pass_with_a_zone_keeps_its_offset() -> None:
    zone = ZoneInfo("America/New_York")
    for fold, hours in ((0, -4), (1, -5)):
        at = datetime(2026, 11, 1, 1, 30, tzinfo=zone, fold=fold)
        for got in (through(at), through(at, datetime), returned(at)):
            assert got.utcoffset() == timedelta(hours=hours)
            assert got.timestamp() == at.timestamp()


class Priced(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    cents: int

    @cached_property
    def shown(self) -> str:
        return f"{self.cents / 100}"


def test_model_whose_cached_property_was_read_is_carried() -> None:
    value = Priced(cents=5)
    assert value.shown == "0.05"
    assert through(value, Priced).model_dump() == {"cents": 5}
    assert seen(value).value(Priced).model_dump() == {"cents": 5}


@pydantic_dataclass
class Parcel:
    grams: Decimal
    extra: Any = None


def test_dataclass_of_pydantic_is_carried() -> None:
    value = Parcel(Decimal("1.50"), extra=(1, NAIVE))
    check_same(value, through(value, Parcel))
    check_same([value], returned([value], list[Parcel]))
    with pytest.raises(InvalidTask, match="grams: Input should be a valid decimal"):
        function_of(Parcel).arguments(seen({"it": {"grams": "much"}}))


def test_moments_of_a_repeated_hour_may_be_keys_and_members() -> None:
    """Such a moment does not compare equal to the same moment with a fixed offset, which is what
    decoding returns."""
    at = datetime(2026, 11, 1, 1, 30, tzinfo=ZoneInfo("America/New_York"), fold=1)
    for got in (through({at: 1}, dict[datetime, int]), through({at}), through({at}, set[datetime])):
        assert [one.isoformat() for one in got] == [at.isoformat()]


def test_plain_dates_travel_as_text_that_other_languages_read() -> None:
    at = datetime(2026, 11, 28, 1, 0, tzinfo=timezone(timedelta(hours=3)))
    signature = function_of(datetime)
    payload = seen(signature.bind([at], {})).payload
    assert codec.decode(payload) == {"it": "2026-11-28T01:00:00+03:00"}


def test_extension_has_the_documented_form() -> None:
    raw = msgspec.msgpack.decode(seen({"amount": Decimal("1.10")}).payload)
    assert raw["amount"].code == 1
    assert msgspec.msgpack.decode(raw["amount"].data) == ["decimal", "1.10"]


class Shouting(str):
    __slots__ = ()


class Stamp(datetime):
    pass


class Big(int):
    pass


class Span(timedelta):
    pass


class Uid(UUID):
    pass


class Triple(tuple[int, ...]):
    __slots__ = ()


class Money(Decimal):
    pass


class Scalar:
    """A stand-in with the attributes of numpy's scalars."""

    dtype = "int64"

    def item(self) -> int:
        return 1


class Dog(Secret):
    tail: int = 1


@dataclass
class Animal:
    name: str


@dataclass
class Cat(Animal):
    lives: int = 9


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Any, Colour.RED, "Colour would arrive as str; annotate it"),
        (Any, Level.HIGH, "Level would arrive as int"),
        (Any, Word.A, "Word would arrive as str"),
        (Any, Point(1, 2), "Point would arrive as list"),
        (Any, Animal("a"), "Animal would arrive as dict; annotate it"),
        (Any, Secret(shown=1), "Secret would arrive as dict"),
        (Any, [Struct("a", NAIVE)], "[0]: Struct would arrive as dict"),
        (dict[str, Any], {"a": Colour.RED}, "expected str, got Colour"),
        (list[Any], [Animal("a")], "expected dict, got Animal"),
        (str, UUID(int=1), "UUID"),
        (str, Decimal(1), "Decimal"),
        (str, NAIVE, "datetime"),
        (str, Word.A, "expected str, got Word"),
        (int, Level.HIGH, "expected int, got Level"),
        (int, True, "expected int, got bool"),
        (int, "1", "expected int, got str"),
        (float, Decimal("1.5"), "expected float, got Decimal"),
        (date, NAIVE, "datetime"),
        (datetime, date(2026, 1, 1), "date"),
        (list[int], (1, 2), "expected list, got tuple"),
        (tuple[int, ...], [1, 2], "expected tuple, got list"),
        (set[int], frozenset({1}), "expected set, got frozenset"),
        (list[float], [Decimal(1)], "does not match the annotation"),
        (Animal, Cat("a"), "expected Animal, got Cat"),
        (list[Animal], [Animal("a"), Cat("a")], "[1]: expected Animal, got Cat"),
        (Secret, Dog(shown=1), "expected Secret, got Dog"),
        (Animal, {"name": "a"}, "expected Animal, got dict"),
        (str, Markup("a"), "pass str(value)"),
        (str, Shouting("a"), "pass str(value)"),
        (int, Big(1), "pass int(value)"),
        (datetime, Stamp(2026, 1, 1), "pass datetime.fromisoformat(value.isoformat())"),
        (timedelta, Span(1), "pass timedelta(value.days, value.seconds, value.microseconds)"),
        (UUID, Uid(int=1), "expected UUID, got Uid; pass a value of exactly the annotated type"),
        (Any, Uid(int=1), "pass UUID(bytes=value.bytes)"),
        (Any, Triple((1, 2, 3)), "Triple is a subclass of tuple and cannot be encoded; pass"),
        (Decimal, Money("1.10"), "pass Decimal(value)"),
        (int, Scalar(), "pass value.item()"),
        (Any, Scalar(), "pass value.item()"),
        (Any, [{"a": Shouting("x")}], "[0]['a']: Shouting is a subclass of str"),
        (Any, object(), "a value of type object cannot be encoded"),
        (time, time(1, tzinfo=ZoneInfo("Europe/Moscow")), "time would arrive with another value"),
    ],
)
def test_value_that_would_change_is_refused_at_once(annotation: Any, value: Any, says: str) -> None:
    """The error names the task and the parameter, and says what the value would become."""
    with pytest.raises(InvalidTask) as caught:
        function_of(annotation).bind([value], {})
    assert str(caught.value).startswith("task 't': argument 'it': ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            {"n": 2**64},
            "['n']: only integers from -2**63 to 2**64 - 1 can be encoded; pass",
        ),
        ([1, -(2**63) - 1], "[1]: only integers from -2**63 to 2**64 - 1 can be encoded"),
        ({"a": ["x\ud800"]}, "['a'][0]: a string with lone surrogates is not valid Unicode"),
        ({"a": Shouting("x")}, "['a']: Shouting is a subclass of str"),
        ({"a": Scalar()}, "['a']: a value of type Scalar cannot be encoded; pass value.item()"),
    ],
)
def test_error_about_an_unencodable_payload_names_place_and_remedy(value: Any, says: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        new_task(Task("t", value), b"nonce123")
    assert str(caught.value).startswith("payload: ")
    assert f"cannot be encoded as msgpack: {says}" in str(caught.value)
    assert "task 't'" in str(caught.value)


def test_number_that_does_not_fit_names_the_parameter() -> None:
    signature = function_of(int)
    with pytest.raises(InvalidTask, match=r"\['it'\]: only integers from.*task 't'"):
        new_task(Task("t", signature.bind([2**70], {})), b"nonce123")


def test_int_annotated_as_float_stays_an_int() -> None:
    assert type(through(2**53 + 1, float)) is int
    assert type(through([1, 2.5], list[float])[0]) is int


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (str | UUID, ["a", UUID(int=1)]),
        (
            date | datetime,
            [date(2026, 1, 1), NAIVE, datetime(2026, 1, 1, tzinfo=UTC)],
        ),
        (list[str | Decimal | None], [["a", Decimal("1.10"), None]]),
        (dict[str, date | datetime | str], [{"a": "x", "b": date(2026, 1, 1)}]),
        (UUID | Decimal | int, [UUID(int=1), Decimal("1.0"), 1]),
    ],
)
def test_union_of_similar_types_keeps_the_type(annotation: Any, values: list[Any]) -> None:
    for value in values:
        check_same(value, through(value, annotation))
        check_same(value, returned(value, annotation))
    with pytest.raises(InvalidTask):
        function_of(annotation).bind([b"no member"], {})


def unions(a: Animal | Invoice) -> None: ...
def markup(a: Markup) -> None: ...
def stamp(a: list[Stamp]) -> None: ...
def other(a: Scalar) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (unions, "use msgspec.Struct with tag=True, or pydantic models with a discriminator"),
        (markup, "annotate str and create the Markup in the task"),
        (stamp, "annotate datetime and create the Stamp in the task"),
        (other, "use builtin types, a dataclass, msgspec.Struct, TypedDict or pydantic model"),
    ],
)
def test_error_about_an_annotation_says_what_to_use(
    function: Callable[..., Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Signature("t", function)
    assert "parameter 'a'" in str(caught.value)
    assert says in str(caught.value)


class Wanted(TypedDict):
    colour: Colour
    amount: Decimal


def unpacked(a: int, **more: Unpack[Wanted]) -> Any:
    return a, more


def unpacked_partly(a: int, **more: Unpack[Options]) -> Any:
    return a, more


def test_unpacked_typed_dict_is_carried_and_checked() -> None:
    signature = Signature("t", unpacked)
    given = signature.bind([1], {"colour": Colour.RED, "amount": Decimal("1.10")})
    args, kwargs = signature.arguments(seen(given))
    assert unpacked(*args, **kwargs) == (1, {"colour": Colour.RED, "amount": Decimal("1.10")})
    with pytest.raises(InvalidTask, match="'amount'"):
        signature.bind([1], {"colour": Colour.RED})
    with pytest.raises(InvalidTask, match="'colour'"):
        signature.bind([1], {"colour": "blue", "amount": Decimal(1)})
    with pytest.raises(InvalidTask, match="'size'"):
        signature.bind([1], {"colour": Colour.RED, "amount": Decimal(1), "size": 1})


def test_keys_that_are_not_required_may_be_left_out() -> None:
    signature = Signature("t", unpacked_partly)
    args, kwargs = signature.arguments(seen(signature.bind([1], {"colour": Colour.RED})))
    assert unpacked_partly(*args, **kwargs) == (1, {"colour": Colour.RED})
    assert signature.required == ["a"]


class Raw(bytes):
    __slots__ = ()


@pytest.mark.parametrize("carry", [None, function_of().carried_result])
def test_result_of_a_subclass_of_bytes_is_refused_like_others(carry: Any) -> None:
    with pytest.raises(ResultNotKept, match=r"Raw is a subclass of bytes.*pass bytes\(value\)"):
        encode_result(Raw(b"x"), carry)


def test_result_that_would_change_is_refused_and_says_how_to_keep_it() -> None:
    signature = function_of()
    with pytest.raises(ResultNotKept, match="Animal would arrive as dict; annotate it with its"):
        encode_result(Animal("a"), signature.carried_result)


class Importing(pydantic.BaseModel):
    path: pydantic.ImportString[Any]


@dataclass
class Importer:
    path: pydantic.ImportString  # type: ignore[type-arg]  # the point


class Outer(pydantic.BaseModel):
    inner: list[Importing] = []


def imports(a: pydantic.ImportString[Any]) -> None: ...
def imports_any(a: list[pydantic.ImportString]) -> None: ...  # type: ignore[type-arg]  # the point
def imports_model(a: Importing) -> None: ...
def imports_inside(a: dict[str, Outer]) -> None: ...
def imports_dataclass(a: Importer) -> None: ...
def imports_keyword(**a: Outer) -> None: ...


@pytest.mark.parametrize(
    "function",
    [imports, imports_any, imports_model, imports_inside, imports_dataclass, imports_keyword],
)
def test_type_that_imports_what_a_payload_names_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"parameter 'a': .*ImportString imports whatever"):
        Signature("t", function)


def test_payload_is_not_read_as_a_type_that_imports() -> None:
    with pytest.raises(InvalidTask, match="ImportString"):
        seen({"path": "os.system"}).value(Importing)


class Closed(msgspec.Struct, forbid_unknown_fields=True, tag="closed"):
    a: int


class Tagged(pydantic.BaseModel):
    kind: Colour
    colours: dict[str, Colour] = {}


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Colour, "hunter2"),
        (list[Colour], ["hunter2"]),
        (Closed, {"type": "hunter2", "a": 1}),
        (Closed, {"type": "closed", "a": 1, "hunter2": 1}),
        (ipaddress.IPv4Address, "hunter2"),
        (dict[str, int], {"hunter2": "x"}),
        (Tagged, {"kind": "hunter2"}),
        (Tagged, {"kind": "red", "colours": {"hunter2": "hunter2"}}),
        (str | UUID, {"hunter2": 1}),
        (Decimal, msgspec.msgpack.Ext(1, codec.encode(["decimal", "hunter2"]))),
        (Any, msgspec.msgpack.Ext(1, codec.encode(["hunter2", "hunter2"]))),
    ],
)
def test_error_about_a_payload_does_not_show_its_values(annotation: Any, payload: Any) -> None:
    """A traceback also shows the causes of an error, so the causes must not quote the value
    either."""
    signature = function_of(annotation)
    info = dataclass_info(codec.encode({"it": payload}))
    calls: list[Callable[[], Any]] = [
        lambda: signature.arguments(info),
        lambda: info.value(dict[str, annotation]),
        lambda: signature.arguments(dataclass_info(codec.encode({"hunter2": 1}))),
        lambda: signature.result_of(Result(codec.encode(payload))),
    ]
    for call in calls:
        with pytest.raises(QsyncError) as caught:
            call()
        error: BaseException | None = caught.value
        while error is not None:
            assert "hunter2" not in str(error)
            error = error.__cause__ or error.__context__


def dataclass_info(payload: bytes) -> TaskInfo:
    return TaskInfo(
        id="1", type="t", payload=payload, queue="default", retry=3, attempt=1, crashes=0,
        enqueued_at_us=0, is_value=True,
    )  # fmt: skip


def nested(levels: int) -> bytes:
    """Return the encoding of nested tuples, built by hand."""
    data = codec.encode(1)
    for _ in range(levels):
        data = codec.encode(msgspec.msgpack.Ext(1, codec.encode(["tuple", [msgspec.Raw(data)]])))
    return data


def test_deeply_nested_extensions_raise_the_usual_error() -> None:
    with pytest.raises(InvalidTask):
        function_of().arguments(dataclass_info(b"\x81\xa2it" + nested(5000)))


HOSTILE = [1 << 40, -1, True, 1.5, None, [], [[]], {}, {"a": 1, "b": 2}, "", "x", b"", b"x"]


def test_extension_with_data_of_another_type_raises_an_error_without_using_memory() -> None:
    """`bytearray(2**40)` would take a tebibyte, and `UUID(5)` raises an AttributeError."""
    names = [*msgpack_extensions.FORMS, "tuple", "set", "frozenset", "dict", "", None, 5, []]
    for name, data in itertools.product(names, HOSTILE):
        encoded = codec.encode([msgspec.msgpack.Ext(1, codec.encode([name, data]))])
        for decode in (codec.decode, preview):
            with contextlib.suppress(codec.CodecError):
                decode(encoded)
    with pytest.raises(codec.CodecError):
        codec.decode(codec.encode(msgspec.msgpack.Ext(1, codec.encode(["bytearray", 1 << 20]))))


def test_nested_extensions_are_decoded_without_copies() -> None:
    data = codec.encode(bytes(1 << 20))
    for _ in range(100):
        data = codec.encode(msgspec.msgpack.Ext(1, codec.encode(["tuple", [msgspec.Raw(data)]])))
    tracemalloc.start()
    try:
        codec.decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def locked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    payload = Signature("t", function).bind(args, kwargs, sort=True)
    return new_task(Task("t", payload, unique=True), b"nonce123").lock


def test_explicit_default_makes_the_same_task() -> None:
    def sync(a: int, full: bool = False, *rest: int, colour: Colour = Colour.RED) -> None: ...

    same = {
        locked(sync, 7),
        locked(sync, a=7),
        locked(sync, 7, False),
        locked(sync, 7, full=False, colour=Colour.RED),
        locked(sync, colour=Colour.RED, a=7),
    }
    assert len(same) == 1
    others = [locked(sync, 7, True), locked(sync, 8), locked(sync, 7, False, 1)]
    assert len({*same, *others}) == 4
    assert same == {new_task(Task("t", {"a": 7}, unique=True), b"nonce123").lock}


def test_value_equal_to_the_default_but_of_another_type_is_another_task() -> None:
    def untyped(a=0):  # type: ignore[no-untyped-def]  # the point
        ...

    assert len({locked(untyped, 0), locked(untyped, False), locked(untyped, 0.0)}) == 3
    assert locked(untyped) == locked(untyped, 0)


def test_explicit_default_is_still_sent() -> None:
    """The lock omits a default, but the task includes it, since the server may have another
    default."""

    def sync(a: int, full: bool = False) -> None: ...

    assert Signature("t", sync).bind([7], {"full": False}, sort=True) == {"a": 7, "full": False}


def test_equal_sets_and_dicts_make_the_same_lock() -> None:
    names = [f"name {n}" for n in range(50)]
    one = {"set": set(names), "ids": {UUID(int=n): n for n in range(9)}}
    two = {"ids": {UUID(int=n): n for n in reversed(range(9))}, "set": {*reversed(names)}}

    def function(it):  # type: ignore[no-untyped-def]  # nothing is annotated
        ...

    assert locked(function, one) == locked(function, two)


def test_arguments_are_encoded_at_the_call() -> None:
    """A change to a list after the call does not change the arguments of the task."""
    for value, annotation in itertools.product([[[1], {"a": [2]}]], [Any, list[Any]]):
        payload = function_of(annotation).bind([value], {})
        value[0].append(9)
        assert payload["it"][0] == [1]
        value[0].pop()


class Uncomparable:
    """A value that raises when it is compared, as a NumPy array does."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("ambiguous")


@pytest.mark.parametrize("option", ["headers", "timeout", "unique_key", "fairness_key", "deadline"])
def test_option_that_cannot_be_compared_is_an_invalid_task(option: str) -> None:
    wrong: dict[str, Any] = {option: Uncomparable()}
    with pytest.raises(InvalidTask, match=option):
        Task("t", **wrong)


def test_task_that_is_not_unique_is_encoded_like_one_without_options() -> None:
    plain, explicit = (Task("t", id="a", **option) for option in ({}, {"unique": False}))
    assert new_task(plain, bytes(8)) == new_task(explicit, bytes(8))
