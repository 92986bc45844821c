"""Clients keep working when a process forks, and when calls are cancelled."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings

import pytest

from qsync import Task
from qsync.broker import redis_clients
from qsync.broker.blocking import Broker
from qsync.client import Client
from tests.support.cancellation import connection_kept_after_a_cancel, mixed_up
from tests.support.stores import Store

FORKS = 1000


@pytest.mark.slow
@pytest.mark.faults(12)
def test_a_thousand_forks_mix_up_no_reply(valkey: Store, prefix: str) -> None:
    """Each child process uses the client of its parent, and the parent continues to use it."""
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        handles = [client.enqueue(Task("t", id="first"))]
        for number in range(0, FORKS, 20):
            children = []
            for child in range(number, number + 20):
                pid = os.fork()
                if pid == 0:
                    with contextlib.suppress(BaseException):
                        mine = [client.enqueue(Task("t", id=f"c{child}-{n}")) for n in range(3)]
                        good = all(one.created and one.info().id == one.id for one in mine)
                        os._exit(0 if good else 1)
                    os._exit(2)
                children.append(pid)
                handles.append(client.enqueue(Task("t", id=f"p{child}")))
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            assert codes == [0] * len(children)
        assert [one.info().id for one in handles[::10]] == [one.id for one in handles[::10]]
    assert valkey.command("HLEN", f"{{{prefix}:default}}:tasks") == 4 * FORKS + 1


@pytest.mark.faults(37)
@pytest.mark.parametrize("seeds", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_calls_that_are_cancelled_mix_up_no_reply(valkey: Store, prefix: str, seeds: int) -> None:
    """Half of a seed's 60 calls are cancelled at random moments. The slow variant makes 24,000
    calls."""
    answers = {seed: mixed_up(valkey.url, prefix, seed) for seed in range(seeds)}
    assert {seed: wrong for seed, wrong in answers.items() if wrong} == {}


def test_connection_kept_after_a_cancel_is_detected(valkey: Store, prefix: str) -> None:
    with connection_kept_after_a_cancel(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the mistake leaks connections
        assert any(mixed_up(valkey.url, prefix, seed) for seed in range(20))
        gc.collect()
