"""Work on many tasks: a request makes steps for about a second, and the next goes on from there."""

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
"""After so long a request begins no other step."""

COUNT_S: Final = 2.0
"""How long tasks that fit are counted before somebody is asked."""

CURSOR: Final = 400
COUNTS: Final = ("scanned", "done", "duplicate", "too_late")
MOST: Final = 10**12


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work: where its form goes, where one is afterwards, and what is said of it."""

    action: str
    after: str
    done: str
    doing: str

    def place(self, which: Wanted) -> dict[str, str]:
        """The parameters of the page to which one comes back."""
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
    """Make steps; then on to the page that says what was done, or that goes on."""
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
    """Change the ticked tasks, a page of them at most; then to the page that says what was done."""
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
    """How many tasks fit, as a text, and how many of the state do not; in about COUNT_S."""
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
    except InvalidTask:  # an id that no client gave
        return "refused"


async def continue_page(site: Site, request: Request) -> Response:
    """How far the work is, and a button to go on with."""
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
    """What became of many tasks: `3 of 5 tasks run again; 2 stay dead, ...`."""
    number, scanned = counts["done"], counts["scanned"]
    of = f" of {scanned:,} looked at" if scanned > number else ""
    parts = [f"{plural(number, 'task')} {done}{of}"]
    if counts["duplicate"]:
        parts.append(f"{counts['duplicate']:,} stay dead, since another task has their lock")
    if counts["too_late"]:
        parts.append(f"{counts['too_late']:,} were somewhere else by then")
    return f"{'; '.join(parts)}."


def back_to(request: Request, path: str, **query: object) -> str:
    """The address of the page to go back to."""
    return links(request)(path, **query)
