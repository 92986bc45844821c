"""Each committed row of an outbox runs once, whichever part is killed. `make soak` runs 250 rounds
on each database."""

from __future__ import annotations

import pytest

from tests.chaos.outbox_rounds import parts
from tests.conftest import NEEDS
from tests.support.postgres import needs_postgres
from tests.support.stores import available


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=needs_postgres), "sqlite"])
def test_committed_rows_run_once_while_parts_are_killed(database: str) -> None:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with parts(database) as rounds:
        outcome = rounds.run(8, seed=7)  # each part is killed twice
    assert outcome.committed >= 8
    assert len(outcome.kills) == (4 if database == "postgresql" else 3)
    assert (outcome.missing, outcome.surplus) == ([], [])
