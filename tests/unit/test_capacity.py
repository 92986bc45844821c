"""The number of tasks that a server leases before it has free slots for them."""

from qsync.server.batch_gathering import Gathering
from qsync.server.capacity import MEASUREMENT_STARTS, Capacity
from qsync.server.config import Config
from qsync.server.crash_isolation import CrashIsolation


def make_capacity(config: Config, *, threads_only: bool = False) -> Capacity:
    return Capacity(config, CrashIsolation(), Gathering(lambda: None), threads_only=threads_only)


async def test_a_server_leases_tasks_ahead_soon_after_many_starts() -> None:
    capacity = make_capacity(Config(concurrency=100))
    assert capacity.fetch_size() == 100, "the throughput is not known yet"

    capacity.started += MEASUREMENT_STARTS
    ahead = capacity.fetch_size() - 100
    assert ahead > 0
    capacity.started += MEASUREMENT_STARTS
    assert capacity.fetch_size() - 100 > ahead, "the more tasks have started, the more are leased"


async def test_prefetch_bounds_the_tasks_leased_ahead() -> None:
    capacity = make_capacity(Config(concurrency=100, prefetch=3))
    capacity.started += 10 * MEASUREMENT_STARTS
    assert capacity.fetch_size() == 103


async def test_quick_tasks_wait_for_a_thread_in_slots_beyond_concurrency() -> None:
    capacity = make_capacity(Config(concurrency=6), threads_only=True)
    assert capacity.slots == 6
    capacity.started += 10 * MEASUREMENT_STARTS
    ahead = capacity.fetch_size() - 6
    assert 6 < capacity.slots < 6 + ahead, "the tasks leased ahead include those in the extra slots"
    capacity.running = capacity.slots
    assert capacity.in_use == 6
    assert capacity.open_slots() == 0


async def test_only_threads_get_slots_beyond_concurrency_and_prefetch_bounds_them() -> None:
    for capacity in (
        make_capacity(Config(concurrency=6)),
        make_capacity(Config(concurrency=6, prefetch=0), threads_only=True),
    ):
        capacity.started += 10 * MEASUREMENT_STARTS
        capacity.fetch_size()
        assert capacity.slots == 6
