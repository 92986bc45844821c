"""Bulk actions: a request runs steps for about a second; the next request continues from there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, Step
from qsync.inspector.tasks import MAX_PAGE_SIZE
from qsync.web.pages import Site, links
from qsync.web.query import Fields, Selection, selection_of
from qsync.web.translation import _, marked, marked_plural, ngettext

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
"""Time limit for counting the matching tasks for a confirmation page, in seconds."""

MAX_CURSOR_LENGTH: Final = 400
COUNTS: Final = ("scanned", "done", "duplicate", "too_late")
MAX_TASKS: Final = 10**12


@dataclass(frozen=True, slots=True)
class BulkAction:
    """A kind of bulk action: the path of its form, the page to show afterwards, and its texts."""

    action: str
    after: str
    done: tuple[str, str]
    doing: str

    def query(self, selection: Selection) -> dict[str, str]:
        """Return the query parameters of the page to show afterwards."""
        return selection.query | ({"state": selection.state} if self.after == "/tasks" else {})


RE_QUEUED: Final = marked_plural("%(num)s task re-queued.", "%(num)s tasks re-queued.")
PENDING_NOW: Final = marked_plural("%(num)s task pending now.", "%(num)s tasks pending now.")
CANCELLED: Final = marked_plural("%(num)s task cancelled.", "%(num)s tasks cancelled.")
DELETED: Final = marked_plural("%(num)s task deleted.", "%(num)s tasks deleted.")

KINDS: Final = {
    "run": BulkAction("/dead/run", "/dead", RE_QUEUED, marked("Re-running dead tasks")),
    "now": BulkAction("/tasks/run", "/tasks", PENDING_NOW, marked("Running tasks now")),
    "cancel": BulkAction("/tasks/cancel", "/tasks", CANCELLED, marked("Cancelling tasks")),
    "remove": BulkAction("/tasks/delete", "/tasks", DELETED, marked("Deleting tasks")),
    "delete": BulkAction("/dead/delete", "/dead", DELETED, marked("Deleting dead tasks")),
    "purge": BulkAction("/queue/purge", "/queue", DELETED, marked("Purging tasks")),
}


async def run_steps(
    site: Site,
    request: Request,
    action: str,
    selection: Selection,
    step: Callable[[str | None], Awaitable[Step]],
    form: Fields,
) -> Response:
    """Run steps for about BUDGET_S; then redirect to the summary, or to the page that continues."""
    kind, end = KINDS[action], time.monotonic() + BUDGET_S
    total = await step(form.text("cursor", MAX_CURSOR_LENGTH) or None)
    while total.cursor is not None and time.monotonic() < end:
        total += await step(total.cursor)
    counts = {name: form.number(name, 0, 0, MAX_TASKS) + getattr(total, name) for name in COUNTS}
    if total.cursor is None:
        good = counts["done"] > 0 or not counts["scanned"]
        return site.go(
            request, kind.after, summary(counts, kind.done), good=good, **kind.query(selection)
        )
    query: dict[str, Any] = {**selection.query, "state": selection.state, "work": action, **counts}
    return site.go(
        request, "/more", f"{summary(counts, kind.done)} {_('There are more.')}",
        cursor=total.cursor, **query,
    )  # fmt: skip


async def apply_to_selected(
    site: Site,
    request: Request,
    action: str,
    selection: Selection,
    change: Callable[[str], Awaitable[Change]],
    form: Fields,
) -> Response:
    """Change the selected tasks (at most one page of them); then redirect to the summary."""
    kind, ids = KINDS[action], form.all("id-ticked")
    if not ids:
        text = _("No task is selected, so nothing was changed.")
        return site.go(request, kind.after, text, good=False, **kind.query(selection))
    outcomes = Counter([await _outcome(change, id) for id in ids])
    done = outcomes["done"] + outcomes["told"]
    counts = {
        "scanned": len(ids), "done": done, "duplicate": outcomes["duplicate"],
        "too_late": len(ids) - done - outcomes["duplicate"],
    }  # fmt: skip
    text = summary(counts, kind.done)
    return site.go(request, kind.after, text, good=done > 0, **kind.query(selection))


class Matching(NamedTuple):
    """The result of counting the tasks that match.

    At least `number` tasks match; exactly `number` tasks match if `is_whole` is true. `others` is
    the number of tasks that were read and do not match.
    """

    number: int
    others: int = 0
    is_whole: bool = True

    def counted(self, one: str, many: str, /, **values: Any) -> str:
        """Return the text in the right plural form, with this number in place of `%(num)s`."""
        if self.is_whole:
            return ngettext(one, many, self.number, **values)
        return ngettext(one, many, 0, num=_("%(number)s or more", number=self.number), **values)


async def count(site: Site, selection: Selection) -> Matching:
    """Count the tasks that match, within about COUNT_S."""
    info = await site.inspector.queue(selection.queue)
    total = info.states[selection.state] if info else 0
    if not selection.narrowed:
        return Matching(total)
    end, cursor, number, scanned = time.monotonic() + COUNT_S, None, 0, 0
    while True:
        page = await site.inspector.tasks(
            selection.queue,
            selection.state,
            limit=MAX_PAGE_SIZE,
            cursor=cursor,
            filter=selection.filter,
        )
        number, scanned, cursor = number + len(page.tasks), scanned + page.scanned, page.cursor
        if cursor is None:
            return Matching(number, max(0, scanned - number))
        if time.monotonic() > end:
            return Matching(number, max(0, scanned - number), is_whole=False)


async def _outcome(change: Callable[[str], Awaitable[Change]], id: str) -> str:
    try:
        return (await change(id)).outcome
    except InvalidTask:  # the id is invalid
        return "refused"


async def continue_page(site: Site, request: Request) -> Response:
    """Show the progress, with a button to continue."""
    fields = Fields(request.query_params.multi_items())
    action = fields.text("work")
    selection = selection_of(fields)
    kind = KINDS.get(action)
    if kind is None:
        return site.page(request, "error", status=404, title=_("Page not found"), text="")
    counts = {name: fields.number(name, 0, 0, MAX_TASKS) for name in COUNTS}
    hidden_fields = {**selection.query, "state": selection.state, "sure": "yes",
            "cursor": fields.text("cursor", MAX_CURSOR_LENGTH), **counts}  # fmt: skip
    return site.page(
        request, "more", kind=kind, selection=selection, summary=summary(counts, kind.done),
        kept=hidden_fields,
        back=back_to(request, kind.after, **kind.query(selection)),
    )  # fmt: skip


def summary(counts: dict[str, int], done: tuple[str, str]) -> str:
    """Return a summary such as `3 tasks re-queued. 2 tasks changed state in the meantime.`."""
    sentences = [ngettext(*done, counts["done"])]
    if number := counts["duplicate"]:
        text = ngettext(
            "%(num)s task stays dead: another task holds the unique lock.",
            "%(num)s tasks stay dead: another task holds the unique lock.",
            number,
        )
        sentences.append(text)
    if number := counts["too_late"]:
        text = ngettext(
            "%(num)s task changed state in the meantime.",
            "%(num)s tasks changed state in the meantime.",
            number,
        )
        sentences.append(text)
    return " ".join(sentences)


def back_to(request: Request, path: str, **query: object) -> str:
    """Return the URL to which the user returns from a confirmation page without a change."""
    return links(request)(path, **query)
