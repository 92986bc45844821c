"""What happens when leases expire: which tasks become pending again, in which order, and which
crashes are charged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from qsync.broker.op_values import LeaseRef
from tests.support.queue_driver import BINARIES, FAILURE, LAPSE, LEASE, POLICY, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def crash(rig: Rig, *, server: str = "s", mark: bool = False) -> None:
    """Let a server lease all tasks and die; let another server recover the tasks. If `mark` is set,
    the first server marks the tasks as started before it dies."""
    held = rig.lease(server=server)
    if mark:
        rig.mark_started(*held)
    rig.now += LAPSE
    rig.fetch(0, server="finder")


def crashes(rig: Rig, id: str) -> bytes | None:
    return rig.field("crashes", id)


@pytest.mark.faults(1)
@pytest.mark.guarantee(4)
def test_tasks_with_expired_leases_lead_pending_in_lease_order(rig: Rig) -> None:
    rig.enqueue("a", "b", "c")
    rig.lease(2)
    rig.now += 1
    rig.lease(1, server="t")
    rig.enqueue("d")
    rig.now += LAPSE
    found = rig.fetch(server="finder")
    assert found.ids == ["a", "b", "c", "d"]
    assert found.recovered == 3


def test_lease_expires_exactly_at_its_end(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.now += LEASE - 1
    assert rig.fetch(server="t").recovered == 0
    assert rig.state("a") == "active"
    rig.now += 1
    assert rig.fetch(server="t").ids == ["a"]


def test_renewed_lease_lasts_from_its_renewal(rig: Rig) -> None:
    rig.enqueue("a")
    held = rig.lease()
    rig.now += LEASE - 1
    assert rig.renew(*held) == ["ok"]
    assert rig.score("active", "a") == START + 2 * LEASE - 1
    rig.now += LEASE - 1
    assert rig.fetch(server="t").recovered == 0
    rig.now += 1
    assert rig.fetch(server="t").recovered == 1


def test_own_expired_leases_are_only_reported(rig: Rig) -> None:
    rig.enqueue("a", "b")
    held = rig.lease()
    rig.now += LAPSE
    before = rig.dump()
    found = rig.fetch()
    assert found.own_lapsed == ["a", "b"]
    assert found.ids == []
    after = rig.dump()
    assert {name for name in after if after[name] != before[name]} <= {"fetches", "meta"}
    assert rig.renew(*held) == ["ok", "ok"]
    assert rig.fetch().own_lapsed == []


def test_server_name_that_prefixes_another_is_a_different_server(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease(server="s1")
    rig.now += LAPSE
    found = rig.fetch(server="s")
    assert (found.own_lapsed, found.ids) == ([], ["a"])


def test_100_expired_leases_are_recovered_per_fetch(rig: Rig) -> None:
    ids = [str(n) for n in range(150)]
    rig.enqueue(*ids)
    rig.lease()
    rig.now += LAPSE
    first = rig.fetch(0, server="t")
    assert (first.recovered, first.more) == (100, True)
    second = rig.fetch(0, server="t")
    assert (second.recovered, second.more) == (50, False)
    assert sorted(rig.ids("pending")) == sorted(ids)


# Crash counts


@pytest.mark.faults(8)
def test_first_expiry_counts_for_all_tasks_of_the_server(rig: Rig) -> None:
    rig.enqueue("a", "b")
    crash(rig)
    assert (crashes(rig, "a"), crashes(rig, "b")) == (b"1", b"1")
    assert rig.counters()["crashed"] == 2


@pytest.mark.faults(8)
def test_later_expiries_count_only_for_marked_tasks(rig: Rig) -> None:
    rig.enqueue("guilty", "innocent")
    crash(rig)
    for n in range(2, 4):
        held = rig.lease()
        assert rig.mark_started(held[0]) == ["ok"]
        assert crashes(rig, "guilty") == f"{n - 1}+".encode()
        rig.now += LAPSE
        rig.fetch(0, server="finder")
        assert crashes(rig, "innocent") == b"1"
    assert rig.state("guilty") == "dead"
    assert rig.state("innocent") == "pending"
    assert rig.counters()["crashed"] == 4


def test_a_task_that_never_crashed_is_not_marked(rig: Rig) -> None:
    rig.enqueue("a")
    before = rig.dump()
    assert rig.mark_started(*rig.lease()) == ["ok"]
    assert crashes(rig, "a") is None
    assert "crashes" not in before


@pytest.mark.faults(7)
@pytest.mark.guarantee(5)
def test_task_at_the_crash_limit_is_dead_with_a_reason(rig: Rig) -> None:
    rig.enqueue("a", unique=True, fairness_key="k")
    for _ in range(3):
        assert rig.state("a") == "pending"
        crash(rig, mark=True)
    assert rig.state("a") == "dead"
    assert rig.score("dead", "a") == rig.now
    status = rig.status("a")
    assert status is not None
    assert status.last_error == "crashed 3 times"
    assert status.crashes == 3
    assert rig.counters()["dead"] == 1
    assert rig.locks() == {}
    assert not {"keys", "owner", "active"} & set(rig.dump())


def test_crash_limit_is_an_argument_of_the_fetch(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.now += LAPSE
    found = rig.fetch(0, server="t", policy=replace(POLICY, max_crashes=1))
    assert (found.died, found.recovered) == (1, 0)
    assert rig.state("a") == "dead"


def test_death_by_crashes_is_shown_before_older_failure(rig: Rig) -> None:
    rig.enqueue("a")
    rig.retry(*rig.lease(), delay_us=0, failure=FAILURE)
    for _ in range(3):
        rig.fetch(0)
        crash(rig, mark=True)
    status = rig.status("a")
    assert status is not None
    assert status.last_error == "crashed 3 times"


@pytest.mark.faults(1)
def test_crash_does_not_count_as_a_failed_attempt(rig: Rig) -> None:
    rig.enqueue("a")
    crash(rig)
    assert rig.field("failures", "a") is None
    assert "failed" not in rig.counters()


@pytest.mark.parametrize("how", ["hand_back", "retry"])
def test_surviving_task_loses_its_crash_mark(rig: Rig, how: str) -> None:
    rig.enqueue("a")
    crash(rig)
    held = rig.lease()
    rig.mark_started(*held)
    if how == "hand_back":
        rig.hand_back(*held)
    else:
        rig.retry(*held, delay_us=0)
        rig.fetch(0)
    assert crashes(rig, "a") == b"1"
    crash(rig)
    assert crashes(rig, "a") == b"1"  # the task was not running


def test_success_resets_the_crash_count(rig: Rig) -> None:
    rig.enqueue("a")
    crash(rig)
    rig.complete(*rig.lease())
    assert "crashes" not in rig.dump()


def test_rerun_dead_task_starts_fresh(rig: Rig) -> None:
    rig.enqueue("a")
    for _ in range(3):
        crash(rig, mark=True)
    assert rig.rerun("a", "dead") == ("ok", "")
    fetched = rig.fetch()
    assert (fetched.ids, fetched.crashes, fetched.failures) == (["a"], [0], [None])


def test_cancelled_task_ends_when_its_lease_expires(rig: Rig) -> None:
    rig.enqueue("kept", "gone", unique=True)
    rig.lease()
    assert rig.cancel("kept", retention_us=S)[0] == "active"
    assert rig.cancel("gone")[0] == "active"
    rig.now += LAPSE
    found = rig.fetch(server="t")
    assert (found.ids, found.recovered, found.died) == ([], 0, 0)
    assert rig.state("kept") == "completed"
    assert rig.state("gone") is None
    assert rig.locks() == {}
    assert rig.counters()["cancelled"] == 2
    assert "crashed" not in rig.counters()


# Abandon


def test_leases_of_an_abandoned_server_expire_at_once(rig: Rig) -> None:
    rig.enqueue("a", "b", "c")
    rig.lease(2, server="dead")
    rig.lease(1, server="dead2")
    rig.now += 1
    rig.woken()
    assert rig.abandon("dead") == 2
    assert rig.woken()
    found = rig.fetch(server="t")
    assert sorted(found.ids) == ["a", "b"]
    assert found.crashes == [1, 1]
    assert rig.state("c") == "active"


def test_abandon_processes_many_owners_in_parts(rig: Rig) -> None:
    for at in range(0, 3000, 500):
        rig.enqueue(*[str(n) for n in range(at, at + 500)])
        rig.lease(server="dead" if at % 1000 else "live")
    assert rig.abandon("dead") == 1500
    active = rig.keys.key("active")
    assert rig.client.zcount(active, "-inf", 0) == 1500
    assert rig.abandon("dead") == 1500
    assert rig.client.zcount(active, -(2**52), 0) == 1500


def test_abandon_of_a_server_without_leases_changes_nothing(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.woken()
    before = rig.dump()
    assert rig.abandon("other") == 0
    assert rig.dump() == before


def test_live_abandoned_server_is_fenced_after_its_task_is_taken(rig: Rig) -> None:
    rig.enqueue("a")
    [zombie] = rig.lease()
    rig.abandon("s")
    assert rig.renew(zombie) == ["ok"]  # no other server has leased the task yet
    rig.abandon("s")
    [heir] = rig.lease(server="t")
    assert rig.renew(zombie) == ["lost"]
    assert rig.complete(zombie) == ["lost"]
    assert rig.complete(heir) == ["ok"]
    assert rig.complete(zombie) == ["done"]


def test_renewal_of_a_deleted_task_creates_no_lease(rig: Rig) -> None:
    rig.enqueue("a")
    held = rig.lease()
    rig.complete(*held)
    before = rig.dump()
    assert rig.renew(*held, LeaseRef("never", "s/1")) == ["done", "done"]
    assert rig.dump() == before
