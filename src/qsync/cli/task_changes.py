"""`qsync task retry`, `cancel` and `delete`: for tasks by id, or for all that match filters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from qsync.cli.bulk import BulkJob, MakeStep
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import USAGE, argument, exit_with, option
from qsync.cli.options import DryRun, FilterOptions, Json, StoreOptions, Yes
from qsync.cli.prompts import confirm
from qsync.cli.store import open_store
from qsync.inspector import Change, Inspector
from qsync.inspector.bulk import CANCELLABLE, DELETABLE, RETRIED
from qsync.state import TaskState

ChangeTask = Callable[..., Awaitable[Change]]
"""Changes the task with this id in this queue, as `Inspector.run` does."""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A change to tasks in any of `states`, either by id or to all tasks that match filters."""

    states: tuple[TaskState, ...]
    verb: str
    done: str
    """Past participle for the report, e.g. `deleted` in "3 of 5 dead tasks deleted"."""
    change_task: Callable[[Inspector], ChangeTask]
    make_step: Callable[[Inspector], MakeStep]


RETRY: Final = TaskChange(
    RETRIED, "retried", "pending now",
    lambda inspector: inspector.run, lambda inspector: inspector.retry_matching,
)  # fmt: skip

CANCEL: Final = TaskChange(
    CANCELLABLE, "cancelled", "cancelled",
    lambda inspector: inspector.cancel, lambda inspector: inspector.cancel_matching,
)  # fmt: skip

DELETE: Final = TaskChange(
    DELETABLE, "deleted", "deleted",
    lambda inspector: inspector.delete, lambda inspector: inspector.delete_matching,
)  # fmt: skip

Ids = Annotated[list[str] | None, argument(
    metavar="ID", help="Task id(s); or select tasks by --state.",
)]  # fmt: skip

All = Annotated[
    bool,
    typer.Option("--all", help="Apply to all tasks in the state (required without a filter)."),
]

State = Annotated[TaskState | None, option(
    "--state", "-s", metavar="STATE", help="Apply to the tasks in this state that match the "
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
    """Make tasks that are dead, scheduled or waiting for a retry pending now.

    For example: qsync task retry --state retry --error Timeout --dry-run

    A dead task gets a fresh set of attempts; if another task holds its unique lock, it stays dead.
    """
    if ids:
        _refuse_filters(state, filters, everything)
        _change_ids(RETRY, ids, filters.queue, store, as_json, dry_run)
    else:
        _change_matching(RETRY, state, filters, everything, store, as_json, dry_run)


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

    The server of a running task stops the handler immediately if the request reaches the server,
    and otherwise within a third of the lease.
    """
    if ids:
        _refuse_filters(state, filters, everything)
        _change_ids(CANCEL, ids, filters.queue, store, as_json, dry_run)
        return
    question = None if yes else "Cancel"
    _change_matching(CANCEL, state, filters, everything, store, as_json, dry_run, question)


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
        _change_ids(DELETE, ids, filters.queue, store, as_json, dry_run)
        return
    question = None if yes else "Delete"
    _change_matching(DELETE, state, filters, everything, store, as_json, dry_run, question)


def dry(states: tuple[TaskState, ...]) -> Callable[[Inspector], ChangeTask]:
    """Return a function for a dry run: it changes nothing, and succeeds for tasks in `states`."""

    def verb(inspector: Inspector) -> ChangeTask:
        async def preview(id: str, *, queue: str) -> Change:
            detail = await inspector.task(id, queue=queue)
            if detail is None:
                return Change(outcome="not_found")
            state = detail.row.state
            return Change(outcome="done" if state in states else "too_late", state=state)

        return preview

    return verb


def _refuse_filters(state: TaskState | None, filters: FilterOptions, everything: bool) -> None:
    if state is not None or filters.filter is not None or filters.states or everything:
        exit_with("ids cannot be used together with --state, --all or filters", USAGE)


def _checked_state(
    change: TaskChange, state: TaskState | None, filters: FilterOptions
) -> TaskState:
    """Return the state of the tasks to change; exit unless the options name one valid state."""
    if filters.states:
        if len(filters.states) > 1 or state not in (None, filters.states[0]):
            exit_with("pass one state, with --state or with state: in the query", USAGE)
        [state] = filters.states
    if state is None:
        exit_with("pass ids, or --state with filters or --all", USAGE)
    if state not in change.states:
        others = f"{', '.join(change.states[:-1])} or {change.states[-1]}"
        exit_with(f"--state {state}: such tasks cannot be {change.verb}; use {others}", USAGE)
    return state


def check_everything(filters: FilterOptions, everything: bool) -> None:
    """Exit unless either a filter or --all is given."""
    if filters.filter is None and not everything:
        exit_with(
            "no filter is given: use --query, --type, --error, --id, --older-than, --newer-than or "
            "--all",
            USAGE,
        )
    if filters.filter is not None and everything:
        exit_with("--all and filters cannot be used together", USAGE)


def _change_matching(
    change: TaskChange,
    state: TaskState | None,
    filters: FilterOptions,
    everything: bool,
    store: StoreOptions,
    as_json: bool,
    dry_run: bool,
    question: str | None = None,
) -> None:
    """Change the matching tasks in steps; if `question` is set, ask for confirmation first."""
    checked = _checked_state(change, state, filters)
    check_everything(filters, everything)
    with open_store(store) as session:
        job = BulkJob(session, filters, checked, change.done, as_json)
        step = change.make_step(session.inspector)
        job.carry_out(step, dry_run=dry_run, question=question)


def _change_ids(
    change: TaskChange,
    ids: list[str],
    queue: str | None,
    store: StoreOptions,
    as_json: bool,
    dry_run: bool,
) -> None:
    if dry_run:
        done = f"would be {change.done}"
        change_each(ids, queue, store, as_json, dry(change.states), done)
    else:
        change_each(ids, queue, store, as_json, change.change_task, change.done)


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
                why = (
                    f"queues {', '.join(queues)} have a task with this id: choose one with --queue"
                )
                return Outcome(id, None, Change(outcome="refused", why=why))
            if not queues:
                return Outcome(id, None, Change(outcome="not_found"))
            name = queues[0]
        return Outcome(id, name, await verb(inspector)(id, queue=name))

    with open_store(store) as session:
        outcomes = [session.run(change(session.inspector, id)) for id in dict.fromkeys(ids)]
    finish(outcomes, done, as_json=as_json)
