"""Calls every operation in random order on the real scripts and on the model, and compares both.

Each call is made twice, because clients repeat unanswered calls; any earlier call may also be
repeated later. Time jumps forward and back, and sometimes to the moment at which something is due.
The store may run out of memory or forget its scripts, its user may lose the right to publish, and
data of the queue may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from qsync import codec
from qsync.bounds import NO_BOUNDS, Bounds
from qsync.broker import (
    bounds_ops,
    limit_ops,
    operator_ops,
    ops,
    program_schedule_ops,
    registry_ops,
    schedule_ops,
    type_ops,
    views,
)
from qsync.broker.call import Call
from qsync.broker.op_values import Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.broker.operator_ops import edit, reschedule
from qsync.broker.schedule_ops import TickRow
from qsync.broker.stored_schedules import StoredScheduleRow
from qsync.errors import QsyncError, QueueFull, SchemaMismatch
from qsync.limit import LimitRule
from qsync.message import NORMAL_PRIORITY, decode_message
from qsync.new_task import NewTask, new_nonce, new_task
from qsync.task import Task
from tests.scripts.model.actions import (
    IDS,
    OPTIONS,
    POLICY,
    RULES,
    SENDERS,
    SERVERS,
    actions,
    bounds,
    options,
)
from tests.scripts.model.model import Model
from tests.scripts.model.queue import Known, priority_of
from tests.support.damage import Damage, Patient
from tests.support.invariants import (
    assert_same,
    check,
    check_counts,
    check_other_keys,
    comparable,
)
from tests.support.limits import with_limits
from tests.support.queue_driver import LEASE, Dump, Rig, S, without_lost

STEPS: Final = 50


class Progress(NamedTuple):
    """A row of ops.progress."""

    id: str
    token: str
    done: int
    total: int


class Scripts(RuleBasedStateMachine):
    """Makes random calls. After each call, the store must match the model, and the invariants must
    hold."""

    rig: Rig
    full = False
    hushed = False
    flow = "plain"

    @initialize(
        kinds=st.lists(options, min_size=len(IDS), max_size=len(IDS)),
        wanted=st.integers(0, 6),
        crashed=st.booleans(),
        flow=st.sampled_from(("plain", "variant", "limits", "limits", "bounds", "bounds")),
        bounds=bounds,
        many=st.sampled_from((False,) * 15 + (True,)),
    )
    def begin(
        self,
        kinds: list[dict[str, Any]],
        wanted: int,
        crashed: bool,
        flow: str,
        bounds: Bounds,
        many: bool,
    ) -> None:
        """Enqueue tasks of all kinds and lease some of them; if `crashed`, let their leases expire
        once.

        `flow` decides which variants of the scripts run, whether tasks have limits, and whether the
        queue has bounds.
        """
        self.flow = flow
        self._restart()
        self.enqueue(list(zip(IDS, kinds, strict=True)))
        self.put_program_bounds(bounds)
        if many:  # so many tasks that one fetch cannot promote all of them
            self.enqueue([(f"many-{n}", {"delay": 5}) for n in range(120)])
            self.await_due(0, 0, "t", 1)
        if crashed:
            self.fetch("t", wanted, 1)
            self.crash(False, "s", wanted)
        self.fetch("s", wanted, 1)

    def _restart(self) -> None:
        """Empty the store, lift its memory limit and grant its user all rights."""
        self.make_room()
        self.speak()
        self.rig.reset()
        self.model = Model()
        self.held: list[LeaseRef] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.numbers = dict.fromkeys(SERVERS, 0)
        self.number = 0
        self.dump: Dump = {}
        if self.flow == "variant":
            self.rig.broker.flow_queues.add(self.rig.keys.base)
        if self.has_limits:
            self.do("put_limit_rules", RULES)

    @property
    def has_limits(self) -> bool:
        return self.flow in ("limits", "bounds")

    def teardown(self) -> None:
        self.make_room()
        self.speak()

    @rule(action=actions)
    def act(self, action: tuple[str, tuple[Any, ...]]) -> None:
        name, arguments = action
        getattr(self, name)(*arguments)

    # Actions

    def enqueue(self, tasks: list[tuple[str, dict[str, Any]]]) -> None:
        self.number += 1  # the senders take turns
        sender = SENDERS[self.number % len(SENDERS)]
        if any(options.keys() >= REMEMBERED_REPLACEMENT for _, options in tasks):
            sender = sender or SENDERS[1]
        if self.flow == "bounds":  # without a sender, a repeated call would recreate dropped tasks
            sender = sender or SENDERS[2]
        sent = [self.made(id, options) for id, options in tasks]
        self.do("enqueue", sent, sender=sender, number=self.number)

    def enqueue_finished(self, pick: int, retention: bool) -> None:
        """Enqueue a task whose id is remembered although the task has left the queue, if there is
        such an id."""
        gone = [id for id in self.model.recent if id not in self.model.tasks] or IDS
        options = {"remember_us": 100 * S} | ({"retention": 20} if retention else {})
        self.enqueue([(gone[pick % len(gone)], options)])

    def burst(self, kinds: list[dict[str, Any]]) -> None:
        """If the queue has bounds, fill it with tasks that have other ids."""
        if self.flow == "bounds":
            self.enqueue([(f"{self.number}-{n}", kind) for n, kind in enumerate(kinds)])

    def replace_active(self, delay: int | None) -> None:
        """Replace a running task that has a lock, if there is one."""
        for task in list(self.model.tasks.values()):
            for key in ("l", "m"):
                options = {"unique_key": key, "on_duplicate": "replace", "delay": delay}
                if task.state == "active" and task.lock == made("late", options).lock:
                    self.enqueue([("late", options)])
                    return

    def tick(self, id: str, options: dict[str, Any], late: int) -> None:
        self.do("tick", "hourly", self.rig.now // (3600 * S) + late, self.made(id, options))

    def put_schedule(self, name: str, later: int, record: bytes) -> None:
        self.do("put_schedule", name, self.rig.now + later, record)

    def tick_schedules(self, rows: list[tuple[str, str, list[tuple[str, dict[str, Any]]]]]) -> None:
        """Enqueue ticks of schedules whose version is current, outdated or lost."""
        sent = []
        for name, which, tasks in rows:
            if which != "any" and name not in self.model.stored:
                self.put_schedule(name, S, b"a record")
            row = self.model.stored.get(name, StoredScheduleRow(name, b"", 0))
            if which == "old" and not self.full:  # store another record with the same next tick
                record = b"another record" if row.record[8:] == b"a record" else b"a record"
                self.do("put_schedule", name, row.next_us, record)
            later = max(self.rig.now, row.next_us or 0) + 30 * S
            sent.append(TickRow(row, later, [self.made(id, options) for id, options in tasks]))
        self.do("tick_schedules", sent)

    def delete_schedule(self, name: str, paused: bool) -> None:
        if paused:
            self.pause_schedule(name)
        row = self.model.stored.get(name)
        self.do("delete_schedule", name, stamp=b"" if row is None or paused else row.stamp)

    def pause_schedule(self, name: str) -> None:
        if name not in self.model.stored:
            self.put_schedule(name, S, b"a record")
        self.do("pause_schedule", name, b"me")

    def resume_schedule(self, name: str) -> None:
        self.do("resume_schedule", name)

    def fetch(self, server: str, wanted: int, step: int, free: int | None = None) -> None:
        number = max(0, self.numbers[server] + step)
        again = number == self.numbers[server] > 0
        self.numbers[server] = max(number, self.numbers[server])
        reply = self.do(
            "fetch", server=server, number=number, wanted=wanted, policy=POLICY, free=free,
            again=again,
        )  # fmt: skip
        fresh = [LeaseRef(id, f"{server}/{number}") for id in reply.ids]
        self.held += [one for one in fresh if one not in self.held]

    def crash(self, marked: bool, server: str, wanted: int) -> None:
        """Let all servers die while they hold tasks; after their leases have expired, this server
        fetches."""
        if marked:
            self.mark_started()
        for part in (LEASE // 2, LEASE // 2 + S):  # a single step would count as an outage
            self.rig.now += part
            self.fetch(server, wanted, 1)

    def await_due(self, pick: int, early: int, server: str, wanted: int) -> None:
        """Fetch at the moment when something is due, or just before."""
        moments = sorted(at for at in self.model.moments() if at > self.rig.now)
        if moments:
            self.rig.now = moments[pick % len(moments)] + early
        self.fetch(server, wanted, 1)

    def complete(self, picks: list[int], keep: int | None) -> None:
        result = b"" if keep is None else b"result"
        self.do("complete", [Completion(*one, keep, result) for one in self.chosen(picks)])

    def retry(self, picks: list[int], delay: int) -> None:
        self.do("retry", [Retried(*one, delay, b"failure") for one in self.chosen(picks)])

    def kill(self, picks: list[int], failed: bool) -> None:
        self.do("kill", [Killed(*one, failed, b"fatal") for one in self.chosen(picks)])

    def hand_back(
        self,
        picks: list[int],
        delay: int | None,
        closing: tuple[str, int],
        started: bool,
        age: int | None = 0,
    ) -> None:
        """Hand back tasks. `age` is the age of their leases; None means that the server does not
        know the age."""
        leased_us = 0 if age is None else self.rig.now - age
        record = b"" if delay is None else b"unknown type"
        limit, closed_us = closing if self.has_limits else ("", 0)
        self.do(
            "hand_back",
            [
                HandedBack(*one, delay, record, limit, closed_us, started, leased_us)
                for one in self.chosen(picks)
            ],
        )

    def set_limit(self, limit: str, rule: LimitRule | None) -> None:
        if self.has_limits:
            self.do("set_limit", limit, rule, "me")

    def open_limit(self, limit: str) -> None:
        if self.has_limits:
            self.do("open_limit", limit)

    def put_limit_rules(self, name: str, rule: LimitRule) -> None:
        if self.has_limits:
            self.do("put_limit_rules", {name: rule})

    def put_program_bounds(self, bounds: Bounds) -> None:
        if self.flow == "bounds":
            self.do("put_program_bounds", bounds)

    def set_bounds(self, bounds: Bounds | None) -> None:
        if self.flow == "bounds":
            self.do("set_bounds", bounds, by="me")

    def pause_type(self, type: str) -> None:
        if self.flow != "plain":
            self.do("pause_type", type, b"me")

    def resume_type(self, type: str) -> None:
        self.do("resume_type", type)

    def stopped(self, picks: list[int]) -> None:
        self.do("stopped", self.chosen(picks))

    def renew(self, picks: list[int], lease_us: int) -> None:
        self.do("renew", self.chosen(picks), lease_us=lease_us)

    def mark_started(self) -> None:
        self.do("mark_started", self.current())

    def progress(self, picks: list[int], done: int) -> None:
        self.do("progress", [Progress(*one, done, 9) for one in self.chosen(picks)])

    def cancel(self, pick: int) -> None:
        id, task = self.known(pick, "" if pick % 2 else "active")
        self.do("cancel", id, retention_us=task.sent.retention_us if task else None)

    def run(self, pick: int, state: str) -> None:
        if pick % 4 < 3 and not self.model.those("dead"):
            self.kill([pick % 9], True)  # dead tasks are rare, since most are trimmed
        id, task = self.known(pick, "dead" if pick % 4 < 3 else "")
        key, lock = (task.sent.fairness_key, task.sent.lock) if task else ("", "")
        priority = priority_of(task.sent) if task else NORMAL_PRIORITY
        seen = state or (task.state if task else "dead")
        kept = b"history" if pick % 2 else b""
        options = {"fairness_key": key, "lock": lock, "failure": kept, "priority": priority}
        self.do("run", id, seen, **options)

    def reschedule(self, pick: int, state: str, due: int, later: bool) -> None:
        id, _ = self.known(pick, state)
        self.do("reschedule", id, f"+{due}" if later else str(max(0, self.rig.now + due - 5 * S)))

    def edit(self, pick: int, state: str, due: str, runs: bool, longer: int) -> None:
        """Edit a waiting or dead task; some calls name a message or a state that the task does not
        have."""
        if not state and pick % 4 < 3 and not self.model.those("dead"):
            self.kill([pick % 9], True)
        id, task = self.known(pick, state or ("dead" if pick % 4 < 3 else ""))
        self.number += 1
        shown = task if task and pick % 5 else Known(self.made(id, {}), self.rig.now)
        payload = b"edit %d%s" % (self.number, b"x" * longer)
        message = decode_message(shown.message)
        edited = codec.encode(structs.replace(message, payload=payload))
        key, lock = shown.sent.fairness_key, shown.sent.lock
        again = operator_ops.RerunRequest(id, key, lock, b"history", priority_of(shown.sent))
        self.do(
            "edit", id, task.state if task else "dead", seen=shown.message, message=edited,
            due=due, rerun=again if runs else None,
        )  # fmt: skip

    def delete(self, picks: list[int], state: str) -> None:
        some = [self.known(pick, state) for pick in picks]
        task = some[0][1]
        seen = state or (task.state if task else "dead")
        if seen == "pending":
            # The deletion could open a limit, so that the second call would delete more tasks.
            some = [(id, one) for id, one in some if not one or one.state != "limited"]
        self.do("delete", [id for id, _ in some], seen)

    def purge(self, state: str) -> None:
        if state == "pending" and self.model.those("limited"):
            return  # the purge could open a limit, so that the second call would purge more
        self.do("purge", state or "active", count=500)  # enough for all tasks

    def abandon(self, server: str) -> None:
        self.do("abandon", server)

    def pause(self) -> None:
        self.do("pause", b"me")

    def resume(self) -> None:
        self.do("resume")

    def repeat(self, back: int) -> None:
        """Repeat an earlier call, as if its first reply had been lost."""
        if self.calls:
            name, args, options = self.calls[-1 - back % len(self.calls)]
            self.do(name, *args, **options)

    def time(self, step: int) -> None:
        self.rig.now += step

    def wake(self) -> None:
        popped = self.rig.client.lpop(self.rig.keys.key("wake"))
        assert bool(popped) == self.model.awake, (
            "a server must be woken if and only if there is a reason"
        )
        self.model.awake = False
        self.dump = self.rig.dump()

    def flush_scripts(self) -> None:
        self.rig.client.script_flush()
        self.rig.dump()  # load the script, so that `look_and_repeat` needs one round trip

    def fill(self) -> None:
        """Let the store run out of memory."""
        self.full = True
        self.rig.client.config_set("maxmemory", 1)

    def make_room(self) -> None:
        if self.full:
            self.full = False
            self.rig.client.config_set("maxmemory", 0)

    def hush(self) -> None:
        """Revoke the store user's rights to channels, as for a user with only `~* +@all`."""
        self.hushed = True
        self.rig.allow_publishing(False)

    def speak(self) -> None:
        if self.hushed:
            self.hushed = False
            self.rig.allow_publishing(True)

    def serve(self, server: str) -> None:
        """Register a server; its record is outside the queue."""
        globals_, now = self.rig.globals, self.rig.now
        for call in (
            registry_ops.register(globals_, ["queue"]),
            registry_ops.server_heartbeat(globals_, server, ttl_us=S, now_us=now),
            registry_ops.set_server_info(globals_, server, {"host": "h"}, ttl_ms=60_000),
            registry_ops.send_order(globals_, server, b"quiet", ttl_ms=60_000),
        ):
            self.rig.run(call)
            self.rig.run(call)
        check_other_keys(self.rig.client, self.rig.keys, globals_)

    def later_version(self, back: int) -> None:
        """Let a later version change the data layout; calls of the earlier version are then refused
        as a whole."""
        if not self.calls:
            return
        self.make_room()
        call = self.call(*self.calls[-1 - back % len(self.calls)])
        layout = self.rig.field("meta", "schema") or b"1"
        self.rig.set("meta", "schema", "3")
        self.dump = self.rig.dump()
        self.refused(call, SchemaMismatch)
        self.rig.set("meta", "schema", layout)
        self.dump = self.rig.dump()

    def made(self, id: str, options: dict[str, Any]) -> NewTask:
        limits = options.get("limits", OF_IDS.get(id, ())) if self.has_limits else ()
        options = {name: value for name, value in options.items() if name != "limits"}
        return with_limits(made(id, options), *limits)

    def damage(self, damages: list[Damage], verbs: list[str]) -> None:
        """Lose some data; check that no call fails, that the audit repairs the damage, and that all
        tasks end. Then begin again with an empty store."""
        self.make_room()
        for name in list(self.model.stored):  # the audit's own tests cover schedules
            self.delete_schedule(name, False)
        self.put_program_bounds(NO_BOUNDS)
        self.set_bounds(None)
        patient = Patient(self.rig, POLICY, 0)
        for one in damages:
            patient.inflict(one)
        patient.treat(verbs, self.current(), IDS)
        patient.heal()
        patient.drain()
        self._restart()
        self.enqueue(list(zip(IDS, OPTIONS, strict=False)))

    # Steps

    def current(self) -> list[LeaseRef]:
        return [LeaseRef(id, task.token) for id, task in self.model.tasks.items() if task.token]

    def chosen(self, picks: Sequence[int]) -> list[LeaseRef]:
        """Return leases. Most of the leases are valid; the others are picked from all leases so
        far."""
        current, ever = self.current(), self.held or [LeaseRef("a", "s/0")]
        some = [current if pick < 9 and current else ever for pick in picks]
        return [of[pick % len(of)] for pick, of in zip(picks, some, strict=True)]

    def known(self, pick: int, state: str) -> tuple[str, Known | None]:
        """Return an id, and its task if there is one. Most ids are those of existing tasks, in this
        state if possible."""
        there = self.model.those(state) or list(self.model.tasks)
        id = there[pick % len(there)] if pick < 10 and there else IDS[pick % len(IDS)]
        return id, self.model.tasks.get(id)

    def do(self, name: str, *args: Any, **options: Any) -> Any:
        """Make a call twice; compare the reply and the store with the model."""
        now = self.rig.now
        call = self.call(name, args, options)
        if self.full and brings_in(name, args):
            self.refused(call, QueueFull)
            return None if name != "complete" else self.do("complete_without_room", *args)
        verb = "complete" if name == "complete_without_room" else name
        try:
            expected = getattr(self.model, verb)(now, *args, **options)
        except QueueFull as full:
            error = self.refused(call, QueueFull)
            expected = {**vars(full), "queue": "queue"}
            assert vars(error) == expected, f"the error reports {vars(error)}, not {expected}"
            self.calls.append((verb, args, options))
            return None
        reply = self.rig.run(call)
        assert reply == expected, f"{name} answered {reply}, not {expected}"
        before, self.dump, again, after = self.dump, *self.look_and_repeat(call)
        assert_same(comparable(self.dump), self.model.contents())
        check(verb, now, before, self.dump)
        assert_same(after, self.dump)  # the second run changes nothing
        if name == "enqueue":
            # Without a sender, the repeated call is compared with the stored message, which differs
            # if the first call has replaced the task.
            replaced = {one.id for one in reply if one.outcome == "replaced"}
            same = all(
                b == a
                for a, b in zip(reply, again, strict=True)
                if a.outcome == "created" and (a.id not in replaced or options["sender"])
            )
            assert same, f"enqueue answered {reply}, but {again} when repeated"
        if name == "fetch":
            assert (again.ids, again.messages) == (reply.ids, reply.messages), (
                "the repeated fetch returned another batch"
            )
        self.calls.append((name, args, options))
        return reply

    def call(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Call[Any]:
        """Return a call to an operation, at the current time."""
        make: Callable[..., Call[Any]] = OTHER_NAMES.get(name) or next(
            getattr(module, name) for module in MODULES if hasattr(module, name)
        )
        timed = name not in UNTIMED
        now = {"now_us": self.rig.now} if timed else {}
        return make(self.rig.keys, *args, **options, **now)

    def refused(self, call: Call[Any], error: type[QsyncError]) -> QsyncError:
        """Assert that the call is refused as a whole, and return the error."""
        try:
            self.rig.run(call)
        except error as refusal:
            assert self.rig.dump() == self.dump, "a refused call wrote something"
            return refusal
        raise AssertionError(f"{call.script.name} was not refused with {error.__name__}")

    def look_and_repeat(self, call: Call[Any]) -> tuple[Dump, Any, Dump]:
        """In one round trip, dump the store, repeat the call, and dump the store and its counts
        again."""
        look, count = self.rig.dumping(), views.counts(self.rig.keys)
        replies: list[Any] = self.rig.broker.run_many([look, call, look, count])
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        once, again, twice, counts = replies
        check_counts(twice, counts)
        return without_lost(once), again, without_lost(twice)


OF_IDS: Final = {"a": ("c:1",), "b": ("r",), "-1": ("r", "c:1"), "XX": ("c:1", "r")}
"""Limits of the tasks with these ids, unless their options set limits."""

REMEMBERED_REPLACEMENT: Final = {"on_duplicate", "remember_us"}
"""Options that together need a sender. Without a sender, a repeated call refuses a task with these
options, because the id of the task is remembered. Then an earlier task of the call replaces the
holder."""

OTHER_TYPE: Final = ("-1", "XX")
"""Ids of the tasks whose type is `other`."""

MODULES: Final = (
    ops, operator_ops, program_schedule_ops, schedule_ops, limit_ops, type_ops, bounds_ops,
)  # fmt: skip
"""Modules that define the operations; an operation has the name of the action that calls it."""

OTHER_NAMES: Final[dict[str, Callable[..., Call[Any]]]] = {
    "stopped": ops.end_cancelled, "reschedule": reschedule, "edit": edit,
}  # fmt: skip
"""Operations that have a different name from the action that calls them."""


UNTIMED: Final = (
    "mark_started", "progress", "pause", "resume", "abandon", "delete_schedule",
    "put_program_bounds",
)  # fmt: skip
"""Operations that do not take the time as an argument."""


def brings_in(name: str, args: Sequence[Any]) -> bool:
    """Return whether a full store may refuse the call because it adds messages, schedules or
    results."""
    results = name == "complete" and any(row.result for row in args[0])
    return results or name in ("enqueue", "tick", "put_schedule", "tick_schedules", "edit")


def made(id: str, options: dict[str, Any]) -> NewTask:
    remember_us = options.get("remember_us", 0)
    options = {name: value for name, value in options.items() if name != "remember_us"}
    task = Task("other" if id in OTHER_TYPE else "type", b"payload", id=id, **options)
    return new_task(task, new_nonce(), remember_us=remember_us)


def run_machine(
    rig: Rig,
    *,
    examples: int,
    fixed: bool,
    phases: Sequence[Phase] = tuple(Phase),
    machine: type[Scripts] = Scripts,
) -> None:
    """Run the machine and raise the first failure. If `fixed`, the calls are the same each time."""
    machine = type("Scripts", (machine,), {"rig": rig})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=fixed,
            database=None,
            deadline=None,
            print_blob=True,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
