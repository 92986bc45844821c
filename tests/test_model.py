"""The heart of the suite: whatever is called in whatever order, the scripts do what the model says.

QSYNC_MODEL_EXAMPLES sets how many runs of STEPS calls are made, which are then other ones each
time. A failure prints the steps that lead to it.
"""

from __future__ import annotations

import os
from typing import Final

import pytest
from hypothesis import Phase

from qsync.state import TRANSITIONS
from tests.invariants import VERBS
from tests.machine import run_machine
from tests.mutation import planted
from tests.rig import BINARIES, Rig
from tests.stores import Binary, available

EXAMPLES: Final = os.environ.get("QSYNC_MODEL_EXAMPLES")
DEFAULT: Final = {"valkey": 150, "redis": 30}


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("binary", BINARIES)
def test_the_scripts_do_what_the_model_says(binary: Binary) -> None:
    with Rig(binary) as rig:
        run_machine(rig, examples=int(EXAMPLES or DEFAULT[binary]), fixed=EXAMPLES is None)


MISTAKES: Final = {
    "a settlement without a look at the token": (
        "include/owned.lua",
        "elseif owner == args[first + stride * (i - 1) + 1] then",
        "elseif true then",
    ),
    "a death that frees no lock": ("kill.lua", "  unlock(KEYS[5], now, dying)\n", ""),
    "a promotion that takes tasks out and forgets them": (
        "fetch.lua",
        "    to_pending(k.pending, k.meta, k.fairness, k.keys, due)\n",
        "",
    ),
}


@pytest.mark.skipif(not available("valkey"), reason="needs valkey")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_machine_finds_a_planted_mistake(mistake: tuple[str, str, str]) -> None:
    with Rig("valkey") as rig, planted(*mistake), pytest.raises(AssertionError):
        run_machine(rig, examples=100, fixed=True, phases=(Phase.generate,))


def test_every_transition_has_a_verb_that_the_machine_knows() -> None:
    verbs = {verb for verbs in VERBS.values() for verb in verbs}
    assert {verb for _, verb in TRANSITIONS} == verbs
