"""After an outage, expired leases get a grace period in which their servers can renew them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import op_values, ops
from qsync.broker.op_values import LeaseRef
from tests.support.queue_driver import BINARIES, LAPSE, LEASE, POLICY, Rig, S

pytestmark = [pytest.mark.faults(28), pytest.mark.guarantee(4)]


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def leased(rig: Rig) -> list[LeaseRef]:
    """Lease two tasks; return them in the order of their leases, which differs from the order of
    their ids."""
    rig.enqueue("b", "a")
    held = rig.lease(server="s")
    assert [one.id for one in held] == ["b", "a"]
    return held


def fetch(rig: Rig, number: int, *, server: str = "t") -> op_values.FetchResult:
    """Fetch like `Rig.fetch`, but without first recording that a server was alive."""
    call = ops.fetch(
        rig.keys, server=server, number=number, wanted=5, policy=POLICY, now_us=rig.now
    )
    return rig.run(call)


def test_after_an_outage_leases_are_spared_for_a_third_of_a_lease(rig: Rig) -> None:
    leased(rig)
    rig.now += LAPSE
    first = fetch(rig, 1)
    assert first.ids == []
    assert first.next_due_us == LEASE // 3
    rig.now += LEASE // 3 - 1
    assert fetch(rig, 2).ids == []
    rig.now += 1
    assert fetch(rig, 3).ids == ["b", "a"]
    assert rig.counters()["crashed"] == 2


def test_leases_renewed_after_an_outage_charge_no_crash(rig: Rig) -> None:
    held = leased(rig)
    rig.now += 10 * LEASE
    assert fetch(rig, 1).ids == []
    rig.now += S
    assert rig.renew(*held) == ["ok", "ok"]
    rig.now += LEASE // 3
    assert fetch(rig, 2).ids == []
    assert rig.complete(*held) == ["ok", "ok"]
    assert "crashed" not in rig.counters()


def test_a_renewal_that_comes_first_spares_the_leases_of_others(rig: Rig) -> None:
    rig.enqueue("c")
    other = rig.lease(server="u")
    leased(rig)
    rig.now += LAPSE
    assert rig.renew(*other) == ["ok"]
    assert fetch(rig, 1).ids == []


def test_leases_are_not_spared_while_servers_are_live(rig: Rig) -> None:
    leased(rig)
    for number, step in enumerate((LEASE // 3, LEASE // 3, LEASE // 3 - 1)):
        rig.now += step
        assert fetch(rig, number).ids == []
    rig.now += 2
    assert fetch(rig, 4).ids == ["b", "a"]


def test_short_clock_gap_does_not_expire_leases(rig: Rig) -> None:
    """Servers renew a lease after each third of its time, so a gap of half that time does not count
    as an outage."""
    leased(rig)
    rig.now += LEASE // 2
    assert fetch(rig, 1).ids == []
    rig.now += LEASE // 2
    assert fetch(rig, 2).ids == ["b"]


@pytest.mark.faults(46)
def test_clock_jump_counts_as_an_outage(rig: Rig) -> None:
    held = leased(rig)
    rig.now += 3600 * S
    assert fetch(rig, 1).ids == []
    assert rig.renew(*held) == ["ok", "ok"]
    rig.now -= 3600 * S
    assert fetch(rig, 2).ids == []
    rig.now += LEASE
    assert fetch(rig, 3).ids == []
    assert rig.complete(*held) == ["ok", "ok"]


@pytest.mark.faults(7)
def test_abandoned_leases_are_not_spared(rig: Rig) -> None:
    """The server that held abandoned leases is known to be dead, so its tasks are recovered even
    after an outage."""
    leased(rig)
    rig.enqueue("c")
    rig.lease(server="u")
    rig.now += LAPSE
    assert rig.abandon("s") == 2
    found = fetch(rig, 1)
    assert found.ids == ["b", "a"]
    assert found.next_due_us == LEASE // 3
    assert rig.state("c") == "active"


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("abandoned", [False, True])
def test_recovered_tasks_come_in_the_order_in_which_they_were_leased(
    rig: Rig, renewed: bool, abandoned: bool
) -> None:
    ids = [f"{n * 37 % 100:02}" for n in range(100)]
    rig.enqueue(*ids)
    held = rig.lease(server="s")
    if renewed:
        rig.renew(*held)
    if abandoned:
        rig.abandon("s")
    else:
        rig.now += LAPSE
    assert rig.fetch(server="t").ids == ids
