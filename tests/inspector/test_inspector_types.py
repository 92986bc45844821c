"""Lists, explanations, the doctor and the audit show paused types."""

from __future__ import annotations

import pytest

from qsync import InvalidTask, Task
from qsync.diagnostics.audit import Auditor
from qsync.diagnostics.limit_check import examine_limits
from qsync.keys import GlobalKeys
from qsync.limit import LimitRule
from tests.inspector.test_inspector_limits import lease
from tests.support.inspector_driver import Bed, S, bed
from tests.support.server import run
from tests.support.stores import Store


async def sentence(made: Bed, id: str) -> tuple[str, str, list[str]]:
    told = await made.inspector.explain(id)
    return told.sentence, told.reason, list(told.also)


def test_paused_type_is_listed_explained_and_resumed(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            inspector = made.inspector
            assert (await inspector.pause_type("mail")).outcome == "not_found"
            await made.enqueue(Task("mail", id="m1"), Task("mail", id="later", delay=3600))
            assert await inspector.paused_types() == []
            change = await inspector.pause_type("mail", by="ann", why="provider is down")
            assert change.ok
            await made.enqueue(Task("mail", id="m2", limits=["c"]), Task("other", id="o"))

            text, reason, also = await sentence(made, "m1")
            assert "Type 'mail' is paused by ann since 20" in text
            assert text.count("UTC: provider is down.") == 1
            assert (reason, also[0]) == ("type_paused", "no_server")
            text, reason, also = await sentence(made, "later")
            assert reason == "scheduled"
            assert also[0] == "type_paused"
            [held] = await lease(made)
            assert held.id == "o"
            text, reason, also = await sentence(made, "m2")
            assert text.startswith(
                "Set aside, behind 1 earlier task of its type that is set aside. Type 'mail' is"
            )
            assert reason == "type_paused"
            text, _, _ = await sentence(made, "m1")
            assert text.startswith("Set aside. Type 'mail' is paused")
            told = await inspector.explain("m2")
            assert told.type_paused is not None
            assert (told.type_paused.by, told.type_paused.why) == ("ann", "provider is down")
            assert told.rank == 1
            assert "paused" not in (await inspector.explain("o")).sentence

            [paused] = await inspector.paused_types()
            assert (paused.type, paused.waiting, paused.pause.by) == ("mail", 2, "ann")
            assert (await inspector.limits()).limits == []
            report = await Auditor(made.broker, prefix=prefix).audit("default")
            assert report.damages == []
            assert (await inspector.resume_type("mail")).ok
            text, reason, _ = await sentence(made, "m1")
            assert text.startswith("The pause of 'mail' is over: the task starts when a ")
            assert reason == "limited"
            assert (await inspector.resume_type("mail")).outcome == "not_found"
            assert [one.id for one in await lease(made)] == ["m1", "m2"]

    run(main())


def test_lost_pause_is_found_by_an_audit_and_its_tasks_return(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await made.enqueue(Task("x", id="1"))
            await made.inspector.pause_type("mail")
            await made.enqueue(*[Task("mail", id=f"m{n}") for n in range(3)])
            await made.broker.ask("HDEL", made.keys().key("limit_rules"), "@", "@mail")
            auditor = Auditor(made.broker, prefix=prefix)
            report = await auditor.audit("default")
            assert [one.kind for one in report.damages] == ["limit shut"]
            await auditor.repair(report.damages)
            assert (await auditor.audit("default")).damages == []
            assert {one.id for one in await lease(made)} == {"1", "m0", "m1", "m2"}

    run(main())


def test_doctor_does_not_report_a_paused_type_as_a_low_limit(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await made.enqueue(Task("x", id="1", limits=["c"]))
            await lease(made)
            await made.inspector.set_limit("c", LimitRule(concurrency=5))
            await made.inspector.pause_type("mail")
            await made.enqueue(Task("mail", id="m"))
            key = made.keys().key("tasks")
            message = await made.broker.ask("HGET", key, "m")
            old = int.from_bytes(message[3:11]) - 7200 * S
            await made.broker.ask("HSET", key, "m", message[:3] + old.to_bytes(8) + message[11:])
            assert await examine_limits(made.broker, GlobalKeys(prefix)) == []
            await made.inspector.resume_type("mail")
            [problem] = await examine_limits(made.broker, GlobalKeys(prefix)) or []
            assert "has waited too long in default (2 h" in problem

    run(main())


def test_invalid_types_and_too_many_types_are_refused(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await made.enqueue(Task("x"))
            for wrong in ("", "a\0b", "x" * 257):
                with pytest.raises(InvalidTask, match=r"^type: "):
                    await made.inspector.pause_type(wrong)
                with pytest.raises(InvalidTask, match=r"^type: "):
                    await made.inspector.resume_type(wrong)
            for n in range(100):
                await made.inspector.pause_type(f"t{n}")
            with pytest.raises(InvalidTask, match=r"'t100' is one too many: 100 types of default"):
                await made.inspector.pause_type("t100")

    run(main())
