"""Changes to the tasks that a search finds: to the selected ones, or to all that match."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qsync.inspector import Change, SearchQuery
from qsync.inspector.search import CHANGED, Verb
from qsync.inspector.search_query import MAX_QUERY
from qsync.state import TaskState
from qsync.web.bulk_actions import BUDGET_S, COUNTS, MAX_TASKS, summary
from qsync.web.pages import Site, links
from qsync.web.query import Fields
from qsync.web.roles import given_role, lacking
from qsync.web.search import MAX_CURSOR, parse_for
from qsync.web.search_words import DOING, DONE, button, by_state, consequence, unread_note
from qsync.web.translation import _


async def act(site: Site, request: Request) -> Response:
    """Retry, cancel or delete the selected tasks, or all that a search finds."""
    form = await site.form(request)
    verb = next((verb for verb in CHANGED if verb == form.text("verb")), None)
    if verb is None:
        return site.page(request, "error", status=404, title=_("Page not found"), text="")
    if verb == "delete" and (why := lacking(given_role(request), "delete")) is not None:
        return PlainTextResponse(f"{why}\n", 403)
    query = parse_for(site, form.text("q", MAX_QUERY + 1))
    if form.text("scope") != "all":
        return await _change_selected(site, request, form, verb, query)
    if form.text("sure") == "yes":
        return await _change_all(site, request, form, verb, query)
    return await _count_all(site, request, form, verb, query)


async def _change_selected(
    site: Site, request: Request, form: Fields, verb: Verb, query: SearchQuery
) -> Response:
    picked = [text.partition("/")[::2] for text in form.all("id-ticked")]
    if not picked:
        text = _("No task is selected, so nothing was changed.")
        return site.go(request, "/search", text, good=False, q=str(query))
    if verb != "retry" and form.text("sure") != "yes":
        label = button(verb, len(picked))
        return site.confirm(
            request, form, title=f"{label}?", text=consequence(verb), button=label,
            items=[id for _queue, id in picked], back=links(request)("/search", q=str(query)),
        )  # fmt: skip
    inspector = site.acting(request)
    change: Callable[..., Awaitable[Change]] = {
        "retry": inspector.run, "cancel": inspector.cancel, "delete": inspector.delete,
    }[verb]  # fmt: skip
    outcomes = Counter([(await change(id, queue=queue)).outcome for queue, id in picked])
    done = outcomes["done"] + outcomes["told"]
    counts = {
        "done": done, "duplicate": outcomes["duplicate"],
        "too_late": len(picked) - done - outcomes["duplicate"],
    }  # fmt: skip
    return site.go(request, "/search", summary(counts, DONE[verb]), good=done > 0, q=str(query))


async def _count_all(
    site: Site, request: Request, form: Fields, verb: Verb, query: SearchQuery
) -> Response:
    """Count for about BUDGET_S; then show the progress, or ask for confirmation with the number."""
    numbers = {state: form.number(f"n-{state}", 0, 0, MAX_TASKS) for state in TaskState}
    scanned, unread = (form.number(name, 0, 0, MAX_TASKS) for name in ("scanned", "unread"))
    cursor, end = form.text("cursor", MAX_CURSOR) or None, time.monotonic() + BUDGET_S
    total = await site.inspector.search_total(query, verb) if cursor is None else None
    if total is not None:
        return _confirm_all(site, request, verb, query, total, 0)
    while True:
        part = await site.inspector.search_step(query, verb, cursor=cursor, dry_run=True)
        if part.state is not None:
            numbers[part.state] += part.step.done
        scanned, unread = scanned + part.step.scanned, unread + part.step.unread
        cursor = part.step.cursor
        if cursor is None:
            return _confirm_all(site, request, verb, query, numbers, unread)
        if time.monotonic() > end:
            break
    text = _(
        "Matches so far: %(number)s. Searched: %(scanned)s. Nothing has been changed yet.",
        number=sum(numbers.values()), scanned=scanned,
    )  # fmt: skip
    counts = {f"n-{state}": number for state, number in numbers.items() if number}
    hidden_fields = {**counts, "scanned": scanned, "unread": unread, "cursor": cursor}
    return _continue(
        site, request, verb, query, _("Counting the matching tasks"), text, hidden_fields
    )


def _confirm_all(
    site: Site,
    request: Request,
    verb: Verb,
    query: SearchQuery,
    numbers: dict[TaskState, int],
    unread: int,
) -> Response:
    number = sum(numbers.values())
    if not number:
        text = _("No matching task is in a state that allows this change.")
        return site.go(request, "/search", text, good=False, q=str(query))
    label = button(verb, number)
    text = _("Search: %(query)s.", query=str(query) or "*")
    fields = Fields([("q", str(query)), ("verb", verb), ("scope", "all")])
    return site.confirm(
        request, fields, title=f"{label}?", button=label, danger=verb != "retry",
        text=" ".join(filter(None, [text, consequence(verb), unread_note(unread)])),
        items=by_state(numbers), back=links(request)("/search", q=str(query)),
    )  # fmt: skip


async def _change_all(
    site: Site, request: Request, form: Fields, verb: Verb, query: SearchQuery
) -> Response:
    """Change tasks for about BUDGET_S; then show the progress, or the summary at the end."""
    counts = {name: form.number(name, 0, 0, MAX_TASKS) for name in COUNTS}
    cursor, end = form.text("cursor", MAX_CURSOR) or None, time.monotonic() + BUDGET_S
    while True:
        part = await site.acting(request).search_step(query, verb, cursor=cursor)
        counts = {name: counts[name] + getattr(part.step, name) for name in COUNTS}
        cursor = part.step.cursor
        if cursor is None:
            text, good = summary(counts, DONE[verb]), counts["done"] > 0
            return site.go(request, "/search", text, good=good, q=str(query))
        if time.monotonic() > end:
            break
    site.error_scanner.forget()
    text = f"{summary(counts, DONE[verb])} {_('There are more.')}"
    state = {**counts, "cursor": cursor, "sure": "yes"}
    return _continue(site, request, verb, query, _(DOING[verb]), text, state)


def _continue(
    site: Site,
    request: Request,
    verb: Verb,
    query: SearchQuery,
    title: str,
    text: str,
    kept: dict[str, object],
) -> Response:
    """Show the progress, with a form that continues the count or the change."""
    return site.page(
        request, "search_steps", title=title, text=text, q=str(query),
        kept={"q": str(query), "verb": verb, "scope": "all", **kept},
        back=links(request)("/search", q=str(query)),
    )  # fmt: skip
