"""How many tasks a server leases ahead of its free slots."""

from qsync.server.batch_gathering import Gathering
from qsync.server.capacity import MEASUREMENT_STARTS, Capacity
from qsync.server.config import Config
from qsync.server.crash_isolation import CrashIsolation


def make_capacity(config: Config) -> Capacity:
    return Capacity(config, CrashIsolation(), Gathering(lambda: None))


async def test_a_server_leases_tasks_ahead_soon_after_many_starts() -> None:
    capacity = make_capacity(Config(concurrency=100))
    assert capacity.fetch_size() == 100, "no throughput is known yet"

    capacity.started += MEASUREMENT_STARTS
    ahead = capacity.fetch_size() - 100
    assert ahead > 0
    capacity.started += MEASUREMENT_STARTS
    assert capacity.fetch_size() - 100 > ahead, "the longer it starts tasks, the more it leases"


async def test_prefetch_bounds_what_is_leased_ahead() -> None:
    capacity = make_capacity(Config(concurrency=100, prefetch=3))
    capacity.started += 10 * MEASUREMENT_STARTS
    assert capacity.fetch_size() == 103
