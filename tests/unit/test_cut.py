"""Messages without most of their payload, as returned by views."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsync import codec
from qsync.broker.truncated import HEAD, decode_cut
from qsync.message import ENVELOPE_HEAD, Message, decode_message
from qsync.new_task import new_nonce, new_task
from qsync.task import Task

TAIL = 12 * 1024


def stored(task: Task) -> bytes:
    """Return the message as it is stored."""
    return ENVELOPE_HEAD + (5_000_000).to_bytes(8) + new_task(task, new_nonce()).message


def cut(data: bytes) -> bytes:
    """Truncate a message as include/truncate_message.lua does."""
    return data if len(data) <= 16384 else data[:HEAD] + data[-TAIL:]


@given(
    st.integers(0, 40_000) | st.sampled_from([2**16 - 1, 2**16, 900_000]),
    st.integers(1, 256),
    st.integers(0, 7_000),
)
def test_truncated_message_has_everything_but_the_payload(
    size: int, name: int, header: int
) -> None:
    task = Task(
        "t" * name, b"x" * size, retry=7, fairness_key="f" * 256, unique=True, retention=5,
        headers={"h": "v" * header},
    )  # fmt: skip
    data = stored(task)
    whole, part = decode_message(data), decode_cut(cut(data), len(data))
    assert fields(part) == fields(whole)
    assert part.payload == (whole.payload if len(data) <= 16384 else b"")


def fields(message: Message) -> list[object]:
    return [getattr(message, name) for name in message.__struct_fields__ if name != "payload"]


def test_value_is_truncated_like_bytes() -> None:
    data = stored(Task("t", ["x" * 100] * 1000))
    assert decode_cut(cut(data), len(data)).is_value


@given(st.binary(max_size=20_000), st.integers(0, 2**40))
def test_any_bytes_give_a_message_or_an_error(data: bytes, length: int) -> None:
    with contextlib.suppress(codec.CodecError):
        decode_cut(data, length)


@given(st.integers(0, HEAD + TAIL - 1), st.integers(0, 255), st.integers(0, 100_000))
def test_damaged_byte_gives_a_message_or_an_error(at: int, byte: int, length: int) -> None:
    data = bytearray(cut(stored(Task("t", b"x" * 30_000, headers={"a": "b"}))))
    data[at] = byte
    with contextlib.suppress(codec.CodecError):
        decode_cut(bytes(data), length)


def test_empty_data_is_not_a_message() -> None:
    with pytest.raises(codec.CodecError, match="too many to decode"):
        decode_cut(b"", 5_000_000)
