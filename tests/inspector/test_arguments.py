"""Every method of the inspector rejects an argument of the wrong kind before it sends a call."""

from __future__ import annotations

import inspect
from typing import Any, Final

import pytest

from qsync import Inspector, InvalidTask, Qsync

WRONG: Final[dict[str, tuple[Any, ...]]] = {
    "str": (7, None, b"a", ["a"], "\ud800", 10**5000, object()),
    "str | None": (7, b"a", "\ud800", 10**5000),
    "bool": (1, 0, "yes", None),
    "int": ("5", 1.0, True, None, 10**5000),
    "float": ("5", True, None),
    "datetime": ("2030-01-01", 7, None),
    "datetime | None": ("2030-01-01", 7),
    "Filter | None": ("type=mail", {"type": "mail"}),
    "Sequence[str]": ("mail", 7, [7], ["\ud800"], [b"mail"], None),
}
"""For each annotation, values that do not match it."""


def methods() -> list[str]:
    return [
        name
        for name, method in inspect.getmembers(Inspector, inspect.isfunction)
        if not name.startswith("_") and not inspect.isasyncgenfunction(method)
    ]


@pytest.mark.asyncio
async def test_argument_of_a_wrong_kind_is_named() -> None:
    checked = 0
    async with Qsync("redis://127.0.0.1:1", prefix="p", patience=0).inspector() as inspector:
        for name in methods():
            method = getattr(inspector, name)
            parameters = inspect.signature(method).parameters
            for parameter, value in parameters.items():
                others = {
                    other: WRONG_FREE[str(each.annotation)]
                    for other, each in parameters.items()
                    if str(each.annotation) in WRONG_FREE and each.default is each.empty
                }
                for wrong in WRONG.get(str(value.annotation), ()):
                    with pytest.raises(InvalidTask, match=f"^{parameter}: "):
                        answer = method(**{**others, parameter: wrong})
                        if inspect.isawaitable(answer):
                            await answer
                    checked += 1
    assert checked > 800


WRONG_FREE: Final[dict[str, Any]] = {
    "str": "a", "bool": True, "int": 1, "float": 1.0, "Sequence[str]": ["a"],
}  # fmt: skip
"""Valid values for the other arguments, so that only one argument is wrong."""
