"""`qsync fairness`: list, set and reset the weights of fairness keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from qsync.bounds import check_weight
from qsync.cli.command import CommandGroup, argument, exit_with, option
from qsync.cli.listing import OutputOptions
from qsync.cli.options import Json, Preview, StoreOptions, queue_option, sort_option
from qsync.cli.output import Column, Row, print_json, print_line, print_table
from qsync.cli.store import check_queue, exit_unknown_queue, open_store

fairness: Final = CommandGroup(
    name="fairness", help="List and change the weights of fairness keys.", no_args_is_help=True
)

COLUMNS: Final = (
    Column("KEY", shrink=True), Column("PENDING", right=True), Column("WEIGHT", right=True),
)  # fmt: skip

Queue = Annotated[str, queue_option("Queue of the keys.")]

Key = Annotated[str, argument(metavar="KEY", help="Fairness key.")]


class KeyRow(msgspec.Struct, frozen=True):
    """A fairness key with its number of pending tasks and its weight."""

    key: str
    pending: int
    weight: float


SORTS: Final[dict[str, Callable[[KeyRow], Any]]] = {
    "pending": lambda row: -row.pending,
    "key": lambda row: row.key,
    "weight": lambda row: -row.weight,
}
"""Sort key for each column of the list."""


@fairness.command("list")
def list_weights(
    *,
    queue: Queue = "default",
    sort: Annotated[str, sort_option(
        SORTS, "Column to sort by: pending or weight (largest first), or key.  [default: pending]",
    )] = "pending",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """List the fairness keys of pending tasks, and the weights that are not 1.

    If more than 200 tasks are pending, the numbers are estimates from a sample of 200.
    """
    with open_store(store) as session:

        def show() -> None:
            session.run(check_queue(session.inspector, queue))
            weights = session.run(session.inspector.weights(queue))
            shares = session.run(session.inspector.key_shares(queue))
            pending = {key: shares.estimate(key) for key in shares.keys}
            keys = dict.fromkeys([*pending, *weights])
            rows = [KeyRow(key, pending.get(key, 0), weights.get(key, 1.0)) for key in keys]
            rows.sort(key=SORTS[sort])
            document = {"queue": queue, "weights": weights, "pending": pending}

            def print_keys(whole: bool) -> None:
                if not weights:
                    print_line(f"queue {queue}: all fairness keys have the weight 1")
                if rows:
                    cells: list[Row] = [
                        [row.key, f"{row.pending:,}", f"{row.weight:g}"] for row in rows
                    ]
                    print_table(COLUMNS, cells, whole=whole)

            output.print_rows(rows, print_keys, document)

        output.repeat(show)


@fairness.command("set")
def set_weight(
    *,
    key: Key,
    weight: Annotated[float, option(
        "--weight", "-w", metavar="N", help="Weight from 0.001 to 1000; the default is 1.",
    )],
    queue: Queue = "default",
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Set the share of a queue's throughput that a fairness key gets.

    For example: qsync fairness set acme --weight 3

    The weight applies to tasks that are enqueued or become due from now on. The queue must exist:
    it exists after its first task was enqueued, or after a server for it has started.
    """
    with open_store(store) as session:
        if dry_run:
            check_weight(weight)
            session.run(check_queue(session.inspector, queue))
        elif not session.run(session.inspector.set_weight(queue, key, weight)).ok:
            session.run(exit_unknown_queue(session.inspector, queue))
    _report(queue, key, weight, as_json, dry_run=dry_run)


@fairness.command()
def reset(
    *,
    key: Key,
    queue: Queue = "default",
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Reset the weight of a fairness key to 1."""
    with open_store(store) as session:
        if dry_run:
            has_other = key in session.run(session.inspector.weights(queue))
        else:
            has_other = session.run(session.inspector.reset_weight(queue, key)).ok
    if not has_other:
        exit_with(f"queue {queue}: fairness key {key} already has the weight 1")
    _report(queue, key, 1.0, as_json, dry_run=dry_run)


def _report(queue: str, key: str, weight: float, as_json: bool, *, dry_run: bool) -> None:
    if as_json:
        print_json({"queue": queue, "key": key, "weight": weight, "dry_run": dry_run})
    else:
        verb = "would have weight" if dry_run else "weight"
        print_line(f"{key}: {verb} {weight:g} in queue {queue}")
