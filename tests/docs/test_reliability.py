"""docs/reliability.md matches the tests, and no test claims an unknown guarantee or fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.model.mistakes import Plant
from tests.support.faults import FAULTS, GUARANTEES, LEFT_OUT, OPTIONAL
from tools.mutants import ENOUGH, PLANTED, TABLE
from tools.reliability import PAGE, filled, generated, marked, missing, wrong


def test_page_matches_the_marks() -> None:
    page = PAGE.read_text("utf-8")
    assert generated(page) == page, "run python -m tools.reliability"


def test_every_row_has_a_test_or_a_reason_and_no_test_names_another() -> None:
    assert wrong(marked()) == []


def test_rows_are_numbered_without_a_gap() -> None:
    assert list(FAULTS) == list(range(1, len(FAULTS) + 1))
    assert list(GUARANTEES) == list(range(1, 9))
    assert FAULTS.keys() >= OPTIONAL | LEFT_OUT.keys()


TEXT = """import pytest
pytestmark = [pytest.mark.slow, pytest.mark.faults(9)]

@pytest.mark.guarantee(3)
@pytest.mark.faults(1, 999)
@pytest.mark.parametrize("x", [1])
def test_it(x): ...

def test_other(): ...

def helper(): ...
"""


def test_marks_of_a_test_and_of_its_module_are_read(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(TEXT, "utf-8")
    first, second = marked(tmp_path)
    assert (first.test, first.faults, first.guarantee) == ("test_x.py::test_it", (1, 9, 999), (3,))
    assert first.label == "`test_x.py::test_it` (soak)"
    assert (second.test, second.faults) == ("test_x.py::test_other", (9,))
    found = wrong([first, second])
    assert "test_x.py::test_it: unknown faults 999" in found
    assert "fault 2 has no test" in found
    assert "guarantee 1 has no test" in found
    assert 5 in OPTIONAL
    assert 5 not in missing(set())


def test_page_without_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the markers of faults"):
        filled("no marks", {"faults": "x"})


def test_each_planted_mistake_was_found_soon_enough() -> None:
    records = json.loads(TABLE.read_text("utf-8"))
    rows = {(record["mistake"], record["by"]): record["needed"] for record in records}
    assert rows.keys() == {(name, by) for name, by, _, _ in PLANTED}, "python -m tools.mutants"
    assert all(isinstance(needed, int) and 0 < needed <= ENOUGH for needed in rows.values())
    assert {name for name, _ in rows} >= ESSENTIAL


@pytest.mark.parametrize(("name", "plant"), [(f"{by}: {name}", p) for name, by, p, _ in PLANTED])
def test_each_planted_mistake_fits_the_code(name: str, plant: Plant) -> None:
    with plant():
        pass


ESSENTIAL = {
    "settle without token", "retry without token", "heartbeat on the loop",
    "due tasks moved in two steps", "noscript not handled", "result stored before the token check",
    "no script runs out of memory", "lease by own clock", "lock with a fixed duration",
    "fetch without number", "unbounded promotion", "crash not counted",
    "recovery reads messages", "connection kept after a cancel", "tick id without time",
}  # fmt: skip
"""Planted mistakes that at least one search must find."""
