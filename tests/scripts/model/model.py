"""The specification of the scripts in plain Python, with one method per operation. The model is
written from the design, not from the scripts. `contents` returns the expected contents of the store
after each call.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

from msgspec.structs import replace

from qsync.bounds import Bounds
from qsync.broker.enqueue_options import fairness_member
from qsync.broker.op_values import (
    Completion,
    Enqueued,
    FetchPolicy,
    FetchResult,
    HandedBack,
    Killed,
    LeaseRef,
    Outcome,
    Retried,
)
from qsync.broker.operator_ops import EditOutcome, PurgeStep, RerunRequest, Rescheduled
from qsync.limit import LimitRule
from qsync.message import ENVELOPE_HEAD, NORMAL_PRIORITY
from qsync.new_task import NewTask
from qsync.state import UNFINISHED, TaskState
from tests.scripts.model.queue import BAND, Known, band_of, member_of
from tests.scripts.model.schedules import Schedules

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
LIMIT: Final = 100
"""Maximum number of tasks that one fetch handles, for each kind of upkeep."""

PARKED_MOST: Final = 300
PARK_CHUNK: Final = 250
CHUNK: Final = 50


def packed(rule: LimitRule) -> str:
    """Return a rule as the store holds it."""
    numbers = (rule.concurrency, rule.rate, rule.per_us, rule.burst)
    return " ".join(str(number or 0) for number in numbers)


class Model(Schedules):
    """A queue and its operations. The signatures are those of qsync.broker.ops, with `now` as the
    first argument."""

    def enqueue(
        self, now: int, tasks: Sequence[NewTask], *, sender: str = "", number: int = 0
    ) -> list[Enqueued]:
        last, _, answers = self.calls.get(sender, (-1, 0, []))
        if number <= last:
            return answers if number == last else []
        recent = {
            sent.id for sent in tasks if sent.remember_us and self.recent.get(sent.id, 0) > now
        }
        before = self.counts["enqueued"]
        answers, replacing = self._enqueue(now, tasks, recent)
        taken = self.counts["enqueued"] > before or any(
            one.outcome == "replaced" for one in answers
        )
        for sent, answer in zip(tasks, answers, strict=True):
            if sent.remember_us and answer.outcome in ("created", "replaced") and taken:
                ends = now + sent.remember_us
                self.recent[sent.id] = max(ends, self.recent.get(sent.id, 0))
        if sender and any(answer.outcome in ("created", "replaced") for answer in answers):
            self.calls[sender] = (number, now, answers)
            self.replacing[sender] = replacing
        return answers

    def _enqueue(
        self, now: int, tasks: Sequence[NewTask], recent: Collection[str] = ()
    ) -> tuple[list[Enqueued], list[int]]:
        """Enqueue tasks. Return the answers, and the positions (from 1) of the tasks that replace
        others."""
        answers, new = self._answers(now, tasks, recent)
        kept = {answer.id for answer in answers if answer.outcome != "created"}
        self.make_room(now, tasks, new, kept)
        replacing = [place for place, one in enumerate(answers, 1) if one.outcome == "replaced"]
        self.flow |= bool(new or replacing) and any(sent.flow is not None for sent in tasks)
        due: dict[str, int] = {}
        for sent in new:
            task = self.tasks[sent.id] = Known(sent, now, state="new", key=member_of(sent))
            self.counts["enqueued"] += 1
            self.counts["bytes"] += len(task.message)
            if sent.lock:
                ends = now + sent.window_us if sent.window_us else 0
                self.locks[sent.lock] = (ends, sent.id)
            at = now + int(sent.due) if sent.due.startswith("+") else int(sent.due or now)
            if at > now:
                due[sent.id] = at
            else:
                self.to_pending(now, sent.id, new=True)
                self.awake = self.awake or task.state == "pending"
        self.to_later(now, "scheduled", due)
        last = {answers[place - 1].id: place for place in replacing}
        outcomes: dict[str, Any] = {}
        for place in replacing:
            holder = answers[place - 1].id
            if holder not in outcomes:
                outcomes[holder] = self.replace(now, tasks[last[holder] - 1], holder)
            answers[place - 1] = Enqueued(outcomes[holder], holder)
        self.awake |= self.settle(now)
        return answers, replacing

    def _answers(
        self, now: int, tasks: Sequence[NewTask], recent: Collection[str]
    ) -> tuple[list[Enqueued], list[NewTask]]:
        """Return the outcome of each task of a call as if all tasks fitted, and the new tasks."""
        answers: list[Enqueued] = []
        new: dict[str, NewTask] = {}
        locks: dict[str, str] = {}
        for sent in tasks:
            known = self.tasks.get(sent.id)
            old = known.sent if known else new.get(sent.id)
            holder = locks.get(sent.lock) or (sent.lock and self.holder(now, sent.lock))
            replaces = sent.flow is not None and sent.flow.on_duplicate == "replace"
            if old:
                outcome = "created" if old.message == sent.message else "exists"
                answers.append(Enqueued(outcome, sent.id))
            elif sent.id in recent and sent.remember_us:
                answers.append(Enqueued("repeated", (replaces and holder) or sent.id))
            elif holder and replaces:
                answers.append(Enqueued("replaced", holder))
            elif holder:
                answers.append(Enqueued("duplicate", holder))
            else:
                answers.append(Enqueued("created", sent.id))
                new[sent.id] = sent
                locks |= {sent.lock: sent.id} if sent.lock else {}
        return answers, list(new.values())

    def tick(self, now: int, schedule: str, tick_us: int, task: NewTask) -> bool:
        if self.ticks.get(schedule, -1) >= tick_us:
            return False
        if schedule in self.schedule_pauses:
            self.ticks[schedule] = tick_us
            return False
        answers, _ = self._enqueue(now, [task])
        self.ticks[schedule] = tick_us
        return answers[0].outcome == "created"

    def fetch(
        self,
        now: int,
        *,
        server: str,
        number: int,
        wanted: int,
        policy: FetchPolicy,
        free: int | None = None,
        again: bool = False,
    ) -> FetchResult:
        before, _, batch = self.fetches.get(server, (-1, 0, []))
        self.generation = self.generation or f"{server}@{now}"
        token = f"{server}/{number}"
        waiting = ("scheduled", "pending", "active", "retry", "completed")
        limited = self.those("limited") or self.limits.openings or self.limits.stored
        unneeded = not (limited or self.locks or self.tags or any(map(self.those, waiting)))
        just_swept = abs(now - self.swept) < min(300 * SECOND, policy.dead_age_us / 10)
        if unneeded and (just_swept or not (self.calls or self.recent or self.those("dead"))):
            if again:
                self.fetches[server] = (number, now, [])
            return self._fetched(now, [], None, [], 0, 0)
        if number <= before:
            same = [
                id
                for id in batch
                if number == before and id in self.tasks and self.tasks[id].token == token
            ]
            next_due = 0 if number == before else None
            answer = self._fetched(now, same, next_due, [], 0, 0)
            return replace(answer, left=number == before and not self.paused)
        self.more = False
        for state in ("scheduled", "retry"):
            for id in self.first(self.those(state, until=now)):
                self.to_pending(now, id)
        any_leases = bool(self.those("active"))
        spared = self.note_life(now, policy.lease_us) if any_leases else 0
        own, recovered, died = self._recover(now, server, policy, 0 if spared else now)
        self._open_due(now)
        taken, stayed, refused = self._pick(now, 0 if self.paused else wanted, free)
        for task in map(self.tasks.__getitem__, taken):
            start = band_of(task.priority)
            if task.score > self.virtual.get(task.priority, start):
                self.virtual[task.priority] = task.score
        for at, id in enumerate(taken):
            self.move(now, id, "active", now + policy.lease_us + at)
            self.tasks[id].token = token
        self._park(now, refused)
        if not any_leases and (taken or self.those("pending")):
            self.note_life(now, policy.lease_us)
        if taken or refused or again:
            self.fetches[server] = (number, now, taken)
        self._sweep(now, policy, LIMIT + len(taken), busy=bool(taken))
        opened, _ = self.finish(now)
        self.tags = {key: tag for key, tag in self.tags.items() if tag > self.passed(tag)}
        if not self.those("pending"):
            self.tags, self.awake = self.tags if self.those("limited") else {}, False
        else:
            self.awake = self.awake or not self.paused
        waiting = [
            max(task.score, spared) if task.state == "active" and task.score >= 0 else task.score
            for task in self.tasks.values()
            if task.state in ("scheduled", "retry", "active")
        ]
        waiting += self.limits.openings.values()
        next_due = max(0, int(min(waiting) - now)) if waiting else None
        answer = self._fetched(now, taken, next_due, own, recovered, died)
        left = bool(self.those("pending")) and not self.paused
        only_free = not opened and (len(self.those("pending")) == stayed or stayed >= LIMIT)
        return replace(
            answer, more=self.more, left=left and not only_free,
            left_for_free=left and only_free, passed_over=left and stayed > 0,
        )  # fmt: skip

    def _open_due(self, now: int) -> None:
        """Open the limits that are due and move their waiters."""
        due = sorted((at, limit) for limit, at in self.limits.openings.items() if at <= now)
        for _, limit in due:
            self.limits.open_late(now, limit)
        if self.limits.is_touched:
            self.open_waiters(now)

    def _pick(
        self, now: int, wanted: int, free: int | None
    ) -> tuple[list[str], int, dict[str, str]]:
        """Return the pending tasks to lease, the number of tasks that stay pending because the
        server has no free slots, and the limit of each task that a limit refuses."""
        left = wanted if free is None else free
        taken: list[str] = []
        refused: dict[str, str] = {}
        stayed = at = 0
        pending = self.those("pending")
        while (
            at < len(pending)
            and len(taken) < wanted
            and stayed < LIMIT
            and len(refused) < PARKED_MOST
        ):
            size = min(wanted - len(taken), CHUNK)
            if 0 < at <= 2 * len(refused):
                size = min(PARKED_MOST - len(refused), PARK_CHUNK)
            chunk = pending[at : at + size]
            at += len(chunk)
            for id in chunk:
                task = self.tasks[id]
                limit = self.limits.unstartable(now, task.limits)
                if task.type_limit in self.limits.pauses:
                    limit = task.type_limit
                if limit is not None:
                    refused[id] = limit
                elif task.limits and left <= 0:
                    stayed += 1
                elif len(taken) < wanted:
                    taken.append(id)
                    if task.limits:
                        left -= 1
                        self.limits.start(now, task.limits)
        return taken, stayed, refused

    def _park(self, now: int, refused: dict[str, str]) -> None:
        for limit in refused.values():
            self.limits.touch(limit)
        self.unready(refused)
        for id, limit in refused.items():
            self.wait_for(now, id, self.tasks[id].score, limit)

    def _fetched(
        self, now: int, ids: list[str], next_due: int | None, own: list[str], back: int, died: int
    ) -> FetchResult:
        tasks = [self.tasks[id] for id in ids]
        return FetchResult(
            now_us=now,
            next_due_us=next_due,
            more=False,
            recovered=back,
            died=died,
            ids=ids,
            messages=[task.message for task in tasks],
            failures=[task.failure for task in tasks],
            crashes=[task.crash_count for task in tasks],
            own_lapsed=own,
            paused=bool(self.paused),
            generation=self.generation,
            since={id: t.since for id, t in zip(ids, tasks, strict=True) if t.since is not None},
        )

    def note_life(self, now: int, lease_us: int) -> int:
        """Record that a server is alive. Return the time until which leases do not expire after an
        outage, or 0."""
        if self.seen is not None and now - self.seen > lease_us / 2:
            self.returned = now
        if self.seen is None or abs(now - self.seen) > lease_us / 20:
            self.seen = now
        if self.returned is None:
            return 0
        until = math.floor(self.returned + lease_us / 3)
        return until if self.returned <= now < until else 0

    def _recover(
        self, now: int, server: str, policy: FetchPolicy, until: int
    ) -> tuple[list[str], int, int]:
        own: list[str] = []
        back: list[str] = []
        died: list[str] = []
        cancelled: list[str] = []
        lapsed = self.those("active", until=until)[:LIMIT]
        self.release(
            id for id in lapsed if not (self.tasks[id].token or "").startswith(f"{server}/")
        )
        for id in lapsed:
            task = self.tasks[id]
            if task.token and task.token.rpartition("/")[0] == server:
                own.append(id)
            elif task.cancel is not None:
                cancelled.append(id)
            else:
                crashes = task.crash_count
                if crashes == 0 or (task.crashes or "").endswith("+"):
                    crashes += 1
                    self.counts["crashed"] += 1
                of_it = crashes >= policy.max_crashes
                task.crashes = f"{crashes}!" if of_it else f"{crashes}"
                (died if of_it else back).append(id)
        self.more |= len(lapsed) == LIMIT > len(own)
        replaced = [id for id in (*back, *died) if self.tasks[id].successor]
        for id in replaced:
            self.tasks[id].crashes = (self.tasks[id].crashes or "").rstrip("!")
        starts_again = any(self.tasks[id].successor for id in (*back, *died, *cancelled))
        back = self.start_again(now, back, crashed=True)
        died = self.start_again(now, died, crashed=True)
        cancelled = self.start_again(now, cancelled)
        self.to_head(now, back)
        self.runnable_from(dict.fromkeys(back, now))
        for id in died:
            self.move(now, id, "dead", now)
            self.counts["dead"] += 1
        self.end_cancelled(now, cancelled)
        for state in ("scheduled", "retry") if starts_again else ():
            for id in self.first(self.those(state, until=now)):
                self.to_pending(now, id)
        return own, len(back) + len(replaced), len(died)

    def passed(self, tag: float) -> float:
        """Return the virtual time of the band to which a tag belongs."""
        priority = NORMAL_PRIORITY - round(tag / BAND)
        return self.virtual.get(priority, band_of(priority))

    def first(self, ids: list[str], most: int = LIMIT) -> list[str]:
        """Return as many of the ids as one fetch processes; record whether more may be left."""
        self.more |= len(ids) >= most
        return ids[:most]

    def _sweep(self, now: int, policy: FetchPolicy, most: int, *, busy: bool) -> None:
        for id in self.first(self.those("completed", until=now), most):
            self.move(now, id, None)
        dead = self.those("dead")
        old = len(self.those("dead", until=now - policy.dead_age_us))
        for id in self.first(dead[: max(old, len(dead) - policy.dead_limit)], most):
            self.move(now, id, None)
            self.counts["trimmed"] += 1
        if abs(now - self.swept) >= SECOND:
            corrected = self.limits.correct(now)
            self.more |= corrected
            busy |= self.limits.sweep(now) > 0 or corrected
            before = len(self.locks) + len(self.fetches) + len(self.calls)
            self.locks = {lock: of for lock, of in self.locks.items() if self.holder(now, lock)}
            self.fetches = {s: last for s, last in self.fetches.items() if now - last[1] <= HOUR}
            self.recent = {id: ends for id, ends in self.recent.items() if ends > now}
            self.calls = {
                s: last for s, last in self.calls.items() if now - last[1] <= 600 * SECOND
            }
            if (
                busy
                or self.swept > now
                or len(self.locks) + len(self.fetches) + len(self.calls) < before
            ):
                self.swept = 0 if corrected else now

    def complete(self, now: int, rows: Sequence[Completion]) -> list[Outcome]:
        held, answers = self.owned(rows)
        self.release_all(held)
        ended = self.start_again(now, [row.id for row in held])
        self.counts["completed"] += len(held) - len(ended)
        self.counts["enqueued"] += len(held) - len(ended)
        for row in held:
            if row.id not in ended:
                continue
            if self.tasks[row.id].since is not None:
                self.tasks[row.id].progress = None
            if row.retention_us is None:
                self.move(now, row.id, None)
            else:
                self.move(now, row.id, "completed", now + row.retention_us, keeps=True)
                self.tasks[row.id].result = row.result
                self.tasks[row.id].cancel = None
            self.counts["completed"] += 1
        self.awake |= self.settle(now)
        return answers

    def retry(self, now: int, rows: Sequence[Retried]) -> list[Outcome]:
        held, answers = self.owned(rows)
        self.release_all(held)
        self.counts["failed"] += len(held)
        held = self.not_replaced(now, held)
        self.unmark(held)
        for row in held:
            self.tasks[row.id].failure = row.failure
        cancelled = [row.id for row in held if self.tasks[row.id].cancel is not None]
        again = {row.id: now + row.delay_us for row in held if row.id not in cancelled}
        self.counts["retried"] += len(again)
        self.end_cancelled(now, cancelled)
        self.to_later(now, "retry", again)
        self.awake |= self.settle(now)
        return answers

    def kill(self, now: int, rows: Sequence[Killed]) -> list[Outcome]:
        held, answers = self.owned(rows)
        self.release_all(held)
        self.counts["failed"] += sum(row.failed for row in held)
        for row in self.not_replaced(now, held):
            self.move(now, row.id, "dead", now)
            self.tasks[row.id].failure = row.failure
            self.tasks[row.id].cancel = None
            self.counts["dead"] += 1
            self.swept = 0
        self.awake |= self.settle(now)
        return answers

    def hand_back(self, now: int, rows: Sequence[HandedBack]) -> list[Outcome]:
        held, answers = self.owned(rows)
        self.limits.refund(
            now,
            [
                (row.leased_us, self.tasks[row.id].limits)
                for row in held
                if row.leased_us and not row.started
            ],
        )
        for row in held:
            if row.limit:
                use = self.limits.touch(row.limit)
                use.closed = max(use.closed, now + row.closed_us)
        self.release_all(held)
        held = self.not_replaced(now, held)
        self.unmark(held)
        for row in held:
            self.tasks[row.id].failure = row.failure or self.tasks[row.id].failure
        cancelled = [row.id for row in held if self.tasks[row.id].cancel is not None]
        rest = [row for row in held if row.id not in cancelled]
        self.end_cancelled(now, cancelled)
        later = {row.id: now + row.delay_us for row in rest if row.delay_us is not None}
        head = [row.id for row in rest if row.delay_us is None]
        self.to_later(now, "scheduled", later)
        self.to_head(now, head)
        self.runnable_from({**later, **dict.fromkeys(head, now)})
        self.awake = self.awake or bool(head)
        self.awake |= self.settle(now)
        return answers

    def stopped(self, now: int, rows: Sequence[LeaseRef]) -> list[Outcome]:
        held, answers = self.owned(rows)
        self.release_all(held)
        ended = self.start_again(now, [row.id for row in held])
        self.counts["cancelled"] += len(held) - len(ended)
        self.counts["enqueued"] += len(held) - len(ended)
        self.end_cancelled(now, ended)
        self.awake |= self.settle(now)
        return answers

    def release_all(self, rows: Sequence[Any]) -> None:
        """Give back the slots of these tasks; replaced tasks come last."""
        self.release(
            row.id for row in sorted(rows, key=lambda row: self.tasks[row.id].successor is not None)
        )

    def not_replaced(self, now: int, rows: Sequence[Any]) -> list[Any]:
        """Restart replaced tasks; return the rows of the other tasks."""
        ended = set(self.start_again(now, [row.id for row in rows]))
        return [row for row in rows if row.id in ended]

    def renew(self, now: int, rows: Sequence[LeaseRef], *, lease_us: int) -> list[str]:
        held, answers = self.owned(rows)
        if held:
            self.note_life(now, lease_us)
        for at, row in enumerate(held):
            self.tasks[row.id].score = now + lease_us + at
        cancelled = {row for row in held if self.tasks[row.id].cancel is not None}
        return [
            "cancelled" if answer == "ok" and row in cancelled else answer
            for row, answer in zip(rows, answers, strict=True)
        ]

    def mark_started(self, now: int, rows: Sequence[LeaseRef]) -> list[Outcome]:
        held, answers = self.owned(rows)
        for row in held:
            task = self.tasks[row.id]
            if task.crashes:
                task.crashes = f"{task.crash_count}+"
        return answers

    def progress(self, now: int, rows: Sequence[Any]) -> list[Outcome]:
        held, answers = self.owned(rows)
        for row in held:
            self.tasks[row.id].progress = f"{row.done}/{row.total}".encode()
        return answers

    def cancel(self, now: int, id: str, *, retention_us: int | None) -> tuple[str, str]:
        task = self.tasks.get(id)
        retention = "" if retention_us is None else str(retention_us)
        if task is None:
            return ("missing", "")
        if task.state == "active":
            task.cancel = retention
            task.successor = None
            return ("active", task.token or "")
        if task.state not in UNFINISHED:
            return ("finished" if task.cancel is None else "cancelled", "")
        task.cancel, task.progress = retention, None
        self.unready([id])
        self.end_cancelled(now, [id])
        self.awake |= self.settle(now)
        return ("cancelled", "")

    def run(
        self,
        now: int,
        id: str,
        state: str,
        *,
        fairness_key: str,
        lock: str,
        failure: bytes,
        priority: int,
    ) -> tuple[str, str]:
        task = self.tasks.get(id)
        if task is None or task.state != state or state not in ("scheduled", "retry", "dead"):
            return ("changed", "")
        again = RerunRequest(id, fairness_key, lock, failure, priority)
        if state == "dead" and (holder := self.revive(now, task, again)) is not None:
            return ("duplicate", holder)
        self.to_pending(now, id)
        self.runnable_from({id: now})
        self.awake = True
        self.settle(now)
        return ("ok", "")

    def revive(self, now: int, task: Known, again: RerunRequest) -> str | None:
        """Run a dead task again, with its lock; return the other holder of the lock, if any."""
        holder = self.holder(now, again.lock) if again.lock else None
        if holder not in (None, again.id):
            return holder
        if again.lock:
            ends, _ = self.locks[again.lock] if holder else (0, "")
            self.locks[again.lock] = (ends, again.id)
        task.crashes, task.failure = None, again.failure or None
        task.key = fairness_member(again.priority, again.fairness_key)
        return None

    def edit(
        self,
        now: int,
        id: str,
        state: str,
        *,
        seen: bytes,
        message: bytes,
        due: str,
        rerun: RerunRequest | None,
    ) -> EditOutcome:
        task = self.tasks.get(id)
        if task is None or task.state != state or state not in ("scheduled", "retry", "dead"):
            return EditOutcome("changed")
        if task.message not in (seen, message):
            return EditOutcome("changed")
        if state == "dead" and rerun and (holder := self.revive(now, task, rerun)) is not None:
            return EditOutcome("duplicate", holder)
        task.sent = replace(task.sent, message=message[len(ENVELOPE_HEAD) + 8 :])
        if rerun:
            self.to_pending(now, id)
            self.runnable_from({id: now})
            self.awake = True
            self.settle(now)
        elif due and state != "dead":
            at = now + int(due)
            self.to_later(now, state, {id: at})
            self.runnable_from({id: at})
        return EditOutcome("ok")

    def reschedule(self, now: int, id: str, due: str) -> Rescheduled:
        task = self.tasks.get(id)
        if task is None:
            return Rescheduled(None, None)
        if task.state not in ("scheduled", "retry"):
            cancelled = task.state == "completed" and task.cancel is not None
            return Rescheduled(TaskState("cancelled" if cancelled else task.state), None)
        at = max(now, now + int(due) if due.startswith("+") else int(due))
        self.to_later(now, task.state, {id: at})
        self.runnable_from({id: at})
        return Rescheduled(TaskState(task.state), at)

    def delete(self, now: int, ids: Sequence[str], state: str) -> int:
        gone = [
            id
            for id in dict.fromkeys(ids)
            if state != "active" and id in self.tasks and self.tasks[id].state == state
        ]
        self.unready(gone)
        for id in gone:
            self.move(now, id, None)
            self.recent.pop(id, None)
        self.awake |= self.settle(now)
        return len(gone)

    def purge(self, now: int, state: str, *, count: int) -> PurgeStep:
        assert len(self.tasks) <= count
        gone = self.those(state, until=now if state == "active" else math.inf)
        self.unready(gone)
        self.release(gone)
        for id in gone:
            self.move(now, id, None)
            self.recent.pop(id, None)
        self.awake |= self.settle(now)
        return PurgeStep(len(gone), len(self.those(state)), None)

    def put_limit_rules(self, now: int, rules: dict[str, LimitRule]) -> int:
        """Store the program's rules."""
        changed = [self.limits.change_rule(now, name, packed(rule)) for name, rule in rules.items()]
        self.awake |= any(changed)
        return sum(changed)

    def put_program_bounds(self, now: int, bounds: Bounds) -> bool:
        is_none = bounds.max_tasks is None and bounds.max_bytes is None
        text = "" if is_none else bounds.stored
        changed, self.bounds.program = text != self.bounds.program, text
        self.flow |= changed and bool(text)
        return changed

    def set_bounds(self, now: int, bounds: Bounds | None, *, by: str) -> bool:
        """Store an operator's bounds."""
        text = "" if bounds is None else f"{bounds.stored} {now} {by}"
        changed, self.bounds.operator = text != self.bounds.operator, text
        self.flow |= changed and bool(text)
        return changed

    def pause_type(self, now: int, type: str, note: bytes) -> bool:
        self.flow = True
        return self.limits.pause_type(now, type, note)

    def resume_type(self, now: int, type: str) -> bool:
        resumed = self.limits.resume_type(now, type)
        self.awake |= resumed and self.limits.first_waiter(f"@{type}") is not None
        return resumed

    def set_limit(self, now: int, limit: str, rule: LimitRule | None, by: str) -> int:
        """Store an operator's rule."""
        text = "" if rule is None else f"{packed(rule)} {now} {by}"
        changed = self.limits.change_rule(now, f"!{limit}", text)
        self.awake |= changed
        return int(changed)

    def open_limit(self, now: int, limit: str) -> int:
        """Open a limit that a handler has closed."""
        opened = self.limits.open(now, limit)
        self.awake |= opened and self.limits.first_waiter(limit) is not None
        return int(opened)

    def pause(self, now: int, note: bytes) -> bool:
        changed = not self.paused
        self.paused = note
        return changed

    def resume(self, now: int) -> bool:
        changed = bool(self.paused)
        self.paused = b""
        self.awake = self.awake or changed
        return changed

    def abandon(self, now: int, server: str) -> tuple[str, int]:
        found = [
            task
            for task in self.tasks.values()
            if task.token and task.token.rpartition("/")[0] == server
        ]
        for task in found:
            task.score -= 2**52 if task.score >= 0 else 0
        self.awake = self.awake or bool(found)
        return ("0", len(found))
