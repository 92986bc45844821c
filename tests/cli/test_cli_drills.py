"""An operator finds, understands and resolves each incident with three commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import Mux, Qsync, Task, TaskInfo
from tests.support.cli import Live, Ran, living
from tests.support.incidents import missed_cron, outage, poison
from tests.support.stores import Store, wait_until

MOST_COMMANDS = 3


class Operator:
    """Runs commands and counts them."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.commands = 0

    def types(self, words: str) -> Ran:
        self.commands += 1
        assert self.commands <= MOST_COMMANDS
        return self.live.ok(*words.split())


@pytest.fixture
def live(valkey: Store, prefix: str) -> Iterator[Live]:
    with living(valkey.url, prefix) as live:
        yield live


@pytest.fixture
def operator(live: Live) -> Operator:
    return Operator(live)


def count(live: Live, queue: str, state: str) -> int:
    info = live.do(live.inspector.queue(queue))
    return 0 if info is None else info.states[state]  # type: ignore[index]


def test_an_outage_of_an_api(live: Live, operator: Operator) -> None:
    live.do(outage(live.url, live.prefix, queue="payments", type="bill", count=5000))
    assert "payments: 5,000 tasks died of 1 error, the first " in live.ok("stats").out
    found = operator.types("errors --queue payments -o jsonl").json
    assert found["states"] == {"dead": 5000}
    assert "api.bank.example refused" in operator.types(f"errors show {found['id']}").out
    retried = operator.types(f"errors retry {found['id']}").out
    assert retried == "5,000 of 5,000 dead tasks pending now\n"
    assert count(live, "payments", "dead") == 0


def test_a_growing_queue(live: Live, operator: Operator) -> None:
    live.serve(concurrency=1)
    live.enqueue(*[Task("hold") for _ in range(300)])
    wait_until(lambda: live.do(live.inspector.fleet()).servers[0].running == 1, 20)
    assert "299" in operator.types("stats").out
    shown = operator.types("queue show default").out
    assert "served by 1 server: 1 of 1 slot busy; to empty the queue sooner" in shown
    live.serve(concurrency=300)  # as the third command, qsync worker, does
    wait_until(lambda: len(live.began) == 300, 20)


def test_a_poison_task_that_kills_processes(live: Live, operator: Operator) -> None:
    live.do(poison(live.url, live.prefix, Task("thumbnail", id="evil"), queue="images"))
    assert live.ok("dead", "list").out.count("crashed") == 1
    listed = operator.types("errors -o jsonl").json
    assert (listed["error"], listed["type"]) == ("crashed", "thumbnail")
    assert "evil" in operator.types(f"errors show {listed['id']}").out
    deleted = operator.types(f"errors delete {listed['id']} --yes").out
    assert deleted == "1 of 1 dead tasks deleted\n"


def test_a_flooding_tenant(live: Live, operator: Operator) -> None:
    live.enqueue(
        *[Task("note", queue="mail", fairness_key="acme") for _ in range(900)],
        *[Task("note", queue="mail", fairness_key=f"other-{n}") for n in range(100)],
    )
    assert "1,000" in operator.types("stats").out
    first = operator.types("fairness list --queue mail").out.splitlines()[2]
    key, number, weight = first.split()
    assert (key, weight) == ("acme", "1")
    assert 800 < int(number) < 980, "an estimate from a sample"
    operator.types("task cancel --state pending --queue mail --query key:acme --yes")
    assert count(live, "mail", "pending") == 100


def test_a_cron_that_did_not_run(live: Live, operator: Operator) -> None:
    live.do(missed_cron(live.url, live.prefix, "nightly", Task("note")))
    live.serve()
    line = "default: schedule nightly missed its run of "
    [shown] = [text for text in operator.types("stats").out.splitlines() if line in text]
    assert "missed" in operator.types(shown.partition("; qsync ")[2]).out
    operator.types("schedule trigger nightly")
    wait_until(lambda: len(live.began) == 1, 20)


def test_tasks_of_an_unknown_type_after_a_deploy(live: Live, operator: Operator) -> None:
    older = live.serve()
    live.enqueue(*[Task("invoice.v2", retention=60) for _ in range(30)])
    wait_until(lambda: live.do(live.inspector.fleet()).unknown_types, 20)
    line = "default: no running server has a handler for invoice.v2; its tasks: "
    [shown] = [text for text in operator.types("stats").out.splitlines() if line in text]
    assert "invoice.v2" in operator.types(shown.partition(": qsync ")[2]).out
    live.do(older.stop())
    mux = Mux()

    @mux.handle("invoice.v2")
    async def invoice(task: TaskInfo) -> None: ...

    newer = Qsync(live.url, prefix=live.prefix, mux=mux).server(lease=5, shutdown_timeout=0.2)
    live.do(newer.start())
    operator.types("task retry --state scheduled --type invoice.v2")
    wait_until(lambda: count(live, "default", "completed") == 30, 20)
    live.do(newer.stop())


def test_a_stuck_task(
    live: Live, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("qsync.inspector.servers.LONG_RUN_S", 0)
    live.serve()
    live.enqueue(Task("hold", id="stuck"))
    wait_until(lambda: live.do(live.inspector.fleet()).long_runs, 20)
    line = "default: task stuck has been running for "
    [shown] = [text for text in operator.types("stats").out.splitlines() if line in text]
    explain = shown.partition("; qsync ")[2]
    assert operator.types(explain).out.startswith("Running for ")
    operator.types("task cancel stuck")
    live.reaches("stuck", None)


def test_one_type_is_paused(live: Live, operator: Operator) -> None:
    live.serve()
    paused = operator.types("type pause bill --reason the-bank-is-down").out
    assert "bill" in paused
    live.enqueue(Task("bill", id="waits"), Task("note", id="runs"))
    wait_until(lambda: live.began == ["runs"], 20)
    live.broken = False
    assert "the-bank-is-down" in operator.types("task explain waits").out
    operator.types("type resume bill")
    live.reaches("waits", None)
