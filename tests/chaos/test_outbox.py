"""Each committed row of an outbox runs once, whichever part is killed; `make soak` runs 1,000
rounds."""

from __future__ import annotations

import pytest

from tests.chaos.outbox_rounds import parts
from tests.conftest import NEEDS
from tests.support.postgres import needs_postgres
from tests.support.stores import available


@pytest.mark.timeout(300)
@needs_postgres
def test_committed_rows_run_once_while_parts_are_killed() -> None:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with parts() as rounds:
        outcome = rounds.run(4, seed=7)  # each part once
    assert outcome.committed >= 4
    assert (outcome.missing, outcome.surplus) == ([], [])
