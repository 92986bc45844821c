"""A long run that is asked to stop ends with the verdict so far."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.progress import Progress
from tests.conftest import NEEDS
from tests.support.stores import available

ROOT = Path(__file__).parents[2]


def test_first_signal_requests_the_end_and_lines_are_printed_at_their_interval(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, stops = signal.getsignal(signal.SIGTERM), list[str]()
    with Progress() as progress:
        progress.on_stop = lambda: stops.append("stopped")
        progress.tell(lambda: "3 kills")
        progress.tell(lambda: "too early")
        signal.raise_signal(signal.SIGTERM)
        # A second signal within a second counts as the same request.
        signal.raise_signal(signal.SIGTERM)
        assert progress.stopped
        progress._stopped_at -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert stops == ["stopped"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["0 min: 3 kills", "stopping; a second signal ends the run without a verdict"]


@pytest.mark.timeout(300)
def test_stopped_simulation_prints_its_verdict() -> None:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    command = [sys.executable, "-m", "tests.simulation", "--seeds=100000", "--processes=2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stderr.readline() == "0 min: 0 seeds, bad: none\n"
        run.send_signal(signal.SIGTERM)
        said = run.stdout.read()
        assert run.wait(120) == 0
    assert re.search(r"\d+ seeds, \d+ calls, .* bad: none", said)


@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_rounds_of_limits_with_their_verdict() -> None:
    """As when Ctrl-C is pressed at a terminal, each process of the group gets the signal. The
    signal arrives while servers are starting."""
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    command = [sys.executable, "-m", "tests.chaos.limit_rounds", "--rounds=100000"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stderr.readline().startswith("0 min: 0 kills")
        os.killpg(run.pid, signal.SIGINT)
        said = run.stdout.read()
        assert run.wait(120) == 0, run.stderr.read()
    assert re.search(r"; 0 violations$", said.strip())
