"""The lines of charts as SVG paths."""

from __future__ import annotations

from qsync.web.charts import path_of


def test_lines_are_broken_at_gaps_and_lone_values_are_dashes() -> None:
    assert path_of([0, 5, 10], top=10) == "M0.0 100.0L150.0 50.0L300.0 0.0"
    assert path_of([None, 5, None, 10, 0], top=10) == "M73.5 50.0h3M225.0 0.0L300.0 100.0"
    assert path_of([None, 5], top=10) == "M298.5 50.0h3"
    assert path_of([5, 5], top=10, room=3) == "M150.0 50.0L300.0 50.0"
    assert path_of([], top=10) == path_of([None], top=10) == ""
