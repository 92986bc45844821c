"""Batch handlers: how tasks are collected for a call, and how each task of a call gets its own
outcome."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import (
    ConfigError,
    DuplicateTask,
    InvalidTask,
    Mux,
    Qsync,
    SkipRetry,
    Snooze,
    Task,
    TaskInfo,
    current,
)  # fmt: skip
from qsync.contrib.prometheus import render, server_metrics
from qsync.mux import CallNext
from qsync.server.run_metrics import RunMetrics
from tests.support.handlers import Panics
from tests.support.server import Bench, bench, until
from tests.support.stores import Store

Handler = Callable[[list[TaskInfo]], Any]


class Calls:
    """A batch handler that records the payloads of its calls."""

    def __init__(self, answer: Handler = lambda tasks: None) -> None:
        self.calls: list[list[bytes]] = []
        self.answer = answer

    async def __call__(self, tasks: list[TaskInfo]) -> Any:
        self.calls.append([task.payload for task in tasks])
        answer = self.answer(tasks)
        return await answer if inspect.iscoroutine(answer) else answer

    @property
    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]

    @property
    def payloads(self) -> list[bytes]:
        return [payload for call in self.calls for payload in call]


def mux_of(handler: Any, **options: Any) -> Mux:
    mux = Mux()
    mux.batch("index", **options)(handler)
    return mux


def tasks_of(count: int, **options: Any) -> list[Task[Any]]:
    return [Task("index", b"%d" % number, **options) for number in range(count)]


async def all_gone(b: Bench, handles: Sequence[Any]) -> None:
    for handle in handles:
        await b.gone(handle.id)


# Gathering.


def test_a_call_gets_up_to_max_size_tasks_in_their_order(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            handles = await b.client.enqueue_many(tasks_of(250))
            async with b.server(mux_of(calls, max_size=100, max_wait=0.5)):
                await all_gone(b, handles)
            assert calls.sizes == [100, 100, 50]
            assert calls.payloads == [b"%d" % number for number in range(250)]

    asyncio.run(main())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_batch_fills_although_there_are_fewer_slots(
    valkey: Store, prefix: str, concurrency: int
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            handles = await b.client.enqueue_many(tasks_of(64))
            mux = mux_of(calls, max_size=64, max_wait=30)
            async with b.server(mux, concurrency=concurrency, prefetch=0):
                await all_gone(b, handles)
            assert calls.sizes == [64]

    asyncio.run(main())


def test_a_batch_that_does_not_fill_starts_after_max_wait(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            async with b.server(mux_of(calls, max_wait=0.2)):
                began = time.monotonic()
                handles = await b.client.enqueue_many(tasks_of(3))
                await all_gone(b, handles)
                assert time.monotonic() - began >= 0.2
            assert calls.sizes == [3]

    asyncio.run(main())


def test_a_batch_that_waits_takes_no_slot(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            mux = mux_of(calls, max_wait=60)

            @mux.handle("single")
            async def single(task: TaskInfo) -> None: ...

            async with b.server(mux, concurrency=1):
                await b.client.enqueue(Task("index"))
                handles = [await b.client.enqueue(Task("single")) for _ in range(5)]
                await all_gone(b, handles)
                assert calls.calls == []

    asyncio.run(main())


def test_batch_call_takes_one_slot(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            gate, most, now = asyncio.Event(), [0], [0]

            async def hold(tasks: list[TaskInfo]) -> None:
                now[0] += 1
                most[0] = max(most[0], now[0])
                await gate.wait()
                now[0] -= 1

            handles = await b.client.enqueue_many(tasks_of(60))
            async with b.server(mux_of(hold, max_size=10, max_wait=0.01), concurrency=2) as server:
                await until(lambda: now[0] == 2)
                assert server._capacity.running == 2
                gate.set()
                await all_gone(b, handles)
            assert most[0] == 2

    asyncio.run(main())


def test_leases_of_a_waiting_batch_are_bounded(valkey: Store, prefix: str) -> None:
    """While all slots are in use, the server leases no more tasks than it can run soon."""

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            gate = asyncio.Event()
            mux = mux_of(Calls(), max_size=10, max_wait=0.01)

            @mux.handle("single")
            async def single(task: TaskInfo) -> None:
                await gate.wait()

            await b.client.enqueue(Task("single"))
            async with b.server(mux, concurrency=1, prefetch=0) as server:
                await until(lambda: server._capacity.running == 1)
                await b.client.enqueue_many(tasks_of(500))
                for _ in range(20):
                    await b.client.enqueue(Task("index"))
                assert sum(len(queue.held) for queue in server._queues) <= 12
                gate.set()

    asyncio.run(main())


def test_a_task_does_not_wait_past_its_deadline(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            async with b.server(mux_of(calls, max_wait=60)):
                deadline = datetime.now(UTC) + timedelta(seconds=20)
                handle = await b.client.enqueue(Task("index", deadline=deadline))
                await b.gone(handle.id)
            assert calls.sizes == [1]

    asyncio.run(main())


def test_a_late_task_is_dead_and_the_others_of_its_batch_run(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            deadline = datetime.now(UTC) + timedelta(seconds=0.05)
            late = await b.client.enqueue(Task("index", b"late", deadline=deadline))
            await until(lambda: datetime.now(UTC) > deadline)
            other = await b.client.enqueue(Task("index", b"other"))
            async with b.server(mux_of(calls, max_wait=0.05)):
                await b.gone(other.id)
                await b.reaches(late.id, "dead")
            assert calls.payloads == [b"other"]

    asyncio.run(main())


# Outcomes.


def test_a_list_gives_each_task_its_own_outcome(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:

            def answer(tasks: list[TaskInfo]) -> list[Any]:
                by_payload: dict[bytes, Any] = {
                    b"0": {"ok": 1}, b"1": ValueError("bad row"), b"2": None,
                    b"3": SkipRetry("never"), b"4": asyncio.CancelledError(), b"5": object(),
                    b"6": Panics(1),
                }  # fmt: skip
                return [by_payload[task.payload] for task in tasks]

            handles = await b.client.enqueue_many(tasks_of(7, retention=60, retry=0))
            async with b.server(mux_of(Calls(answer), max_wait=0.05)):
                assert await handles[0].result(timeout=5) == {"ok": 1}
                assert await handles[2].result(timeout=5) is None
                for number, state in enumerate(
                    ["completed", "dead", "completed", "dead", "dead", "dead", "dead"]
                ):
                    await b.reaches(handles[number].id, state)
            errors = [(await handle.info()).last_error or "" for handle in handles]
            assert "ValueError: bad row" in errors[1]
            assert "never" in errors[3]
            assert "CancelledError" in errors[4]
            assert "could not be stored" in errors[5]
            assert "in the encoder" in errors[6]

    asyncio.run(main())


def test_only_the_failed_task_of_a_batch_is_retried(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:

            def answer(tasks: list[TaskInfo]) -> list[Any]:
                return [
                    ValueError() if task.payload == b"1" and task.attempt == 1 else None
                    for task in tasks
                ]

            calls = Calls(answer)
            handles = await b.client.enqueue_many(tasks_of(3, retry_delay=0.02))
            async with b.server(mux_of(calls, max_wait=0.05)):
                await all_gone(b, handles)
            assert calls.calls == [[b"0", b"1", b"2"], [b"1"]]

    asyncio.run(main())


def test_enqueues_of_a_retried_call_are_repetitions_if_its_first_task_is_the_same(
    valkey: Store, prefix: str
) -> None:
    app = Qsync(valkey.url, prefix=prefix)
    calls: list[list[int]] = []
    outcomes: list[list[bool | str]] = []

    @app.batch("parent", max_size=2, max_wait=5, retry=2, retry_delay=0)
    async def parent(tasks: list[TaskInfo]) -> Any:
        calls.append([task.value() for task in tasks])
        outcomes.append([])
        for task in tasks:
            try:
                child = Task("child", task.value(), id=f"{task.id}-child", queue="others")
                outcomes[-1].append((await current().client.enqueue(child)).created)
            except DuplicateTask:
                outcomes[-1].append("duplicate")
        if len(calls) == 1:
            raise ValueError("the whole call")
        return [None if task.value() == 1 or len(calls) > 2 else ValueError() for task in tasks]

    async def main() -> None:
        async with app.async_client() as client, app.server():
            # Retries with the same due time are ordered by their ids.
            await client.enqueue_many([parent.options(id=f"p{n}").build(n) for n in (1, 2)])
            await until(lambda: len(outcomes) >= 2)
            deadline = datetime.now(UTC) + timedelta(seconds=1)  # ends the wait for a full batch
            await parent.options(deadline=deadline).enqueue(3)
            await until(lambda: len(outcomes) == 3)

    asyncio.run(main())
    assert calls[:2] == [[1, 2], [1, 2]]
    assert outcomes[:2] == [[True, True], [True, True]]
    assert calls[2] == [2, 3]
    assert outcomes[2] == ["duplicate", True]


def test_snooze_in_the_list_applies_only_to_its_task(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls(
                lambda tasks: [Snooze(60) if task.payload == b"0" else None for task in tasks]
            )
            handles = await b.client.enqueue_many(tasks_of(2))
            async with b.server(mux_of(calls, max_wait=0.05)):
                await b.gone(handles[1].id)
                await b.reaches(handles[0].id, "scheduled")
            assert (await handles[0].info()).attempt == 1
            assert calls.sizes == [2]

    asyncio.run(main())


def test_exception_fails_all_tasks_of_the_call_and_is_logged_in_full_once(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            told: list[tuple[str, bool]] = []

            def fail(tasks: list[TaskInfo]) -> None:
                raise ConnectionError("index is away")

            handles = await b.client.enqueue_many(tasks_of(4, retry=0))
            config = {"on_error": lambda error, task: told.append((task.id, task.final))}
            async with b.server(mux_of(Calls(fail), max_wait=0.05), **config):
                for handle in handles:
                    await b.reaches(handle.id, "dead")
                await until(lambda: len(told) == 4)
            assert sorted(told) == sorted((handle.id, True) for handle in handles)

    caplog.set_level(logging.ERROR, "qsync.server")
    asyncio.run(main())
    failed = [one for one in caplog.records if "index is away" in one.getMessage()]
    assert len(failed) == 4
    assert [("in fail" in (one.exc_text or "")) for one in failed] == [True, False, False, False]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda tasks: tasks[1:], "returned 1 results for 2 tasks"),
        (lambda tasks: [], "returned 0 results for 2 tasks"),
        (lambda tasks: {}, "returned a value of type dict"),
        (lambda tasks: "ab", "returned a value of type str"),
        (lambda tasks: (one for one in tasks), "returned a generator"),
    ],
)
def test_outcomes_of_another_shape_raise_a_clear_error(
    valkey: Store, prefix: str, answer: Handler, error: str
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            handles = await b.client.enqueue_many(tasks_of(2, retry=0))
            async with b.server(mux_of(Calls(answer), max_wait=0.05)):
                for handle in handles:
                    await b.reaches(handle.id, "dead")
                    assert error in ((await handle.info()).last_error or "")

    asyncio.run(main())


def test_batch_handler_has_its_own_retry_rules(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            errors = {b"0": KeyError(), b"1": OSError()}
            calls = Calls(lambda tasks: [errors[task.payload] for task in tasks])
            handles = await b.client.enqueue_many(tasks_of(2, retry=1))
            mux = mux_of(calls, max_wait=0.05, dont_retry_for=KeyError, retry_delay=lambda *_: 0.01)
            async with b.server(mux):
                for handle in handles:
                    await b.reaches(handle.id, "dead")
            assert calls.payloads == [b"0", b"1", b"1"]

    asyncio.run(main())


# Stops.


def test_a_cancelled_task_ends_with_the_call_and_the_others_complete(
    valkey: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            begun, gate, seen = asyncio.Event(), asyncio.Event(), []

            async def hold(tasks: list[TaskInfo]) -> list[int]:
                begun.set()
                await gate.wait()
                seen.append(current().cancelled)
                return [1] * len(tasks)

            handles = await b.client.enqueue_many(tasks_of(3, retention=60))
            async with b.server(mux_of(hold, max_wait=0.05)) as server:
                await begun.wait()
                assert await handles[1].cancel()
                held = server._queues[0].held[handles[1].id]
                await until(lambda: held.stop == "cancelled")
                gate.set()
                assert await handles[0].result(timeout=5) == 1
                assert await handles[2].result(timeout=5) == 1
                assert (await handles[1].info()).cancelled
            assert seen == [False]

    asyncio.run(main())


def test_batch_call_is_cancelled_once_all_its_tasks_are(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            begun, ended = asyncio.Event(), []

            async def hold(tasks: list[TaskInfo]) -> None:
                begun.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ended.append(current().cancelled)
                    raise

            handles = await b.client.enqueue_many(tasks_of(2))
            async with b.server(mux_of(hold, max_wait=0.05)):
                await begun.wait()
                for handle in handles:
                    assert await handle.cancel()
                await all_gone(b, handles)
            assert ended == [True]

    asyncio.run(main())


def test_task_cancelled_while_its_batch_waits_is_left_out_of_the_call(
    valkey: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            async with b.server(mux_of(calls, max_size=3, max_wait=60)) as server:
                first = await b.client.enqueue(Task("index", b"first"))
                await until(lambda: first.id in server._queues[0].held)
                assert await first.cancel()
                await b.gone(first.id)
                others = await b.client.enqueue_many(tasks_of(2))
                await all_gone(b, others)
            assert calls.calls == [[b"0", b"1"]]

    asyncio.run(main())


def test_the_shortest_timeout_stops_the_call(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls(lambda tasks: asyncio.sleep(60))
            handles = [
                await b.client.enqueue(Task("index", timeout=timeout, retry=0))
                for timeout in (60, 0.1, None)
            ]
            async with b.server(mux_of(calls, max_wait=0.05), timeout=30):
                for handle in handles:
                    await b.reaches(handle.id, "dead")
                    assert "timed out after 0.1 s" in ((await handle.info()).last_error or "")
            assert calls.sizes == [3]
            own = [await b.client.enqueue(Task("index", timeout=s, retry=0)) for s in (0.3, 0.2)]
            async with b.server(mux_of(calls, max_wait=0.05), timeout=0.1):
                for handle in own:
                    await b.reaches(handle.id, "dead")
                    assert "timed out after 0.2 s" in ((await handle.info()).last_error or "")

    asyncio.run(main())


def test_call_continues_when_one_lease_is_lost(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            begun, gate = asyncio.Event(), asyncio.Event()

            async def hold(tasks: list[TaskInfo]) -> list[int]:
                begun.set()
                await gate.wait()
                return [1] * len(tasks)

            handles = await b.client.enqueue_many(tasks_of(2, retention=60))
            async with b.server(mux_of(hold, max_wait=0.05)) as server:
                await begun.wait()
                queue = server._queues[0]
                server._runner.stopping.lose(queue.held[handles[0].id])
                server._runner.stopping.lose(queue.held[handles[0].id])
                gate.set()
                assert await handles[1].result(timeout=5) == 1
                assert await b.state(handles[0].id) == "active"
                await until(lambda: not queue.held)
                assert server.lost_leases == 1

    asyncio.run(main())


def test_a_batch_that_waits_is_handed_back_uncharged_when_the_server_stops(
    valkey: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()
            async with b.server(mux_of(calls, max_wait=60)) as server:
                handles = await b.client.enqueue_many(tasks_of(5))
                await until(lambda: len(server._queues[0].held) == 5)
                began = time.monotonic()
            assert time.monotonic() - began < 1.5
            assert calls.calls == []
            for handle in handles:
                assert await b.state(handle.id) == "pending"
                assert (await handle.info()).attempt == 1

    asyncio.run(main())


def test_a_call_that_outlasts_the_shutdown_is_handed_back_whole(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            begun = asyncio.Event()

            async def hold(tasks: list[TaskInfo]) -> None:
                begun.set()
                await asyncio.sleep(60)

            handles = await b.client.enqueue_many(tasks_of(5))
            async with b.server(mux_of(hold, max_wait=0.05), shutdown_timeout=0.1):
                await begun.wait()
            for handle in handles:
                assert await b.state(handle.id) == "pending"

    asyncio.run(main())


def test_a_call_that_ignores_its_stop_counts_once_as_hung(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            gate = asyncio.Event()

            async def stubborn(tasks: list[TaskInfo]) -> None:
                while not gate.is_set():
                    try:
                        await gate.wait()
                    except asyncio.CancelledError:
                        continue

            handles = await b.client.enqueue_many(tasks_of(5, retry=0, timeout=0.05))
            async with b.server(mux_of(stubborn, max_wait=0.05)) as server:
                stopping = server._runner.stopping
                await until(lambda: any(one.stop for one in server._queues[0].held.values()))
                stopping.give_up_all()
                assert stopping._hung.count == 1
                assert server._capacity.running == 0
                for handle in handles:
                    await b.reaches(handle.id, "dead")
                gate.set()
                await until(lambda: stopping._hung.count == 0)

    asyncio.run(main())


def test_a_task_that_crashed_before_runs_in_a_separate_call(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            begun, gate = asyncio.Event(), asyncio.Event()

            async def hold(tasks: list[TaskInfo]) -> None:
                begun.set()
                await gate.wait()

            handles = await b.client.enqueue_many(tasks_of(3))
            server = b.server(mux_of(hold, max_wait=0.05))
            await server.start()
            await begun.wait()
            await server.abort()
            calls = Calls(lambda tasks: [task.crashes for task in tasks])
            async with b.server(mux_of(calls, max_size=10, max_wait=0.05)):
                await all_gone(b, handles)
            assert calls.sizes == [1, 1, 1]

    asyncio.run(main())


# Middleware and the context of a call.


def test_a_def_handler_runs_in_a_thread_with_its_middleware(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            seen: list[Any] = []

            def around(task: TaskInfo, call_next: Any) -> Any:
                seen.append(len(current().tasks))
                return call_next(task)

            async def outer(task: TaskInfo, call_next: CallNext) -> Any:
                seen.append(("outer", task.payload))
                return await call_next()

            def index(tasks: list[TaskInfo]) -> list[int]:
                seen.append(threading.current_thread().name.startswith("qsync-"))
                assert [task.id for task in tasks] == [task.id for task in current().tasks]
                assert current().task.id == tasks[0].id
                current().progress(1, 2)
                return [int(task.payload) for task in tasks]

            handles = await b.client.enqueue_many(tasks_of(4, retention=60))
            mux = mux_of(index, max_wait=0.05, middleware=[around])
            async with b.server(mux, middleware=(outer,)):
                for number, handle in enumerate(handles):
                    assert await handle.result(timeout=5) == number
            assert seen == [("outer", b"0"), 4, True]
            assert {(await handle.info()).progress for handle in handles} == {(1.0, 2.0)}

    asyncio.run(main())


def test_a_middleware_can_change_the_first_task(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls()

            async def around(task: TaskInfo, call_next: CallNext) -> Any:
                changed = TaskInfo(**{**{f: getattr(task, f) for f in task.__struct_fields__},
                                      "payload": b"changed"})  # fmt: skip
                return await call_next(changed)

            handles = await b.client.enqueue_many(tasks_of(2))
            async with b.server(mux_of(calls, max_wait=0.05, middleware=[around])):
                await all_gone(b, handles)
            assert calls.calls == [[b"changed", b"1"]]

    asyncio.run(main())


def test_hooks_run_for_each_task_of_a_batch(valkey: Store, prefix: str) -> None:
    app = Qsync(valkey.url, prefix=prefix)
    heard: list[tuple[str, str]] = []
    for event in ("started", "completed"):
        app.on(event)(lambda task, event=event: heard.append((event, task.id)))  # type: ignore[call-overload]
    app.on("failed")(lambda task, error: heard.append(("failed", task.id)))

    @app.batch("index", max_wait=0.05, retry=0)
    async def index(tasks: list[TaskInfo]) -> list[Any]:
        return [ValueError() if task.value() == 1 else None for task in tasks]

    async def main() -> None:
        async with app.async_client() as client:
            handles = await client.enqueue_many([index.build(number) for number in range(3)])
        async with app.server():
            await until(lambda: len(heard) == 6)
        ids = [handle.id for handle in handles]
        assert heard[:3] == [("started", id) for id in ids]
        assert sorted(heard[3:]) == sorted(
            [("completed", ids[0]), ("failed", ids[1]), ("completed", ids[2])]
        )

    asyncio.run(main())


def test_metrics_count_each_task(valkey: Store, prefix: str) -> None:
    async def main() -> str:
        async with bench(valkey.url, prefix) as b:
            handles = await b.client.enqueue_many(tasks_of(3))
            server = b.server(mux_of(Calls(), max_wait=0.05))
            server.run_metrics = RunMetrics(["index"])
            async with server:
                await all_gone(b, handles)
                await until(lambda: server.idle)
            return render(server_metrics(server.run_metrics.rows(), [])).decode()

    text = asyncio.run(main())
    [line] = [one for one in text.splitlines() if 'outcome="completed"' in one]
    assert line.endswith((" 3.0", " 3"))


def test_a_batch_may_have_tasks_of_several_queues(valkey: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            calls = Calls(lambda tasks: [task.queue for task in tasks])
            handles = [
                await b.client.enqueue(Task("index", queue=queue, retention=60))
                for queue in ("default", "low")
            ]
            async with b.server(mux_of(calls, max_wait=0.3), queues=["default", "low"]):
                assert [await handle.result(timeout=5) for handle in handles] == ["default", "low"]
            assert calls.sizes == [2]

    asyncio.run(main())


# The app and the test kit.


def test_an_app_enqueues_typed_payloads_for_a_batch(valkey: Store, prefix: str) -> None:
    app = Qsync(valkey.url, prefix=prefix)

    @app.batch("index", max_wait=0.05, retention=60)
    async def index(tasks: list[TaskInfo]) -> list[list[int]]:
        return [task.value(list[int]) for task in tasks]

    async def main() -> None:
        async with app.server():
            first = await index.enqueue([1, 2])
            second = await index.options(queue="default").enqueue([3])
            assert await first.result(timeout=5) == [1, 2]
            assert await second.result(timeout=5) == [3]
        await app.aclose()

    asyncio.run(main())
    assert app.batches == {"index": index}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 0}, "max_size: 0 is not a whole number from 1 to 10000"),
        ({"max_size": 10_001}, "max_size: 10001"),
        ({"max_size": True}, "max_size: True"),
        ({"max_wait": -1}, "max_wait: -1 is not between 0 and 3600 seconds"),
        ({"limits": ["c:{x}"]}, "limits: 'c:{x}': no parameter 'x', nor any other; only the"),
        ({"max_wait": "1"}, "max_wait: '1'"),
        ({"max_wait": 3601}, "max_wait: 3601 is not between 0 and 3600 seconds"),
        ({"executor": "process"}, "executor='process' is not possible; a batch handler runs"),
        ({"mx_size": 1}, "no option 'mx_size'"),
        ({"retry": -1}, "retry: -1"),
    ],
)
def test_wrong_options_are_refused_at_declaration(options: dict[str, Any], message: str) -> None:
    app = Qsync("redis://localhost:1")
    with pytest.raises(ConfigError) as refused:

        @app.batch("index", **options)
        async def index(tasks: list[TaskInfo]) -> None: ...

    assert message in str(refused.value)


def test_functions_that_cannot_be_batch_handlers_are_refused() -> None:
    app = Qsync("redis://localhost:1")

    async def two(tasks: list[TaskInfo], more: int) -> None: ...

    def generate(tasks: list[TaskInfo]) -> Any:
        yield tasks

    for function, why in ((two, "a list of tasks alone"), (generate, "generator"), (int, "plain")):
        with pytest.raises(ConfigError, match=why):
            app.batch("index")(function)  # type: ignore[arg-type]
    app.batch("index")(lambda tasks: None)
    with pytest.raises(ConfigError, match="already has a handler"):
        app.batch("index")(lambda tasks: None)
    with pytest.raises(InvalidTask, match="no option 'nope'"):
        app.batches["index"].options(nope=1)  # type: ignore[call-arg]
