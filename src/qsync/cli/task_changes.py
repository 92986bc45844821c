"""`qsync task retry`, `cancel` and `delete`: of tasks by id, or of all that match filters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from qsync.cli.bulk import BulkJob, MakeStep
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import USAGE, argument, exit_with, option
from qsync.cli.options import DryRun, FilterOptions, Json, StoreOptions, Yes
from qsync.cli.prompts import confirm
from qsync.cli.store import open_store
from qsync.inspector import Change, Inspector
from qsync.inspector.bulk import CANCELLABLE, DELETABLE, RETRIED, WAITING
from qsync.state import TaskState

ChangeTask = Callable[..., Awaitable[Change]]
"""Changes the task of an id and a queue, as `Inspector.run` does."""

Ids = Annotated[list[str] | None, argument(
    metavar="ID", help="Task id(s); or select tasks by --state.",
)]  # fmt: skip

All = Annotated[
    bool,
    typer.Option("--all", help="Apply to all tasks of the state (required without a filter)."),
]

State = Annotated[TaskState | None, option(
    "--state", "-s", metavar="STATE", help="Apply to the tasks of this state that match the "
    "filters.",
)]  # fmt: skip


def retry(
    *,
    ids: Ids = None,
    state: State = None,
    filters: FilterOptions,
    everything: All = False,
    dry_run: DryRun = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Make tasks pending now that are dead, scheduled or wait for a retry.

    For example: qsync task retry --state retry --error Timeout --dry-run

    A dead task gets a fresh set of attempts; if another task holds its unique lock, it stays dead.
    """
    if ids:
        _refuse_filters(state, filters, everything)
        verb = dry(RETRIED) if dry_run else _run
        change_each(ids, filters.queue, store, as_json, verb, _conditional("pending now", dry_run))
        return
    states = _checked(state, filters, everything, RETRIED, "retried")
    _change_matching(_retry_step, states, "pending now", filters, store, as_json, dry_run)


def run_waiting(
    *,
    state: State = TaskState.RETRY,
    filters: FilterOptions,
    dry_run: DryRun = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Run all tasks now that wait for a retry or for their scheduled time."""
    states = _checked(state, filters, True, WAITING, "run", checked_all=False)
    _change_matching(_retry_step, states, "pending now", filters, store, as_json, dry_run)


def cancel(
    *,
    ids: Ids = None,
    state: State = None,
    filters: FilterOptions,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Cancel waiting or running tasks.

    For example: qsync task cancel --state scheduled --type 'report.*' --dry-run

    The server of a running task stops the handler at once if it receives the request, and otherwise
    within a third of its lease.
    """
    if ids:
        _refuse_filters(state, filters, everything)
        verb = dry(CANCELLABLE) if dry_run else _cancel
        change_each(ids, filters.queue, store, as_json, verb, _conditional("cancelled", dry_run))
        return
    states = _checked(state, filters, everything, CANCELLABLE, "cancelled")
    _change_matching(
        _cancel_step, states, "cancelled", filters, store, as_json, dry_run,
        question=None if yes else "Cancel",
    )  # fmt: skip


def delete(
    *,
    ids: Ids = None,
    state: State = None,
    filters: FilterOptions,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete tasks that are not running, with their results and history.

    For example: qsync task delete --state completed --older-than 7d --dry-run
    """
    if ids:
        _refuse_filters(state, filters, everything)
        if not dry_run:
            noun = "task" if len(ids) == 1 else "tasks"
            confirm(f"Delete {noun} {', '.join(ids)}?", yes=yes)
        verb = dry(DELETABLE) if dry_run else _delete
        change_each(ids, filters.queue, store, as_json, verb, _conditional("deleted", dry_run))
        return
    states = _checked(state, filters, everything, DELETABLE, "deleted")
    _change_matching(
        _delete_step, states, "deleted", filters, store, as_json, dry_run,
        question=None if yes else "Delete",
    )  # fmt: skip


def _retry_step(inspector: Inspector) -> MakeStep:
    return inspector.retry_matching


def _cancel_step(inspector: Inspector) -> MakeStep:
    return inspector.cancel_matching


def _delete_step(inspector: Inspector) -> MakeStep:
    return inspector.delete_matching


def _run(inspector: Inspector) -> ChangeTask:
    return inspector.run


def _cancel(inspector: Inspector) -> ChangeTask:
    return inspector.cancel


def _delete(inspector: Inspector) -> ChangeTask:
    return inspector.delete


def dry(states: tuple[TaskState, ...]) -> Callable[[Inspector], ChangeTask]:
    """Return a verb that changes nothing: it succeeds for tasks in one of the states."""

    def verb(inspector: Inspector) -> ChangeTask:
        async def preview(id: str, *, queue: str) -> Change:
            detail = await inspector.task(id, queue=queue)
            if detail is None:
                return Change(outcome="not_found")
            state = detail.row.state
            return Change(outcome="done" if state in states else "too_late", state=state)

        return preview

    return verb


def _conditional(done: str, dry_run: bool) -> str:
    return f"would be {done}" if dry_run else done


def _refuse_filters(state: TaskState | None, filters: FilterOptions, everything: bool) -> None:
    if state is not None or filters.filter is not None or filters.states or everything:
        exit_with("ids and --state, --all or filters exclude each other", USAGE)


def _checked(
    state: TaskState | None,
    filters: FilterOptions,
    everything: bool,
    states: tuple[TaskState, ...],
    verb: str,
    *,
    checked_all: bool = True,
) -> TaskState:
    """Return the state of the tasks to change; exit if the options do not say which tasks."""
    if filters.states:
        if len(filters.states) > 1 or state not in (None, filters.states[0]):
            exit_with("give one state, by --state or by state: in the query", USAGE)
        [state] = filters.states
    if state is None:
        exit_with("give ids, or --state with filters or --all", USAGE)
    if state not in states:
        others = f"{', '.join(states[:-1])} or {states[-1]}"
        exit_with(f"--state {state}: such tasks cannot be {verb}; use {others}", USAGE)
    if checked_all and filters.filter is None and not everything:
        exit_with(
            "no filter is given: use --query, --type, --error, --id, --older-than, --newer-than or "
            "--all",
            USAGE,
        )
    if checked_all and filters.filter is not None and everything:
        exit_with("--all and filters exclude each other", USAGE)
    return state


def _change_matching(
    pick: Callable[[Inspector], MakeStep],
    state: TaskState,
    verb: str,
    filters: FilterOptions,
    store: StoreOptions,
    as_json: bool,
    dry_run: bool,
    *,
    question: str | None = None,
) -> None:
    """Change the matching tasks by steps; ask first if a question is given."""
    with open_store(store) as session:
        job = BulkJob(session, filters, state, verb, as_json)
        job.carry_out(pick(session.inspector), dry_run=dry_run, question=question)


def change_each(
    ids: list[str],
    queue: str | None,
    store: StoreOptions,
    as_json: bool,
    verb: Callable[[Inspector], ChangeTask],
    done: str,
) -> None:
    """Change each task and report the outcomes; exit with 1 if a task was not changed."""

    async def change(inspector: Inspector, id: str) -> Outcome:
        name = queue
        if name is None:
            queues = [row.queue for row in await inspector.find(id)]
            if len(queues) > 1:
                why = f"queues {', '.join(queues)} have it: choose one with --queue"
                return Outcome(id, None, Change(outcome="refused", why=why))
            if not queues:
                return Outcome(id, None, Change(outcome="not_found"))
            name = queues[0]
        return Outcome(id, name, await verb(inspector)(id, queue=name))

    with open_store(store) as session:
        outcomes = [session.run(change(session.inspector, id)) for id in dict.fromkeys(ids)]
    finish(outcomes, done, as_json=as_json)
