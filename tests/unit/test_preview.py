"""Readable previews of all payloads and results, at a bounded cost."""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsync import InvalidTask, Task, codec
from qsync.inspector.edit_values import payload_as_json
from qsync.inspector.msgpack_json import STRING_LIMIT, TEXT_LIMIT, preview
from qsync.inspector.task_detail import show
from qsync.keys import QueueKeys
from qsync.message import Message, Result, StoredOptions
from qsync.web import create_app
from tests.support.dashboard import visiting
from tests.support.inspector_driver import bed
from tests.support.stores import Store

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 99), inner),
    max_leaves=60,
)  # fmt: skip


@given(JSON)
def test_small_value_is_shown_as_indented_json(value: Any) -> None:
    expected = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    assert show(codec.encode(value), is_value=True).text == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_shown(data: bytes) -> None:
    for is_value in (True, False):
        assert not show(data, is_value=is_value).cut
    try:
        codec.decode(data)
        readable = True
    except codec.CodecError:
        readable = False
    shown = show(data, is_value=True)
    assert (shown.kind == "value") is readable or b"\xc7" in data or b"\xff" in data or (
        set(data) & set(range(0xD4, 0xD9))  # an invalid time is shown as an unknown extension
    )  # fmt: skip


def array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


HOSTILE = {
    "900 levels, then a million": b"\x91" * 900 + array(999_000) + b"\x01" * 999_000,
    "a million empty lists": array(1_000_000) + b"\x90" * 1_000_000,
    "maps in maps": b"\x81\x01" * 500_000 + b"\x01",
    "deep keys": b"\x81" * 500_000 + b"\x01" * 500_001,
    "60 levels, then a million": b"\x91" * 60 + array(999_000) + b"\x01" * 999_000,
    "a long string": b"\xdb" + (8 << 20).to_bytes(4, "big") + b"\xc3\xa9" * (4 << 20),
    "long bytes": b"\xc6" + (8 << 20).to_bytes(4, "big") + bytes(8 << 20),
    "many keys": b"\xdf" + (100_000).to_bytes(4, "big") + b"\xa3abc\x01" * 100_000,
}
HOSTILE_TEXT = {
    "brackets": b"[" * 32_000 + b"]" * 32_000,
    "60 KB in 900 levels": b"[" * 900 + b"1," * 29_000 + b"1" + b"]" * 900,
    "1 MB in 900 levels": b"[" * 900 + b"1," * 500_000 + b"1" + b"]" * 900,
    "objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "8 MB of text": b"x" * (8 << 20),
    "one line that is cut within a character": "é".encode() * (1 << 20),
    "8 MB of noise": b"\xff\xfe" * (4 << 20),
}


@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_TEXT])
def test_hostile_payload_costs_little(name: str) -> None:
    data = {**HOSTILE, **HOSTILE_TEXT}[name]
    tracemalloc.start()
    try:
        shown = show(data, is_value=name in HOSTILE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shown.text) <= TEXT_LIMIT + 100
    assert shown.cut or name == "brackets" or len(data) < TEXT_LIMIT
    assert peak < 24 << 20, f"{peak >> 20} MiB"


FORM_TEXT = {
    "60 KB in 60 levels": b"\x91" * 60 + array(29_000) + b"\x01" * 29_000,
    "invisible characters": codec.encode("\u202e" * 10_000),
    **{name: HOSTILE[name] for name in ("900 levels, then a million", "60 levels, then a million")},
}


@pytest.mark.parametrize("name", [*FORM_TEXT, *HOSTILE_TEXT])
def test_payload_that_is_too_large_for_the_form_costs_little(name: str) -> None:
    data = {**FORM_TEXT, **HOSTILE_TEXT}[name]
    tracemalloc.start()
    try:
        payload_as_json(data, is_value=name in FORM_TEXT, limit=61_440)
    except (InvalidTask, codec.CodecError) as error:
        assert "too large for a form" in str(error) or "binary" in str(error)
    else:
        assert name in ("invisible characters", "60 KB in 900 levels", "objects", "brackets")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20, f"{peak >> 20} MiB"


def test_values_after_a_long_string_or_list_are_shown() -> None:
    value = {"body": "x" * 1_000_000, "ids": list(range(2_000)), "raw": bytes(50_000), "to": "ann"}
    text, cut = preview(codec.encode(value))
    assert cut
    assert '…" (1,000,000 bytes),\n  "ids": [\n    0,\n' in text
    assert "    999,\n    … 1,000 more\n  ],\n" in text
    assert '…" (50,000 bytes),\n  "to": "ann"\n}' in text
    assert text.count("x") == STRING_LIMIT


def test_values_without_a_json_form_are_shown() -> None:
    at = datetime(2026, 2, 3, tzinfo=UTC)
    extension = msgspec.msgpack.Ext(7, b"abc")
    value = [math.nan, math.inf, -math.inf, at, extension, {b"\xff": 1}]
    text, cut = preview(codec.encode(value))
    lines = [line.strip(" ,") for line in text.split("\n")]
    assert lines[1:6] == ["NaN", "Infinity", "-Infinity", '"2026-02-03T00:00:00Z"',
                          "<extension 7, 3 bytes>"]  # fmt: skip
    assert not cut


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xa5abc", b"\xa1\xff"])
def test_undecodable_bytes_are_dumped(data: bytes) -> None:
    assert show(data, is_value=True).kind == "binary"


async def test_page_of_a_hostile_task_does_not_stop_the_loop(valkey: Store, prefix: str) -> None:
    """Payload, result and headers are all hostile."""

    keys = QueueKeys(prefix, "default")
    deep = HOSTILE["900 levels, then a million"]
    headers = {f"h{n}": "v" * 20 for n in range(20_000)}
    async with bed(valkey.url, prefix) as made:
        await made.enqueue(Task("t", b"", id="a", retention=60))
        [held] = await made.lease()
        await made.complete([held], 60, codec.encode(Result(deep, is_value=True)))
        options = StoredOptions(headers=headers)
        message = Message(codec.VERSION, 1, b"n" * 8, "t", deep, True, 3, options)
        with valkey.client() as client:
            client.hset(keys.key("tasks"), "a", codec.encode(message))
        app = create_app(made.inspector, auth="host", timeout=60)
        async with app, visiting(app) as visitor:
            loop = asyncio.get_running_loop()
            longest = 0.0
            for path in ("/edit?id=a", "/task?id=a"):
                page, last = asyncio.create_task(visitor.get(path)), loop.time()
                while not page.done():
                    await asyncio.sleep(0.01)
                    longest, last = max(longest, loop.time() - last), loop.time()
                text = (await page).text
            assert "h499" in text
            assert "h500" not in text
            assert len(text) < 1 << 20
            assert longest < 2, "it was 14 s"
