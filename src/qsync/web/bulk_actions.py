"""Bulk actions: a request runs steps for about a second; the next request continues from there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, Step
from qsync.inspector.tasks import LIMIT
from qsync.web.filters import plural
from qsync.web.pages import Site, links
from qsync.web.query import Fields, Wanted, wanted

__all__ = [
    "KINDS",
    "Step",
    "apply_to_selected",
    "back_to",
    "continue_page",
    "count",
    "run_steps",
    "summary",
]

BUDGET_S: Final = 1.0
"""Time after which a request starts no further step, in seconds."""

COUNT_S: Final = 2.0
"""Time limit of counting the matching tasks for a confirmation page, in seconds."""

CURSOR: Final = 400
COUNTS: Final = ("scanned", "done", "duplicate", "too_late")
MOST: Final = 10**12


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of bulk action: the path of its form, the page to show afterwards, and its wording."""

    action: str
    after: str
    done: str
    doing: str

    def place(self, which: Wanted) -> dict[str, str]:
        """Return the query parameters of the page to show afterwards."""
        return which.query | ({"state": which.state} if self.after == "/tasks" else {})


KINDS: Final = {
    "run": Kind("/dead/run", "/dead", "run again", "Running dead tasks again"),
    "now": Kind("/tasks/run", "/tasks", "pending now", "Running tasks now"),
    "cancel": Kind("/tasks/cancel", "/tasks", "cancelled", "Cancelling tasks"),
    "remove": Kind("/tasks/delete", "/tasks", "deleted", "Deleting tasks"),
    "delete": Kind("/dead/delete", "/dead", "deleted", "Deleting dead tasks"),
    "purge": Kind("/queue/purge", "/queue", "deleted", "Purging"),
}


async def run_steps(
    site: Site,
    request: Request,
    name: str,
    which: Wanted,
    step: Callable[[str | None], Awaitable[Step]],
    form: Fields,
) -> Response:
    """Run steps for about BUDGET_S; then redirect to the summary, or to the page that continues."""
    kind, ends = KINDS[name], time.monotonic() + BUDGET_S
    total = await step(form.text("cursor", CURSOR) or None)
    while total.cursor is not None and time.monotonic() < ends:
        total += await step(total.cursor)
    counts = {one: form.number(one, 0, 0, MOST) + getattr(total, one) for one in COUNTS}
    if total.cursor is None:
        good = counts["done"] > 0 or not counts["scanned"]
        return site.go(
            request, kind.after, summary(counts, kind.done), good=good, **kind.place(which)
        )
    query: dict[str, Any] = {**which.query, "state": which.state, "work": name, **counts}
    return site.go(
        request, "/more", f"{summary(counts, kind.done)} There are more.",
        cursor=total.cursor, **query,
    )  # fmt: skip


async def apply_to_selected(
    site: Site,
    request: Request,
    name: str,
    which: Wanted,
    change: Callable[[str], Awaitable[Change]],
    form: Fields,
) -> Response:
    """Change the ticked tasks, at most a page of them; then redirect to the summary."""
    kind, ids = KINDS[name], form.all("id-ticked")
    if not ids:
        text = "No task is ticked, so nothing was done."
        return site.go(request, kind.after, text, good=False, **kind.place(which))
    outcomes = Counter([await _outcome(change, id) for id in ids])
    done = outcomes["done"] + outcomes["told"]
    counts = {
        "scanned": len(ids), "done": done, "duplicate": outcomes["duplicate"],
        "too_late": len(ids) - done - outcomes["duplicate"],
    }  # fmt: skip
    said = summary(counts, kind.done)
    return site.go(request, kind.after, said, good=done > 0, **kind.place(which))


async def count(site: Site, which: Wanted) -> tuple[str, int]:
    """Return the number of matching tasks as text, and of the others read; within about COUNT_S."""
    info = await site.inspector.queue(which.queue)
    total = info.states[which.state] if info else 0
    if not which.narrowed:
        return f"{total:,}", 0
    ends, cursor, number, scanned = time.monotonic() + COUNT_S, None, 0, 0
    while True:
        page = await site.inspector.tasks(
            which.queue, which.state, limit=LIMIT, cursor=cursor, filter=which.filter
        )
        number, scanned, cursor = number + len(page.tasks), scanned + page.scanned, page.cursor
        if cursor is None:
            return f"{number:,}", max(0, scanned - number)
        if time.monotonic() > ends:
            return f"{number:,} or more", max(0, scanned - number)


async def _outcome(change: Callable[[str], Awaitable[Change]], id: str) -> str:
    try:
        return (await change(id)).outcome
    except InvalidTask:  # an id that no client created
        return "refused"


async def continue_page(site: Site, request: Request) -> Response:
    """Show the progress, with a button to continue."""
    fields = Fields(request.query_params.multi_items())
    name = fields.text("work")
    which = wanted(fields)
    kind = KINDS.get(name)
    if kind is None:
        return site.page(request, "error", status=404, title="There is no such page.", text="")
    counts = {one: fields.number(one, 0, 0, MOST) for one in COUNTS}
    kept = {**which.query, "state": which.state, "sure": "yes",
            "cursor": fields.text("cursor", CURSOR), **counts}  # fmt: skip
    return site.page(
        request, "more", kind=kind, which=which, said=summary(counts, kind.done), kept=kept,
        back=back_to(request, kind.after, **kind.place(which)),
    )  # fmt: skip


def summary(counts: dict[str, int], done: str) -> str:
    """Return a summary such as `3 tasks run again of 5 looked at; 2 stay dead, ...`."""
    number, scanned = counts["done"], counts["scanned"]
    of = f" of {scanned:,} looked at" if scanned > number else ""
    parts = [f"{plural(number, 'task')} {done}{of}"]
    if counts["duplicate"]:
        parts.append(f"{counts['duplicate']:,} stay dead, since another task has their lock")
    if counts["too_late"]:
        parts.append(f"{counts['too_late']:,} were somewhere else by then")
    return f"{'; '.join(parts)}."


def back_to(request: Request, path: str, **query: object) -> str:
    """Return the address of the page to go back to."""
    return links(request)(path, **query)
