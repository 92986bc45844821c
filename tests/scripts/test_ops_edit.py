"""An edit replaces the message of a waiting or dead task and updates everything that depends on
it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from qsync import codec
from qsync.bounds import Bounds
from qsync.broker import bounds_ops, limit_ops
from qsync.broker.operator_ops import EditOutcome, RerunRequest, edit
from qsync.limit import LimitRule
from qsync.message import decode_message
from tests.scripts.test_ops_locks import LOCK, NAME
from tests.support.limits import with_limits
from tests.support.queue_driver import BINARIES, FAILURE, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def message_of(rig: Rig, id: str) -> bytes:
    stored = rig.field("tasks", id)
    assert stored is not None
    return stored


def edited(rig: Rig, id: str, state: str, payload: bytes = b"new", **options: Any) -> EditOutcome:
    seen = options.pop("seen", None) or message_of(rig, id)
    new = codec.encode(msgspec.structs.replace(decode_message(seen), payload=payload))
    return rig.run(edit(rig.keys, id, state, seen=seen, message=new, now_us=rig.now, **options))


def test_waiting_task_gets_the_message_and_keeps_or_changes_its_time(rig: Rig) -> None:
    rig.enqueue("s", delay=60)
    rig.enqueue("r")
    rig.retry(*rig.lease(), delay_us=600 * S)
    assert edited(rig, "s", "scheduled").outcome == "ok"
    assert rig.score("scheduled", "s") == START + 60 * S
    assert edited(rig, "r", "retry", due="+5000000").outcome == "ok"
    assert rig.score("retry", "r") == START + 5 * S
    assert edited(rig, "s", "scheduled", b"newer", rerun=RerunRequest("s")).outcome == "ok"
    assert rig.state("s") == "pending"
    rig.now += 5 * S
    fetched = rig.fetch()
    assert fetched.ids == ["s", "r"]
    assert [decode_message(one).payload for one in fetched.messages] == [b"newer", b"new"]
    assert fetched.failures[1] is not None, "r keeps its failed attempts"


def test_dead_task_stays_dead_or_runs_with_lock_key_and_record(rig: Rig) -> None:
    rig.enqueue("d", fairness_key="k", **LOCK)
    rig.kill(*rig.lease())
    assert edited(rig, "d", "dead").outcome == "ok"
    assert rig.state("d") == "dead"
    rerun = RerunRequest("d", "k", NAME, FAILURE)
    rig.enqueue("other", **LOCK)
    before = rig.dump()
    assert edited(rig, "d", "dead", b"newer", rerun=rerun) == ("duplicate", "other")
    assert rig.dump() == before
    rig.complete(*rig.lease())
    assert edited(rig, "d", "dead", b"newer", rerun=rerun) == ("ok", "")
    assert rig.enqueue("third", **LOCK) == [("duplicate", "d")]
    fetched = rig.fetch()
    assert (fetched.ids, fetched.failures) == (["d"], [FAILURE])
    assert decode_message(fetched.messages[0]).payload == b"newer"


def test_task_that_moved_or_changed_is_not_edited(rig: Rig) -> None:
    rig.enqueue("s", delay=60)
    seen = message_of(rig, "s")
    before = rig.dump()
    for state in ("retry", "dead", "pending", "none"):
        assert edited(rig, "s", state).outcome == "changed"
    assert edited(rig, "none", "scheduled", seen=seen).outcome == "changed"
    assert rig.dump() == before
    assert edited(rig, "s", "scheduled", b"by another").outcome == "ok"
    before = rig.dump()
    assert edited(rig, "s", "scheduled", b"mine", seen=seen).outcome == "changed"
    assert rig.dump() == before
    assert edited(rig, "s", "scheduled", b"by another", seen=seen).outcome == "ok", "sent again"
    rig.now += 60 * S
    assert rig.fetch().ids == ["s"]
    assert edited(rig, "s", "scheduled", seen=message_of(rig, "s")).outcome == "changed"


def test_edit_keeps_limits_and_bytes_correct(rig: Rig) -> None:
    rules = {"c": LimitRule(concurrency=1)}
    rig.run(limit_ops.put_limit_rules(rig.keys, rules, now_us=rig.now))
    rig.send([with_limits(task, "c") for task in rig.tasks("a")])
    rig.kill(*rig.lease())
    rig.send([with_limits(task, "c") for task in rig.tasks("b")])
    rig.run(bounds_ops.set_bounds(rig.keys, Bounds(max_bytes=10**6)))
    rig.run(bounds_ops.recount_bytes(rig.keys))
    assert edited(rig, "a", "dead", b"longer" * 9, rerun=RerunRequest("a")).outcome == "ok"
    assert rig.state("a") == "limited", "b has the only slot"
    total = sum(len(message_of(rig, id)) for id in ("a", "b"))
    assert rig.field("meta", "bytes") == str(total).encode()
    rig.complete(*rig.lease())
    assert rig.state("a") == "pending"
    rig.complete(*rig.lease())
    assert rig.field("meta", "bytes") == b"0"
