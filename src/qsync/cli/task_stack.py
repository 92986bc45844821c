"""`qsync task show --stack`: what a running handler is doing."""

from __future__ import annotations

from qsync.cli.command import exit_with
from qsync.cli.options import StoreOptions
from qsync.cli.output import escaped_lines, print_json, print_raw
from qsync.cli.store import open_store, queue_of
from qsync.inspector import HandlerStack, Inspector


def print_stack(id: str, queue: str | None, store: StoreOptions, *, as_json: bool) -> None:
    """Print the stack of the handler of a task; exit if there is none."""
    with open_store(store) as session:
        answer = session.run(_stack(session.inspector, id, queue))
    if as_json:
        print_json(answer)
        return
    for line in escaped_lines(answer.stack.rstrip("\n")):
        print_raw(line)


async def _stack(inspector: Inspector, id: str, queue: str | None) -> HandlerStack:
    name = await queue_of(inspector, id, queue)
    answer = await inspector.stack(id, queue=name)
    if answer is None:
        exit_with(f"task {id} is not running, or its server does not answer (is its loop blocked?)")
    if not answer.stack:
        exit_with(f"the handler of task {id} has not started, or has ended")
    return answer
